"""Pickles of plain values from the internet, read without running any of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgd.errors import InputError


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, text and numbers, and what it is told to; refuses what would import or call."""

    def __init__(self, data: bytes, allowed: Mapping[str, Any]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1" if allowed else "utf-8")
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.allowed[f"{module}.{name}"]


def read_plain_pickle(path: Path, allowed: Mapping[str, Any] | None = None) -> Any:
    """The value in a pickle; `allowed` are harmless classes by the names the pickle knows them under.

    Raises `InputError` where the file cannot be read or holds more than plain values and these.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    try:
        return _PlainUnpickler(data, allowed or {}).load()
    except Exception as error:  # a hostile pickle may raise anything; nothing of it has run
        raise InputError(f"{path} is refused: it is not a pickle of plain values ({error}).") from error
