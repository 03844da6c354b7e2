"""Small artifacts for the tests of the store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, identify
from cgd.store.writer import Writer

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power is not cut here; that the disk is waited for is a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def identity() -> Identity:
    return identify("embeddings", ["small", "teacher", "fixed"], 1, {"dataset": "small", "view": "fixed"})


@pytest.fixture
def embeddings() -> Callable[..., Arrays]:
    """The arrays of an `embeddings` artifact of `rows` images with awkward ids and one that could not be decoded."""

    def make(rows: int = 10, dim: int = 3, seed: int = 0) -> Arrays:
        draw = np.random.default_rng(seed)
        arrays: Arrays = {
            "ids": np.array([f"Zürich/寺院-{n}.jpg" for n in range(rows)], dtype=object),
            "vectors": draw.standard_normal((rows, 1, dim)).astype(np.float32),
            "valid": np.ones(rows, bool),
            "digests": draw.integers(0, 256, (rows, 32)).astype(np.uint8),
            "reasons": np.full(rows, "", dtype=object),
        }
        arrays["valid"][rows // 2] = False
        arrays["vectors"][rows // 2] = np.nan
        arrays["reasons"][rows // 2] = "cannot identify image file “ñ”"
        return arrays

    return make


@pytest.fixture
def fill() -> Callable[..., Writer]:
    """Write the shards that a writer of `arrays` still lacks; seals unless told not to."""

    def write(
        root: Path, identity: Identity, arrays: Arrays, *, shard_rows: int | None = 4, seal: bool = True
    ) -> Writer:
        store = FeatureStore.open(root, write=True)
        writer = store.writer(identity, {n: a.shape for n, a in arrays.items()}, shard_rows=shard_rows)
        for shard in writer.missing():
            rows = writer.shard_range(shard)
            writer.write(shard, {n: a[rows.start : rows.stop] for n, a in arrays.items()})
        if seal:
            writer.seal()
        return writer

    return write


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of every file below a folder by path, without who wrote them when."""

    def read(root: Path) -> dict[str, bytes]:
        paths = sorted(p for p in root.rglob("*") if p.is_file())
        named = {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}
        return {name: data for name, data in named.items() if not name.startswith(".cgd/provenance/")}

    return read
