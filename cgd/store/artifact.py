"""Reading a sealed artifact: every file is compared with the seal whenever it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from cgd.errors import DamageError, MissingError
from cgd.store import layout, seals, shards
from cgd.store.files import FETCHES, Files, fetch_all
from cgd.store.keys import sha256
from cgd.store.seals import Pages, Receipt, checked_attributes
from cgd.types import Key

SAMPLED = 16  # shards, by which the text of a long artifact is measured


class Artifact:
    """One sealed artifact. Arrays come back read-only; a shard that differs from its seal is never returned."""

    def __init__(self, files: Files, key: Key) -> None:
        self.files = files
        self.key = key
        seal = seals.read_seal(files, key)
        self._digests = seal.files
        self._metadata = {p.removesuffix("/zarr.json"): self.raw(p) for p in seal.metadata if p.endswith("/zarr.json")}
        self.attributes = checked_attributes(key, self.raw("zarr.json"))
        self._shapes = {name: shards.shape_of(m) for name, m in self._metadata.items()}

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.attributes["settings"])

    @property
    def inputs(self) -> list[Key]:
        return [Key.parse(text) for text in self.attributes["inputs"]]

    @property
    def arrays(self) -> list[str]:
        return sorted(self._metadata)

    def shape(self, array: str) -> tuple[int, ...]:
        return self._shapes[array][0]

    @property
    def rows(self) -> int:
        """Images in a row-wise artifact."""
        return self.shape("ids")[0]

    @property
    def shard_rows(self) -> int:
        return self._shapes["ids"][1]

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_rows) if self.key.kind in layout.ROWWISE else 1

    def shard_range(self, shard: int) -> range:
        return range(shard * self.shard_rows, min(self.rows, (shard + 1) * self.shard_rows))

    def read_shard(self, array: str, shard: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows of `array` in one shard, or those `rows` (M,) of it, counted from its first one, which ascend."""
        path = layout.shard_path(array, shard, len(self.shape(array)))
        return shards.decode(self._metadata[array], shard, self.raw(path), rows)

    def read(self, array: str) -> np.ndarray:
        """The whole array; for what is known to be small."""
        whole = np.concatenate([self.read_shard(array, s) for s in range(self.shard_count)])
        whole.flags.writeable = False
        return whole

    def blocks(self, *arrays: str) -> Iterator[tuple[range, tuple[np.ndarray, ...]]]:
        """Shard by shard: its rows and those rows of each array."""
        for shard in range(self.shard_count):
            yield self.shard_range(shard), tuple(self.read_shard(a, shard) for a in arrays)

    def gather(self, array: str, rows: np.ndarray) -> np.ndarray:
        """Arbitrary `rows` (M,) of `array` in their order, by one pass over their shards, several at once."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(f"{self.key} has {self.rows} rows, asked for {rows.min()} to {rows.max()}")
        gathered = np.empty((len(rows), *self.shape(array)[1:]), shards.dtype_of(self._metadata[array]))
        order = np.argsort(rows, kind="stable")
        numbers, starts = np.unique(rows[order] // self.shard_rows, return_index=True)

        parts = list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=False))

        def fill(part: tuple[int, np.ndarray]) -> None:
            shard, places = part
            gathered[places] = self.read_shard(array, shard, rows[places] - shard * self.shard_rows)

        if self.files.is_local:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, len(parts) or 1)) as pool:  # SHA-256 lets others run
                list(pool.map(fill, parts))
        else:
            fetch_all(fill, parts)
        return gathered

    def find(self, image: str) -> int | None:
        """The row of an image by its id; None where no row has it.

        There is no index: ids are read shard by shard up to the one that has it, and forgotten. On average that is half
        of them, of 10^9 images some 15 GB; whoever knows the row asks `gather`, which reads one shard.
        """
        for some in seals.batched(range(self.shard_count), FETCHES):
            look = partial(self._find, image)
            for row in map(look, some) if self.files.is_local else fetch_all(look, some):
                if row is not None:
                    return row
        return None

    def _find(self, image: str, shard: int) -> int | None:
        data = self.raw(layout.shard_path("ids", shard, 1))
        if image.encode() not in data:  # nothing is compressed, and making strings takes far longer
            return None
        ids = shards.decode(self._metadata["ids"], shard, data)
        return next((shard * self.shard_rows + place for place, each in enumerate(ids) if each == image), None)

    def blob(self, path: str) -> bytes:
        """The bytes of a file that is no array."""
        if path not in self._digests:
            raise MissingError(f"{self.key} has no file {path}; it has {', '.join(sorted(self._digests))}.")
        return self.raw(path)

    def digest(self, path: str) -> str:
        """SHA-256 of a file, as sealed."""
        return self._digests[path]

    @property
    def blobs(self) -> list[str]:
        """Files that are no arrays."""
        if isinstance(self._digests, Pages):  # only what is cut into shards is so long
            return []
        return [p for p in self._digests if p != "zarr.json" and p.split("/")[0] not in self._metadata]

    @property
    def is_long(self) -> bool:
        """Whether its seal is in pages: then no command may look at every file of it on its way."""
        return isinstance(self._digests, Pages)

    @property
    def size(self) -> int:
        """Bytes of all files; of a long artifact by the shapes of its arrays, text as long as in a few shards."""
        if isinstance(self._digests, Pages):
            arrays = [array for array in layout.LAYOUT[self.key.kind] if array.name in self.arrays]
            return sum(map(self._size, self._digests.metadata)) + sum(map(self._size_by_shape, arrays))
        paths = list(self._digests)
        return sum(map(self._size, paths) if self.files.is_local else fetch_all(self._size, paths))

    def _size_by_shape(self, array: layout.Array) -> int:
        if array.dtype != "str":
            return layout.array_bytes(array, self.shape(array.name), self.shard_rows)
        some = range(0, self.shard_count, -(-self.shard_count // SAMPLED))
        found = [self._size(layout.shard_path(array.name, shard, 1)) for shard in some]
        sizes = [size for size in found if size] or [0]  # one that is missing is for `verify` to tell
        return sum(sizes) * self.shard_count // len(sizes)

    def _size(self, path: str) -> int:
        with suppress(FileNotFoundError):
            return self.files.size(f"{self.key}/{path}")
        return 0

    def raw(self, path: str) -> bytes:
        """The bytes of any of its files as they are stored, compared with the seal."""
        if path not in self._digests:
            raise DamageError(f"the seal of {self.key} does not name {path}; run `cgd store verify {self.key}`.")
        return _checked(self.files, self.key, path, self._digests[path], self._rows_of(path))

    def _rows_of(self, path: str) -> str:
        """` (rows a to b)` for a shard of a row-wise artifact."""
        parts = path.split("/")
        if self.key.kind not in layout.ROWWISE or len(parts) < 3 or parts[1] != "c":
            return ""
        return rows_text(self.shard_range(int(parts[2])))


def rows_text(rows: range) -> str:
    """Which rows, as it stands behind a shard's path."""
    return f" (rows {rows.start} to {rows.stop - 1})"


def read_finished(files: Files, key: Key, receipt: Receipt, array: str) -> np.ndarray:
    """Rows of `array` in a shard that has a `receipt`, in an artifact sealed or not."""
    path = f"{array}/zarr.json"
    if receipt.metadata and path not in receipt.metadata:
        raise DamageError(f"the receipt of shard {receipt.shard} of {key} does not name {path}.")
    metadata = _checked(files, key, path, receipt.metadata.get(path), "")
    path = layout.shard_path(array, receipt.shard, len(shards.shape_of(metadata)[0]))
    if path not in receipt.files:
        raise DamageError(f"the receipt of shard {receipt.shard} of {key} does not name {path}.")
    return shards.decode(metadata, receipt.shard, _checked(files, key, path, receipt.files[path], ""))


def _checked(files: Files, key: Key, path: str, digest: str | None, rows: str) -> bytes:
    """A file's bytes, refused where they are missing or not those that were written (None: version 1 does not say)."""
    try:
        data = files.read(f"{key}/{path}")
    except FileNotFoundError:
        raise DamageError(f"{key}/{path}{rows} is missing; `cgd store verify {key}` tells what is left.") from None
    if digest is not None and sha256(data) != digest:
        raise DamageError(
            f"{key}/{path}{rows} differs from its seal: the file was damaged or replaced; "
            f"`cgd store verify {key}` lists all such files."
        )
    return data
