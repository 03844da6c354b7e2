"""The law of shard sizes, and which arrays an artifact of a kind may hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cgd.store import layout
from cgd.store.files import LocalFiles
from cgd.store.keys import identify
from cgd.store.writer import Writer

LIMIT = 16_000_000


def law(rows: int, row_bytes: int) -> int:
    """By search: the fewest whole chunks of 512 rows that make at most 16 shards, if they fit into 16 MB."""
    fitting = [n for n in range(512, 512 * 2000, 512) if n * row_bytes <= LIMIT]
    if not fitting:
        return max(1, LIMIT // row_bytes)
    return next((n for n in fitting if math.ceil(rows / n) <= 16), fitting[-1])


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"),
    [
        (1, 4, 512),
        (512, 4096, 512),
        (16 * 512, 4096, 512),
        (16 * 512 + 1, 4096, 1024),
        (100_000, 4 * 2048, 1536),
        (1_600_000, 4 * 2048, 1536),
        (1_600_000, 2 * 512, 15360),
        (50_000, 31_250, 512),
        (50_000, 31_251, 511),
        (50_000, LIMIT, 1),
        (50_000, LIMIT + 1, 1),
    ],
)
def test_shards_have_at_most_16_mb_whole_chunks_and_small_sets_about_16_of_them(rows, row_bytes, expected):
    assert layout.shard_rows(rows, row_bytes) == law(rows, row_bytes) == expected


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 3_000_000), row_bytes=st.integers(16, 20_000_000))
@example(rows=0, row_bytes=4)
def test_the_law_of_shards_holds_for_any_set(rows, row_bytes):
    cut = layout.shard_rows(rows, row_bytes)
    assert cut == law(rows, row_bytes)
    assert cut * row_bytes <= LIMIT or cut == 1


@settings(max_examples=60, deadline=None)
@given(wanted=st.integers(1, 100_000), row_bytes=st.integers(1, 20_000_000))
def test_a_wish_is_rounded_to_whole_chunks_and_never_exceeds_16_mb(wanted, row_bytes):
    cut = layout.shard_rows(10**6, row_bytes, wanted)
    assert cut >= 1
    assert cut * row_bytes <= LIMIT or cut == 1
    if cut != LIMIT // row_bytes:
        assert cut == (wanted if wanted <= 512 else math.ceil(wanted / 512) * 512) or cut == 1


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 3_000_000), row_bytes=st.integers(1, 20_000_000), wanted=st.none() | st.integers(1, 5000))
def test_chunks_inside_a_shard_divide_it(rows, row_bytes, wanted):
    cut = layout.shard_rows(rows, row_bytes, wanted)
    inner = layout.inner_rows(cut)
    assert cut % inner == 0
    assert inner == 512 or inner == cut


def test_the_widest_array_decides_over_a_row():
    specs = layout.arrays("embeddings", dict.fromkeys(("ids", "vectors", "valid", "digests", "reasons")))
    shapes = {"ids": (9,), "vectors": (9, 3, 100), "valid": (9,), "digests": (9, 32), "reasons": (9,)}
    assert layout.row_bytes(shapes, specs) == 4 * 3 * 100
    assert layout.row_bytes({**shapes, "vectors": (9, 1, 2)}, specs) == 32


def test_arrays_come_in_the_order_of_the_format_with_the_optional_ones_given():
    shuffled = dict.fromkeys(["views", "reasons", "digests", "valid", "vectors", "ids"])
    ordered = ["ids", "vectors", "valid", "digests", "reasons", "views"]
    assert [a.name for a in layout.arrays("embeddings", shuffled)] == ordered
    del shuffled["views"]
    assert [a.name for a in layout.arrays("embeddings", shuffled)] == ordered[:-1]


@pytest.mark.parametrize("names", [("ids",), ("ids", "paths", "vectors"), ()])
def test_a_missing_or_unknown_array_is_refused(names):
    with pytest.raises(ValueError, match="images holds"):
        layout.arrays("images", dict.fromkeys(names))


def test_every_array_of_measured_numbers_is_filled_with_nan_never_with_zeros():
    floats = [a for arrays in layout.LAYOUT.values() for a in arrays if a.dtype.startswith("float")]
    assert {a.name for a in floats} >= {"vectors", "views", "boxes", "mean", "projection", "average_precision"}
    assert all(isinstance(a.fill, float) and math.isnan(a.fill) for a in floats)


def test_rowwise_kinds_begin_with_their_ids():
    assert all(layout.LAYOUT[kind][0].name == "ids" for kind in layout.ROWWISE)
    assert all(a.dims[0] == "image" for kind in layout.ROWWISE for a in layout.LAYOUT[kind])


def test_a_shard_is_the_chunk_of_zarrs_default_key_encoding():
    assert layout.shard_path("ids", 7, 1) == "ids/c/7"
    assert layout.shard_path("vectors", 12, 3) == "vectors/c/12/0/0"


@pytest.mark.parametrize(("rows", "dim", "wanted"), [(700, 8, None), (700, 9000, None), (10, 4, 3), (1100, 3, 600)])
def test_the_footprint_is_what_a_written_artifact_takes(
    rows: int, dim: int, wanted: int | None, tmp_path: Path
) -> None:
    ids = np.array([f"{n}ü" for n in range(rows)], object)
    arrays = {
        "ids": ids,
        "vectors": np.zeros((rows, 2, dim), np.float32),
        "valid": np.ones(rows, bool),
        "digests": np.zeros((rows, 32), np.uint8),
        "reasons": np.array(["", *["why not"] * (rows - 1)], object),
        "views": np.zeros((rows, 5), np.float32),
    }
    files = LocalFiles(tmp_path, write=True)
    identity = identify("embeddings", ["made"], 1, {})
    shapes = {name: a.shape for name, a in arrays.items()}
    writer = Writer(files, identity, shapes, shard_rows=wanted)
    for shard in range(writer.shard_count):
        part = writer.shard_range(shard)
        writer.write(shard, {name: a[part.start : part.stop] for name, a in arrays.items()})
    writer.seal()
    text = {"ids": sum(len(i.encode()) for i in ids), "reasons": 7 * (rows - 1)}
    found = layout.footprint("embeddings", shapes, wanted, text)
    written = [p for p in tmp_path.rglob("*") if p.is_file() and identity.key.name in str(p)]
    assert found.files == sum("provenance" not in p.parts for p in written)
    assert found.shards == writer.shard_count
    assert found.bytes == sum(p.stat().st_size for p in written if "c" in p.parts)


def test_the_footprint_of_arrays_that_are_not_cut(tmp_path: Path) -> None:
    arrays = {"mean": np.zeros(700), "projection": np.zeros((3, 700)), "eigenvalues": np.zeros(700)}
    identity = identify("whitening", ["made"], 1, {})
    shapes = {name: a.shape for name, a in arrays.items()}
    Writer(LocalFiles(tmp_path, write=True), identity, shapes).write(0, arrays)
    found = layout.footprint("whitening", shapes)
    assert (found.shards, found.files) == (1, 3 + 1 + 4 + 1)  # arrays, receipt, zarr.json, seal
    assert found.bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if "c" in p.parts and p.is_file())
