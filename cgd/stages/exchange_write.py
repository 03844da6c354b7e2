"""Vectors as files that other tools read: HDF5 in hloc's layout or a plain one, and `.npy`; a block at a time."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from cgd.errors import CgdError, InputError, StoreError

DESCRIPTOR = "global_descriptor"  # hloc's name for it
IDS, FEATURES, VALID = "ids", "features", "valid"
# HDF5 1.8 and newer read it; the oldest form takes 950 bytes more for every image.
_FORM = ("v108", "v110")


@dataclass(frozen=True)
class Block:
    """Some images in a row: `ids` (M,) str, `vectors` (M, D), and which of them are `valid` (M,)."""

    ids: np.ndarray
    vectors: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Shape:
    """Rows, dimensions and type of all blocks together."""

    rows: int
    dim: int
    dtype: np.dtype[Any]


def ids_file(file: Path) -> Path:
    """Where the ids of a `.npy` file's rows stand."""
    return file.with_name(f"{file.name}.ids.json")


def write_hloc(file: Path, blocks: Iterable[Block]) -> None:
    """A group per valid image, named by its id, with the dataset `global_descriptor` (D,); ids with '/' are nested.

    Raises `InputError` for an id that is no path of such a file.
    """
    with _hdf5(file) as (target, disk):
        for block in blocks:
            for name, vector in zip(block.ids[block.valid], block.vectors[block.valid], strict=True):
                _check_path(name)
                target.create_dataset(f"{name}/{DESCRIPTOR}", data=vector)
                disk.check()


def write_plain(file: Path, blocks: Iterable[Block], shape: Shape) -> None:
    """Datasets `ids` (N,) of UTF-8 text, `features` (N, D), NaN where an image is not valid, and `valid` (N,)."""
    with _hdf5(file) as (target, disk):
        ids = target.create_dataset(IDS, (shape.rows,), h5py.string_dtype())
        features = target.create_dataset(FEATURES, (shape.rows, shape.dim), shape.dtype)
        valid = target.create_dataset(VALID, (shape.rows,), bool)
        start = 0
        for block in blocks:
            for name in block.ids:
                _check_text(name)
            rows = slice(start, start + len(block.ids))
            ids[rows], features[rows], valid[rows] = block.ids, block.vectors, block.valid
            start = rows.stop
            disk.check()


def write_npy(file: Path, blocks: Iterable[Block], shape: Shape) -> None:
    """An array (N, D), NaN where an image is not valid, and beside it a JSON object of the lists `ids` and `valid`.

    JSON, because an id may hold a line break.
    """
    form = {
        "descr": np.lib.format.dtype_to_descr(shape.dtype),
        "fortran_order": False,
        "shape": (shape.rows, shape.dim),
    }
    with (
        _whole(file) as temporary,
        _whole(ids_file(file)) as names,
        open(temporary, "wb") as target,  # a memory map would kill the process on a full disk
        open(names, "w", encoding="utf-8", newline="") as beside,
    ):
        np.lib.format.write_array_header_2_0(target, form)
        _write_names(beside, _written(target, blocks))


def _written(target: IO[bytes], blocks: Iterable[Block]) -> Iterator[Block]:
    """The same blocks, once their vectors are in the file."""
    for block in blocks:
        target.write(np.ascontiguousarray(block.vectors).tobytes())
        yield block


def _write_names(target: IO[str], blocks: Iterable[Block]) -> None:
    valid: list[bool] = []
    target.write(f'{{"{IDS}": [')
    for block in blocks:
        for number, name in enumerate(block.ids, len(valid)):
            target.write((",\n" if number else "\n") + json.dumps(name, ensure_ascii=False))
        valid += block.valid.tolist()
    target.write(f'\n], "{VALID}": {json.dumps(valid)}}}\n')


def _check_path(name: str) -> None:
    """Refuse an id that would stand where another's vector is, or that readers take for another."""
    _check_text(name)
    if not set(name.split("/")).isdisjoint(("", ".", "..", DESCRIPTOR)):
        raise InputError(
            f"the id {name!r} cannot be a path in hloc's layout (a part of it is empty, '.', '..' or '{DESCRIPTOR}'): "
            "export with --layout plain."
        )


def _check_text(name: str) -> None:
    if "\0" in name:
        raise InputError(f"the id {name!r} holds a zero byte, where HDF5 ends a text: export to a file .npy.")


class _Disk(io.FileIO):
    """A file that keeps what went wrong until `check`.

    HDF5 does not survive a write that fails: it complains of every open object, and crashes when the process ends.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
        return self.tell()

    def check(self) -> None:
        if self.error:
            raise self.error


@contextmanager
def _hdf5(file: Path) -> Iterator[tuple[h5py.File, _Disk]]:
    with _whole(file) as temporary, _Disk(temporary, "w+") as disk:
        with h5py.File(disk, "w", libver=_FORM) as target:
            yield target, disk
        disk.check()


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A temporary name beside `file` that becomes `file` in the end; nothing is left where something fails."""
    temporary = file.with_name(f"{file.name}.part")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(file)
    except CgdError:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StoreError(f"cannot write {file}: {reason}; mend that (free space, rights) and repeat.") from error
    finally:
        temporary.unlink(missing_ok=True)
