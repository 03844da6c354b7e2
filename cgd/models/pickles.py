"""Stand-ins for what published files pickle beside their tensors, so that none of it has to be imported or run.

Such files hold NumPy scalars (the learning rates of an optimiser), NumPy arrays inside a scikit-learn PCA, and
training logs. torch's own restricted unpickler asks for these by name and gets the classes below, which only keep
what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class PickledType:
    """A NumPy dtype as pickled: its code, then its byte order."""

    _code: Any = None  # a pickle may leave out the call of __init__
    _order: Any = "="

    def __init__(self, code: Any = None, *_: Any) -> None:
        self._code = code

    def __setstate__(self, state: Any) -> None:
        self._order = state[1] if isinstance(state, tuple) and len(state) > 1 else None

    def numpy(self) -> np.dtype[Any]:
        """The type, if it is one of plain numbers; else raises `ValueError`."""
        plain = isinstance(self._code, str) and isinstance(self._order, str)
        if not plain or self._code not in _CODES or self._order not in ("<", ">", "=", "|"):
            raise ValueError("a pickled array is not one of plain numbers")
        return np.dtype(f"{self._order}{self._code}")


class PickledArray:
    """A NumPy array as pickled: shape, type and bytes, which become an array only when asked for."""

    _state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def numpy(self) -> np.ndarray:
        """The array, if it is one of plain numbers whose bytes fill its shape; else raises `ValueError`."""
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise ValueError("a pickled array is incomplete")
        _, shape, kind, by_columns, data = self._state
        if isinstance(data, str):  # bytes of Python 2, read as Latin-1
            data = data.encode("latin1")
        if not isinstance(kind, PickledType) or not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise ValueError("a pickled array holds objects")
        dtype = kind.numpy()
        if not all(isinstance(side, int) and side >= 0 for side in shape) or prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"a pickled array holds {len(data)} bytes, which do not fill its shape")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns is True else "C")


class PickledObject:
    """Any other object: its attributes by name."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping) else {}


def pickled_scalar(kind: Any, data: Any = b"") -> int | float | bool:
    """A NumPy scalar as the Python number it stands for."""
    if not isinstance(kind, PickledType) or not isinstance(data, bytes):
        raise ValueError("a pickled scalar is no number")
    value: int | float | bool = np.frombuffer(data, kind.numpy(), count=1)[0].item()
    return value


def pickled_bytes(text: Any = "", codec: Any = "latin1") -> bytes:
    """Bytes as old pickle protocols hold them; without an argument, none."""
    if not isinstance(text, str) or codec != "latin1":
        raise ValueError("pickled bytes are no bytes")
    return text.encode("latin1")


STAND_INS: list[Any] = [
    *((pickled_bytes, name) for name in ("_codecs.encode", "builtins.bytes", "__builtin__.bytes")),
    (PickledType, "numpy.dtype"),
    (PickledObject, "numpy.ndarray"),  # only handed to `_reconstruct`
    *((PickledArray, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((pickled_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((PickledObject, f"sklearn.decomposition.{module}.PCA") for module in ("pca", "_pca")),
    *((PickledObject, f"utils.watcher.{name}") for name in ("AverageMeter", "Watch")),
    (PickledObject, "__main__.exclude_bias_and_norm"),  # a function in the optimiser of Barlow Twins
]
