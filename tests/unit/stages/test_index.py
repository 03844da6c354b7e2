"""Indexes in the store: reopened, extended when images are added, and refused where they are another gallery's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import embeddings, image_list

from cgd.config import IndexConfig
from cgd.errors import DamageError
from cgd.retrieval import approximate
from cgd.retrieval.search import DotProducts, nearest
from cgd.retrieval.vectors import l2
from cgd.stages import index as stage
from cgd.stages.descriptors import Gallery, Member, open_gallery
from cgd.stages.index import Index, open_index
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList

CONFIG = IndexConfig(code_bytes=8, lists=8, probes=8)
DIM = 16


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(tmp_path / "s.zarr", write=True)


VECTORS = np.random.default_rng(0).standard_normal((1000, DIM)).astype(np.float32)


def gallery_of(store: FeatureStore, rows: np.ndarray, valid: np.ndarray | None = None) -> Gallery:
    """Some of the same thousand images, in the order given."""
    ids = tuple(f"i{row}" for row in rows)
    key = embeddings(store, ImageList("photos", None, ids, ids), VECTORS[rows], valid)
    return open_gallery(store, [Member("net", key, key)], "half")


def opened(store: FeatureStore, gallery: Gallery, kind: str = "hnsw") -> Index:
    return open_index(
        store=store, kind=kind, descriptors=gallery.keys, gallery=gallery.blocks, dim=DIM, config=CONFIG,
        title=["photos", "net"],
    )  # fmt: skip


def about(store: FeatureStore, index: Index) -> dict[str, object]:
    assert index.key is not None
    return {name: store.get(index.key).attributes[name] for name in ("extends", "added", "gone", "trained_on")}


def check(gallery: Gallery, index: Index, least: float = 0.95) -> None:
    queries = l2(VECTORS[::37])
    _, exact = nearest(DotProducts(queries), gallery.blocks, 10)
    scores, found = index.search(queries, 10)
    assert found.shape == scores.shape == (len(queries), 10)
    assert np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]) >= least
    assert all(len(set(row)) == 10 for row in found.tolist())


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.95), ("ivf-pq", 0.5), ("flat", 1.0)])
def test_an_index_is_built_once_and_opened_again(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, kind: str, least: float
) -> None:
    gallery = gallery_of(store, np.arange(600))
    first = opened(store, gallery, kind)
    check(gallery, first, least)
    if kind == "flat":
        assert first.key is None
        assert first.bytes_per_vector == 4 * DIM
        assert not store.find("indexes")
        return
    monkeypatch.setattr(stage, "_build", lambda *_: pytest.fail("built again"))
    again = opened(store, gallery, kind)
    assert again.key == first.key
    np.testing.assert_array_equal(again.search(VECTORS[:5], 4)[1], first.search(VECTORS[:5], 4)[1])
    assert store.verify()


@pytest.mark.parametrize("kind", ["hnsw", "ivf-pq"])
def test_added_images_extend_an_index_wherever_they_stand(store: FeatureStore, kind: str) -> None:
    first = opened(store, gallery_of(store, np.arange(0, 1000, 2)), kind)
    rows = np.sort(np.concatenate([np.arange(0, 1000, 2), np.arange(1, 400, 2)]))
    grown = gallery_of(store, rows)
    index = opened(store, grown, kind)
    assert about(store, index) == {"extends": str(first.key), "added": 200, "gone": 0, "trained_on": 500}
    check(grown, index, 0.95 if kind == "hnsw" else 0.5)


def test_images_that_are_gone_are_never_found(store: FeatureStore) -> None:
    first = opened(store, gallery_of(store, np.arange(500)))
    left = gallery_of(store, np.concatenate([np.arange(100, 500), np.arange(600, 620)]))
    index = opened(store, left)
    assert about(store, index) == {"extends": str(first.key), "added": 20, "gone": 100, "trained_on": 500}
    check(left, index, 0.9)


@pytest.mark.parametrize("rows", [np.arange(300, 800), np.arange(1000)])
def test_much_that_is_gone_or_new_builds_anew(store: FeatureStore, rows: np.ndarray) -> None:
    opened(store, gallery_of(store, np.arange(450)))
    anew = gallery_of(store, rows)
    index = opened(store, anew)
    assert about(store, index)["extends"] is None
    check(anew, index)


def test_equal_images_are_matched_one_to_one() -> None:
    old, new = np.array([7, 7, 5, 7, 9]), np.array([5, 7, 1, 7])
    assert stage._match(old, new).tolist() == [1, 3, 0, -1, -1]


def test_images_that_are_not_valid_are_left_out(store: FeatureStore) -> None:
    gallery = gallery_of(store, np.arange(600), np.arange(600) % 5 > 0)
    for kind in ("hnsw", "ivf-pq", "flat"):
        index = opened(store, gallery, kind)
        assert len(index.rows) == 480
        assert (index.search(VECTORS[:40], 30)[1] % 5 > 0).all()


def test_an_extended_index_still_knows_its_rows_where_some_images_are_not_valid(store: FeatureStore) -> None:
    opened(store, gallery_of(store, np.arange(10, 500)))
    rows = np.arange(520)  # ten more before the others, and every fifth no longer readable
    grown = gallery_of(store, rows, rows % 5 > 0)
    opened(store, gallery_of(store, rows[rows % 5 > 0]))
    index = opened(store, grown)
    assert about(store, index)["extends"] is not None
    check(grown, index, 0.9)


def test_a_small_gallery_comes_short_with_minus_one(store: FeatureStore) -> None:
    scores, rows = opened(store, gallery_of(store, np.arange(6))).search(VECTORS[:3], 10)
    assert rows.shape == (3, 10)
    assert (rows[:, 6:] == -1).all()
    assert (scores[:, 6:] == -np.inf).all()


def test_the_index_of_another_gallery_is_refused(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = gallery_of(store, np.arange(300))
    other = approximate.make("hnsw", DIM, 7, CONFIG, VECTORS[:0])
    approximate.extend(other, [VECTORS[:7]])
    monkeypatch.setattr(approximate, "to_bytes", lambda _: bytes(__import__("faiss").serialize_index(other).data))
    with pytest.raises(
        DamageError, match=r"holds 7 vectors of 16 numbers, its gallery 300 of 16: it is the index of another"
    ):
        opened(store, gallery)


def test_image_lists_made_here_have_unique_names() -> None:
    assert image_list("a", None, 2).ids == ("a-00000", "a-00001")
