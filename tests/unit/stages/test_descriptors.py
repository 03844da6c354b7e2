"""Stored descriptors: unit vectors in half precision, resumed, and refused where a number is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import embeddings, image_list

from cgd.errors import InputError
from cgd.retrieval.vectors import combine_scales, l2
from cgd.stages.descriptors import (
    Member,
    RandomDistractors,
    computed,
    describe,
    join,
    open_gallery,
    stored,
)
from cgd.store.feature_store import FeatureStore
from cgd.store.writer import Writer


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(tmp_path / "s.zarr", write=True)


def drawn(rows: int, dim: int = 12, seed: int = 0, scales: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, scales, dim)).astype(np.float32)


def test_descriptors_are_the_combined_unit_vectors_in_half_precision(store: FeatureStore) -> None:
    vectors, valid = drawn(40), np.arange(40) != 7
    key = embeddings(store, image_list("photos", None, 40), vectors, valid)
    described = stored(store, describe(store, key, None))
    expected = l2(combine_scales(vectors.astype(np.float64), "mean"))
    expected[7] = 0
    np.testing.assert_array_equal(described.read(range(40)), expected.astype(np.float32).astype(np.float16))
    np.testing.assert_array_equal(described.valid, valid)
    assert np.isnan(store.get(describe(store, key, None)).read("vectors")[7]).all()
    np.testing.assert_allclose(computed(store, key, None).read(range(5, 12)), expected[5:12], atol=1e-7)
    assert store.get(describe(store, key, None)).read("ids")[3] == "photos-00003"


def test_a_half_made_artifact_is_continued(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = embeddings(store, image_list("photos", None, 20_000), drawn(20_000, scales=1))
    real, written = Writer.write, []

    def write(self: Writer, shard: int, *arguments: Any) -> None:
        if shard == 1 and 1 not in written:
            written.append(1)
            raise KeyboardInterrupt
        written.append(shard)
        real(self, shard, *arguments)

    monkeypatch.setattr(Writer, "write", write)
    with pytest.raises(KeyboardInterrupt):
        describe(store, key, None)
    described = stored(store, describe(store, key, None))
    assert written[:4] == [0, 1, 1, 2]
    assert described.read(range(20_000)).shape == (20_000, 12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_whose_vector_holds_no_number_is_named(store: FeatureStore, bad: float) -> None:
    vectors = drawn(20)
    vectors[13, 1, 4] = bad
    key = embeddings(store, image_list("photos", None, 20), vectors)
    with pytest.raises(InputError, match=r"NaN or infinite\) for the image 'photos-00013': extract again"):
        describe(store, key, None)
    assert not store.find("descriptors")


def test_a_gallery_of_several_members_and_sets_gives_the_mean_of_their_cosines(store: FeatureStore) -> None:
    lists = {"g": image_list("g", None, 700), "d": image_list("d", None, 30)}
    made = {
        (name, dim): embeddings(
            store, images, drawn(len(images), dim, dim, 1), encoder=f"net{dim}", shard_rows=64 * dim
        )
        for name, images in lists.items()
        for dim in (8, 16)
    }  # different cuts
    members = [Member(f"net{dim}", made["g", dim], made["g", dim], None, (made["d", dim],)) for dim in (8, 16)]
    for precision, tolerance in (("single", 1e-6), ("half", 2e-3)):
        gallery = open_gallery(store, members, precision, RandomDistractors(50, 3))
        assert [b.rows.start for b in gallery.blocks] == sorted(b.rows.start for b in gallery.blocks)
        assert gallery.size == 780
        vectors = np.concatenate([b.read() for b in gallery.blocks])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        alone = [l2(store.get(made["g", dim]).read("vectors")[:, 0].astype(np.float64)) for dim in (8, 16)]
        mean = (alone[0] @ alone[0].T + alone[1] @ alone[1].T) / 2
        np.testing.assert_allclose(vectors[:700] @ vectors[:700].T, mean, atol=tolerance)
        assert len(gallery.keys) == (4 if precision == "half" else 0)


def test_drawn_distractors_are_those_of_their_seed_however_they_are_read(store: FeatureStore) -> None:
    key = embeddings(store, image_list("g", None, 3), drawn(3))
    blocks = {
        seed: open_gallery(store, [Member("net", key, key)], "half", RandomDistractors(20_000, seed)).blocks
        for seed in (0, 1)
    }
    assert [len(b.rows) for b in blocks[0]] == [3, 16_384, 20_000 - 16_384]
    np.testing.assert_array_equal(blocks[0][2].read(), blocks[0][2].read())
    assert not np.array_equal(blocks[0][1].read()[:10], blocks[1][1].read()[:10])
    assert not np.array_equal(blocks[0][1].read()[:10], blocks[0][2].read()[:10])


def test_one_member_is_not_copied() -> None:
    vectors = np.ones((2, 3), np.float16)
    assert join([vectors]) is vectors
