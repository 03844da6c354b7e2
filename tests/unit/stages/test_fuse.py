"""Vectors gathered for an epoch: every row under its view, and nothing that is no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cgd.errors import StoreError
from cgd.stages.fuse import gather_vectors, gather_views
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import Key

ROWS = 1200


def whitened(store: FeatureStore, view: int, vectors: np.ndarray) -> Key:
    """Vectors of one view, in two shards, as `fit-whitening` leaves them."""
    count = len(vectors)
    shapes = {"ids": (count,), "vectors": vectors.shape, "valid": (count,), "digests": (count, 32)}
    identity = identify("whitened", ["drawn", f"crop-{view}"], 1, {"view": view})
    writer = store.writer(identity, shapes, shard_rows=1000)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        ids = np.array([str(row) for row in rows], object)
        known = {"ids": ids, "valid": np.ones(len(rows), bool), "digests": np.zeros((len(rows), 32), np.uint8)}
        writer.write(shard, {**known, "vectors": vectors[rows.start : rows.stop]})
    writer.seal()
    return identity.key


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(tmp_path / "s.zarr", write=True)


@pytest.mark.parametrize("numbers", [(0,), (1, 2, 5)])
def test_every_row_comes_under_its_view(store: FeatureStore, numbers: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    vectors = {n: draw.standard_normal((ROWS, 4)).astype(np.float16) for n in numbers}
    keys = [whitened(store, n, v) for n, v in vectors.items()]
    rows, views = draw.integers(0, ROWS, (300, 2)), draw.choice(numbers, (300, 2))
    found = gather_views(store, keys, numbers, rows, views)
    expected = [[vectors[v][r] for r, v in zip(*pair, strict=True)] for pair in zip(rows, views, strict=True)]
    np.testing.assert_array_equal(found, np.array(expected))
    assert found.dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_of_a_value_that_is_no_number_is_named(store: FeatureStore, value: float) -> None:
    vectors = np.full((ROWS, 4), 65504, np.float16)  # the largest number there is
    vectors[1100, 3] = value
    artifact = store.get(whitened(store, 0, vectors))
    order = np.roll(np.arange(ROWS), 7)
    with pytest.raises(StoreError, match="not finite in row 1100, an image"):
        gather_vectors(artifact, order)
    assert len(gather_vectors(artifact, order[order != 1100])) == ROWS - 1
