"""Shards to bytes and back: Zarr does the encoding, in memory, so that files can be published whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, VLenUTF8Codec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from cgd.store.layout import Array, inner_rows, shard_path


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    memory: dict[str, Any] = {}
    zarr.create_group(MemoryStore(memory), attributes=dict(attributes))
    return bytes(memory["zarr.json"].to_bytes())


def artifact_metadata(attributes: Mapping[str, Any], arrays: Mapping[str, bytes]) -> bytes:
    """`zarr.json` of a group with that of its `arrays` inside, as consolidated metadata: one request opens all."""
    node = json.loads(group_metadata(attributes))
    inside = {name: json.loads(metadata) for name, metadata in arrays.items()}
    node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": inside}
    return json.dumps(node, indent=2, ensure_ascii=False).encode()


def arrays_inside(metadata: bytes) -> dict[str, bytes]:
    """The `zarr.json` of each array that a group's consolidated metadata has; none where it has none."""
    inside = json.loads(metadata).get("consolidated_metadata") or {}
    return {name: json.dumps(node, indent=2).encode() for name, node in inside.get("metadata", {}).items()}


def leaf_metadata(attributes: Mapping[str, Any]) -> bytes:
    """`zarr.json` of an empty array: Zarr does not look below an array, so files may stand beside it unseen."""
    memory: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(memory),
        shape=(0,),
        chunks=(1,),
        dtype="uint8",
        attributes=dict(attributes),
        dimension_names=("none",),
    )
    return bytes(memory["zarr.json"].to_bytes())


def array_metadata(array: Array, shape: tuple[int, ...], rows_of_shard: int) -> bytes:
    """`zarr.json` of an array cut along its first axis; every inner chunk carries a crc32c, nothing is compressed."""
    memory: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(memory),
        shape=shape,
        shards=(rows_of_shard, *shape[1:]),
        chunks=(inner_rows(rows_of_shard), *shape[1:]),
        dtype=array.dtype,
        serializer=VLenUTF8Codec() if array.dtype == "str" else BytesCodec(),
        compressors=Crc32cCodec(),
        fill_value=array.fill,
        dimension_names=array.dims,
    )
    return bytes(memory["zarr.json"].to_bytes())


def encode(metadata: bytes, shard: int, block: np.ndarray) -> bytes:
    """The file of shard number `shard` that holds `block` (rows of that shard)."""
    memory: dict[str, Any] = {"zarr.json": _buffer(metadata)}
    # Otherwise a shard of nothing but fill has no file, and a missing file reads as fill without an error.
    opened = zarr.open_array(MemoryStore(memory), mode="r+").with_config({"write_empty_chunks": True})
    first = shard * _rows(opened)
    opened[first : first + len(block)] = block
    return bytes(memory[shard_path("", shard, opened.ndim).lstrip("/")].to_bytes())


def decode(metadata: bytes, shard: int, data: bytes, rows: np.ndarray | None = None) -> np.ndarray:
    """The rows of shard number `shard`, read-only; text comes as Python strings in an object array.

    `rows` (M,) are those wanted, counted from the shard's first one, in ascending order; none means all. `data` has
    been compared with its SHA-256.
    """
    form = _form(metadata)
    if form.plain:
        block = _decode_numbers(form, shard, data) if rows is None else _decode_some(form, data, rows)
    else:
        block = _decode_by_zarr(metadata, form.rows, shard, data)[slice(None) if rows is None else rows]
    block.flags.writeable = False
    return block


def is_whole(metadata: bytes, shard: int, data: bytes) -> bool:
    """Whether the checksums inside a shard's file fit: for files that have no digest yet."""
    if not data:  # Zarr takes no bytes for a shard of nothing but fill
        return False
    try:
        _decode_by_zarr(metadata, _form(metadata).rows, shard, data)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError, OSError):
        return False
    return True


def _decode_by_zarr(metadata: bytes, rows: int, shard: int, data: bytes) -> np.ndarray:
    memory = {"zarr.json": _buffer(metadata)}
    opened = zarr.open_array(MemoryStore(memory), mode="r")
    memory[shard_path("", shard, opened.ndim).lstrip("/")] = _buffer(data)
    block = np.asarray(opened[shard * rows : (shard + 1) * rows])
    return block.astype(object) if block.dtype.kind == "T" else block


def _decode_numbers(form: _Form, shard: int, data: bytes) -> np.ndarray:
    """As Zarr decodes numbers, several times as fast: inner chunks in a row, each with a crc32c, found by the index.

    The checksums are not looked at: the digest of the whole file was.
    """
    block = np.full((min(form.rows, form.shape[0] - shard * form.rows), *form.shape[1:]), form.fill, form.dtype)
    for start, chunk in zip(range(0, len(block), form.inner), _chunks(form, data), strict=False):
        if chunk is not None:
            here = block[start : start + form.inner]
            here[...] = chunk[: len(here)]
    return block


def _decode_some(form: _Form, data: bytes, rows: np.ndarray) -> np.ndarray:
    """As `_decode_numbers`, only `rows` (M,) of it, which ascend; nothing else is copied."""
    block = np.full((len(rows), *form.shape[1:]), form.fill, form.dtype)
    starts = range(0, form.rows, form.inner)
    cuts = np.searchsorted(rows, [*starts, form.rows]).tolist()
    for first, end, start, chunk in zip(cuts, cuts[1:], starts, _chunks(form, data), strict=False):
        if chunk is not None and end > first:
            block[first:end] = chunk[rows[first:end] - start]
    return block


def _chunks(form: _Form, data: bytes) -> Iterator[np.ndarray | None]:
    """The inner chunks of a shard's file in order, as views into it; None for one that was never written."""
    count = form.rows // form.inner
    places = np.frombuffer(data, "<u8", 2 * count, len(data) - 16 * count - 4).reshape(count, 2)
    values = form.inner * prod(form.shape[1:])
    for offset, _ in places.tolist():
        if offset == _NO_CHUNK:
            yield None
        else:
            yield np.frombuffer(data, form.dtype, values, offset).reshape(form.inner, *form.shape[1:])


_NO_CHUNK = 2**64 - 1


def shape_of(metadata: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and rows per shard of an array."""
    form = _form(metadata)
    return form.shape, form.rows


def dtype_of(metadata: bytes) -> np.dtype[Any]:
    """The type in which `decode` gives an array; text comes as objects."""
    dtype = _form(metadata).dtype
    return np.dtype(object) if dtype.kind == "T" else dtype


@dataclass(frozen=True)
class _Form:
    """How an array is cut: `rows` of a shard, `inner` rows of its chunks; `plain` if it holds nothing but numbers."""

    shape: tuple[int, ...]
    rows: int
    inner: int
    dtype: np.dtype[Any]
    fill: Any
    plain: bool


@lru_cache(maxsize=256)
def _form(metadata: bytes) -> _Form:
    opened: Any = zarr.open_array(MemoryStore({"zarr.json": _buffer(metadata)}), mode="r")
    codecs = [c.to_dict() for c in opened.metadata.codecs]
    inner = codecs[0].get("configuration", {})
    plain = (
        [c["name"] for c in codecs] == ["sharding_indexed"]
        and [c["name"] for c in inner["codecs"]] == ["bytes", "crc32c"]
        and inner["index_location"] == "end"
        and opened.dtype.kind in "fiub"
        and opened.shards[1:] == opened.chunks[1:] == opened.shape[1:]
        and opened.dtype.newbyteorder("<") == opened.dtype
    )
    return _Form(opened.shape, _rows(opened), opened.chunks[0], opened.dtype, opened.fill_value, plain)


def _rows(opened: Any) -> int:
    return int((opened.shards or opened.chunks)[0])


def _buffer(data: bytes) -> Any:
    return default_buffer_prototype().buffer.from_bytes(data)
