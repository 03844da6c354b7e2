"""Some rows of a shard's file, decoded without the others."""

from __future__ import annotations

import numpy as np
import pytest

from cgd.store import shards
from cgd.store.layout import LAYOUT

VECTORS = next(a for a in LAYOUT["whitened"] if a.name == "vectors")
IDS = next(a for a in LAYOUT["whitened"] if a.name == "ids")


@pytest.fixture(scope="module")
def block() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1300, 3)).astype(np.float16)


@pytest.mark.parametrize("rows", [[], [0], [511, 512, 512, 1023, 1024, 1299], range(1300)])
def test_some_rows_are_those_of_all(block: np.ndarray, rows: list[int]) -> None:
    metadata = shards.array_metadata(VECTORS, (3000, 3), 1536)
    data = shards.encode(metadata, 0, np.concatenate([block, block[:236]]))
    wanted = np.array(rows, np.int64)
    found = shards.decode(metadata, 0, data, wanted)
    np.testing.assert_array_equal(found, shards.decode(metadata, 0, data)[wanted])
    np.testing.assert_array_equal(found, block[wanted])
    assert found.dtype == shards.dtype_of(metadata) == np.float16
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0


def test_chunks_that_were_never_written_are_fill(block: np.ndarray) -> None:
    metadata = shards.array_metadata(VECTORS, (1024, 3), 1024)
    data = bytearray(shards.encode(metadata, 0, block[:1024]))
    data[-36:-20] = b"\xff" * 16  # the index: two chunks of 16 bytes, then a checksum
    found = shards.decode(metadata, 0, bytes(data), np.array([3, 600]))
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], block[600])


def test_some_rows_of_a_text_are_strings() -> None:
    metadata = shards.array_metadata(IDS, (3,), 3)
    data = shards.encode(metadata, 0, np.array(["a", "bb", "ä"], object))
    found = shards.decode(metadata, 0, data, np.array([1, 2]))
    assert found.tolist() == ["bb", "ä"]
    assert found.dtype == shards.dtype_of(metadata) == np.dtype(object)
