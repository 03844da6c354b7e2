"""The format: which kinds of artifact there are, what their arrays are called, their types and their shards.

This is the only module that knows an array's name, type or shard shape; `docs/store-format.md` is checked
against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

SCHEMA = 2  # 2: receipts and seals prove themselves, and receipts name the metadata
PAGED_SCHEMA = 3  # of a seal in pages; the store around it stays what it was, so an older program refuses only that one
PAGE_SHARDS = 1024  # of one page: some 5,000 digests, 0.5 MB
UNPAGED_SHARDS = 4096  # a seal of more is in pages
SHARD_BYTES = 16_000_000
INNER_ROWS = 512
SHARDS_WANTED = 16  # a small data set is cut too, so that an interruption loses little of it

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "int64": 8, "uint8": 1, "bool": 1, "str": 32}  # str: a guess


@dataclass(frozen=True)
class Array:
    """One array of a kind: `dims` name its axes, `fill` is what an unwritten element reads as."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    fill: float | bool | str
    optional: bool = False


_NAN = float("nan")
_IDS = Array("ids", ("image",), "str", "")
_VALID = Array("valid", ("image",), "bool", False)
_DIGESTS = Array("digests", ("image", "byte"), "uint8", 0)  # SHA-256 of each image's bytes
_VIEWS = Array("views", ("image", "view"), "float32", _NAN, optional=True)  # top, left, height, width, flip

LAYOUT: Mapping[str, tuple[Array, ...]] = {
    "images": (
        _IDS,
        Array("paths", ("image",), "str", ""),
        Array("labels", ("image",), "str", "", optional=True),
        Array("groups", ("image",), "str", "", optional=True),
        Array("boxes", ("image", "corner"), "float64", _NAN, optional=True),
    ),
    "embeddings": (
        _IDS,
        Array("vectors", ("image", "scale", "dim"), "float32", _NAN),
        _VALID,
        _DIGESTS,
        Array("reasons", ("image",), "str", ""),  # why an image is invalid
        _VIEWS,
    ),
    "whitening": (
        Array("mean", ("dim",), "float64", _NAN),
        Array("projection", ("out", "dim"), "float64", _NAN),
        Array("eigenvalues", ("dim",), "float64", _NAN),
    ),
    "whitened": (_IDS, Array("vectors", ("image", "dim"), "float16", _NAN), _VALID, _DIGESTS, _VIEWS),
    "descriptors": (_IDS, Array("vectors", ("image", "dim"), "float16", _NAN), _VALID),
    "codes": (
        _IDS,
        Array("codes", ("image", "byte"), "uint8", 0),
        _VALID,
    ),  # a bit per dimension, the first one highest
    "indexes": (),  # files only: index.faiss, rows.npy, marks.npy
    "students": (),  # files only: model.safetensors, recipe.json, log.jsonl
    "codebooks": (
        Array("centroids", ("position", "anchor", "dim"), "float32", _NAN),
        Array("rotations", ("teacher", "out", "dim"), "float32", _NAN, optional=True),
    ),
    "canaries": (Array("vectors", ("image", "scale", "dim"), "float32", _NAN),),
    "scores": (
        Array("queries", ("query",), "str", ""),
        Array("average_precision", ("protocol", "query"), "float64", _NAN),
    ),
}
WEIGHTS, RECIPE = "model.safetensors", "recipe.json"  # of a student, in its folder and in the store
ROWWISE = ("images", "embeddings", "whitened", "descriptors", "codes")  # cut into shards of rows; the others are one

# Below `.cgd`, out of Zarr's sight; repair keeps files there that it found in another's place.
SPARE = ".cgd/spare"
LOST = ".cgd/lost"  # whole files of artifacts that lost others, and make no sense without them
RECEIPTS, SEALS, PAGES, PROVENANCE = ".cgd/receipts", ".cgd/seals", ".cgd/pages", ".cgd/provenance"


def arrays(kind: str, given: Mapping[str, object]) -> tuple[Array, ...]:
    """The arrays of an artifact that holds `given` array names; raises `ValueError` where one is missing or unknown."""
    declared = {a.name: a for a in LAYOUT[kind]}
    missing = [a.name for a in declared.values() if not a.optional and a.name not in given]
    if missing or set(given) - set(declared):
        raise ValueError(f"{kind} holds {sorted(declared)}, got {sorted(given)}")
    return tuple(a for a in declared.values() if a.name in given)


def shard_rows(rows: int, row_bytes: int, wanted: int | None = None) -> int:
    """Rows per shard: at most 16 MB, whole inner chunks of 512 rows, and small sets cut into about 16 shards.

    A row so wide that 512 of them exceed 16 MB gets as many rows as fit.
    """
    largest = max(1, SHARD_BYTES // row_bytes)
    if wanted is not None:
        return max(1, min(wanted if wanted <= INNER_ROWS else whole_chunks(wanted), largest))
    if largest < INNER_ROWS:
        return largest
    return min(largest // INNER_ROWS * INNER_ROWS, max(INNER_ROWS, whole_chunks(-(-rows // SHARDS_WANTED))))


def whole_chunks(rows: int) -> int:
    return -(-rows // INNER_ROWS) * INNER_ROWS


def inner_rows(rows_of_shard: int) -> int:
    """Rows of the chunks inside a shard of `rows_of_shard` rows."""
    return INNER_ROWS if rows_of_shard % INNER_ROWS == 0 else rows_of_shard


@dataclass(frozen=True)
class Footprint:
    """What an artifact takes: its shards, all of its files, and the bytes of those that hold its arrays."""

    shards: int
    files: int
    bytes: int


def footprint(
    kind: str, shapes: Mapping[str, tuple[int, ...]], wanted: int | None = None, text: Mapping[str, int] | None = None
) -> Footprint:
    """Of an artifact with arrays of these `shapes`, cut as the writer cuts it; nothing is written.

    `wanted` is the rows of a shard that are asked for, `text` the bytes of all strings of an array of text together.
    Counted are shards, receipts, the seal, its pages and every `zarr.json`; provenance, two files a process, is not.
    """
    specs = arrays(kind, shapes)
    rows = next(shapes[a.name][0] for a in specs)
    cut = shard_rows(rows, row_bytes(shapes, specs), wanted) if kind in ROWWISE else 0
    shards = -(-rows // cut) if cut else 1
    size = sum(array_bytes(a, shapes[a.name], cut or shapes[a.name][0], (text or {}).get(a.name, 0)) for a in specs)
    return Footprint(shards, shards * (len(specs) + 1) + len(specs) + 2 + seal_pages(shards), size)


def array_bytes(array: Array, shape: tuple[int, ...], rows_of_shard: int, text: int = 0) -> int:
    """Bytes of all shard files of an array: inner chunks, whole even at its end, each with its checksum, and indexes.

    `text` are the bytes of its strings together; each has its length before it, and a chunk its number of them.
    """
    inner, checksum, number = inner_rows(rows_of_shard), 4, 4
    item, head = (number, number) if array.dtype == "str" else (ITEM_BYTES[array.dtype], 0)
    chunk = head + inner * prod(shape[1:]) * item + checksum
    index = 16 * (rows_of_shard // inner) + checksum
    return -(-shape[0] // inner) * chunk + -(-shape[0] // rows_of_shard) * index + text


def row_bytes(shapes: Mapping[str, tuple[int, ...]], specs: tuple[Array, ...]) -> int:
    """Bytes of the widest array's row."""
    return max(ITEM_BYTES[a.dtype] * prod(shapes[a.name][1:]) for a in specs)


def receipt_name(shard: int) -> str:
    return f"{shard:08d}.json"


def seal_pages(shards: int) -> int:
    """Pages of the seal of so many shards; none where the seal itself names every file."""
    return -(-shards // PAGE_SHARDS) if shards > UNPAGED_SHARDS else 0


def shard_path(array: str, shard: int, dims: int) -> str:
    """Path of a shard's file below its artifact, as Zarr's default chunk keys have it."""
    return "/".join([array, "c", str(shard), *["0"] * (dims - 1)])
