"""Shards to bytes and back: Zarr does the encoding, in memory, so that files can be published whole."""

from __future__ import annotations

from collections.abc import Mapping
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
    with zarr.config.set({"array.write_empty_chunks": True}):
        opened = zarr.open_array(MemoryStore(memory), mode="r+")
        first = shard * _rows(opened)
        opened[first : first + len(block)] = block
    return bytes(memory[shard_path("", shard, opened.ndim).lstrip("/")].to_bytes())


def decode(metadata: bytes, shard: int, data: bytes) -> np.ndarray:
    """The rows of shard number `shard`, read-only; text comes as Python strings in an object array."""
    memory = {"zarr.json": _buffer(metadata)}
    opened = zarr.open_array(MemoryStore(memory), mode="r")
    memory[shard_path("", shard, opened.ndim).lstrip("/")] = _buffer(data)
    rows = _rows(opened)
    block = np.asarray(opened[shard * rows : (shard + 1) * rows])
    if block.dtype.kind == "T":
        block = block.astype(object)
    block.flags.writeable = False
    return block


def shape_of(metadata: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and rows per shard of an array."""
    opened = zarr.open_array(MemoryStore({"zarr.json": _buffer(metadata)}), mode="r")
    return opened.shape, _rows(opened)


def _rows(opened: Any) -> int:
    return int((opened.shards or opened.chunks)[0])


def _buffer(data: bytes) -> Any:
    return default_buffer_prototype().buffer.from_bytes(data)
