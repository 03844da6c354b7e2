"""MATLAB's files of version 5 read without SciPy, whose reader ends the process on a damaged byte; nothing can run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cgd.errors import InputError

HEADER, LARGEST = 128, 1 << 28  # bytes; the largest variable once it is decompressed
COMPRESSED, MATRIX = 15, 14
CELL, STRUCT, CHAR, NUMERIC = 1, 2, 4, range(6, 16)
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8", 4: "utf-16", 17: "utf-16"}
_DAMAGED = (ValueError, TypeError, LookupError, OverflowError, MemoryError, RecursionError, zlib.error)


def read_matlab(data: bytes, file: Path) -> dict[str, Any]:
    """The variables in a MAT-file: text as str, numbers as arrays (N,), cells as lists, structs as lists of dicts.

    Arrays of any shape are flat, in MATLAB's order. Raises `InputError` naming `file` where `data` is of another
    version or damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
    if order is None or data[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise InputError(f"{file} is no MATLAB file of version 5: fetch it again.")
    try:
        elements = _Elements(data[HEADER:], order)
        return dict(elements.variable() for _ in iter(elements.more, False))
    except _DAMAGED as error:
        raise InputError(f"{file} is damaged ({' '.join(str(error).split())[:200]}): fetch it again.") from error


class _Elements:
    """Tagged elements one after another, each within its bytes."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order, self.at = data, order, 0

    def more(self) -> bool:
        return self.at < len(self.data)

    def take(self) -> tuple[int, bytes]:
        """Type and bytes of the next element; eight bytes hold a small one with its tag."""
        kind, size = (int(v) for v in np.frombuffer(self._bytes(8), f"{self.order}u4"))
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
            return kind, self.data[self.at - 4 : self.at - 4 + size]
        found = self._bytes(size)
        if kind != COMPRESSED:
            self.at = min(self.at + -size % 8, len(self.data))
        return kind, found

    def _bytes(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise ValueError(f"it ends {size - len(found)} bytes early")
        self.at += size
        return found

    def variable(self) -> tuple[str, Any]:
        """Name and value of the next array."""
        kind, data = self.take()
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, LARGEST)
            if unpacker.unconsumed_tail:
                raise ValueError(f"a variable of more than {LARGEST} bytes")
            return _Elements(data, self.order).variable()
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} where an array should be")
        return _Elements(data, self.order)._array() if data else ("", np.zeros(0))

    def _array(self) -> tuple[str, Any]:
        flags, shape = self._numbers(), self._numbers()
        name = self._text()
        kind, count = int(flags[0]) & 0xFF, prod(int(side) for side in shape)
        readers: dict[int, Callable[[int], Any]] = {
            CELL: lambda n: list(self._values(n)),
            STRUCT: self._structs,
            CHAR: lambda _: self._text(),
            **dict.fromkeys(NUMERIC, lambda _: self._numbers()),
        }
        if kind not in readers or count < 0:
            raise ValueError(f"an array of class {kind} and shape {shape.tolist()}")
        return name, readers[kind](count)

    def _values(self, count: int) -> Iterator[Any]:
        if count > len(self.data) // 8:  # of a tag each
            raise ValueError(f"{count} arrays in {len(self.data)} bytes")
        return (self.variable()[1] for _ in range(count))

    def _structs(self, count: int) -> list[dict[str, Any]]:
        """Fixed-width names of the fields, then every field of the first struct, of the second, …"""
        width = max(int(self._numbers()[0]), 1)
        _, names = self.take()
        fields = [names[n : n + width].rstrip(b"\0").decode("ascii") for n in range(0, len(names), width)]
        values = list(self._values(count * max(len(fields), 1)))
        return [dict(zip(fields, values[n : n + len(fields)], strict=True)) for n in range(0, len(values), len(fields))]

    def _numbers(self) -> np.ndarray:
        kind, data = self.take()
        return np.frombuffer(data, f"{self.order}{NUMBERS[kind]}")

    def _text(self) -> str:
        kind, data = self.take()
        text = TEXTS[kind]
        return data.decode(text + {"<": "-le", ">": "-be"}[self.order] if text == "utf-16" else text)
