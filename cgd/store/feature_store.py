"""FeatureStore: open, list, find, read, write and verify; light enough to list a store in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.errors import DamageError, MissingError, StoreError
from cgd.store import layout
from cgd.store.files import LocalFiles
from cgd.store.keys import Identity
from cgd.types import Key

if TYPE_CHECKING:
    import numpy as np

    from cgd.store.artifact import Artifact
    from cgd.store.writer import Writer


@dataclass(frozen=True)
class Entry:
    """One line of a listing: `shards_done` of `shards` have a receipt (`shards` unknown = 0), `sealed` or not."""

    key: Key
    sealed: bool
    attributes: Mapping[str, Any]
    shards_done: int

    @property
    def settings(self) -> Mapping[str, Any]:
        """What determined the artifact; refuses where its `zarr.json` is damaged."""
        if "settings" not in self.attributes:
            raise DamageError(f"{self.key}/zarr.json is damaged; `cgd store verify {self.key}` tells what is left.")
        found: Mapping[str, Any] = self.attributes["settings"]
        return found


class FeatureStore:
    """A folder of artifacts in Zarr v3; read-only unless `write`."""

    def __init__(self, files: LocalFiles) -> None:
        self.files = files
        if files.exists("zarr.json"):
            self._check_schema()

    @classmethod
    def open(cls, url: str | Path, *, write: bool = False) -> FeatureStore:
        """Open the store at `url`; only with `write` may it not exist yet."""
        text = str(url).removeprefix("file://")
        if "://" in text:
            raise StoreError(f"cannot open the store {url}: this version opens local folders only.")
        root = Path(text).expanduser()
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is a file, not a feature store; name a folder with --store.")
        store = cls(LocalFiles(root, write=write))
        if not write and not store.files.exists("zarr.json"):
            raise MissingError(
                f"there is no feature store at {root}; `cgd extract-teachers` makes one, --store names another."
            )
        if not store.files.exists("zarr.json") and _holds_other_files(root):
            raise StoreError(
                f"{root} holds other files and is no feature store; name an empty or new folder with --store."
            )
        return store

    def _check_schema(self) -> None:
        try:
            found = json.loads(self.files.read("zarr.json"))["attributes"]["cgd"]["schema"]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, int):
            raise StoreError(f"{self.files.root} is a Zarr group but no feature store of cgd.")
        if found > layout.SCHEMA:
            raise StoreError(
                f"{self.files.root} has format version {found}, this cgd reads up to {layout.SCHEMA}: upgrade cgd."
            )

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Every artifact begun, sealed or not, sorted by key."""
        for each in [kind] if kind else sorted(layout.LAYOUT):
            seals = set(self.files.children(f"{layout.SEALS}/{each}"))
            for name in self.files.children(each):
                if not Key.is_name(name):  # zarr.json, or what a file system or a person left there
                    continue
                key = Key.parse(f"{each}/{name}")
                try:
                    attributes = json.loads(self.files.read(f"{key}/zarr.json"))["attributes"]["cgd"]
                except (OSError, ValueError, KeyError):
                    attributes = {}
                done = len(self.files.children(f"{layout.RECEIPTS}/{key}"))
                yield Entry(key, f"{name}.json" in seals, attributes, done)

    def is_sealed(self, key: Key) -> bool:
        return self.files.exists(f"{layout.SEALS}/{key}.json")

    def get(self, key: Key) -> Artifact:
        """The sealed artifact `key`; refuses an unsealed one."""
        from cgd.store.artifact import Artifact

        if not self.is_sealed(key):
            if self.files.exists(f"{key}/zarr.json"):
                raise MissingError(f"{key} is not whole yet: repeat the command that makes it, it continues.")
            raise MissingError(f"there is no {key} in the store {self.files.root}; `cgd store ls` lists what there is.")
        return Artifact(self.files, key)

    def resolve(self, text: str, kinds: tuple[str, ...]) -> Key:
        """A key as typed: whole, or any part of one that fits a single sealed artifact of `kinds`."""
        fits = [e.key for k in kinds for e in self.entries(k) if e.sealed and text in str(e.key)]
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise MissingError(f"no {' or '.join(kinds)} artifact fits '{text}'; `cgd store ls` lists what there is.")
        raise MissingError(f"'{text}' fits {len(fits)} artifacts; name one of: {', '.join(map(str, fits))}.")

    def finished_shards(self, key: Key) -> Iterator[tuple[range, Callable[[str], np.ndarray]]]:
        """Rows of each shard with a receipt, sealed or not, and what reads an array of it, digest checked."""
        from cgd.store.artifact import read_finished

        for name in self.files.children(f"{layout.RECEIPTS}/{key}"):
            receipt = self.files.read_json(f"{layout.RECEIPTS}/{key}/{name}")
            yield range(*receipt["rows"]), partial(read_finished, self.files, key, receipt)

    def provenance(self, key: Key) -> list[dict[str, Any]]:
        """Who wrote shards of `key`, when, with which libraries, and what they noted; oldest first."""
        folder = f"{layout.PROVENANCE}/{key}"
        return [json.loads(self.files.read(f"{folder}/{name}")) for name in self.files.children(folder)]

    def find(self, kind: str, /, **settings: Any) -> list[Key]:
        """Sealed artifacts of `kind` whose settings hold these values, sorted."""
        return [
            e.key for e in self.entries(kind) if e.sealed and all(e.settings.get(n) == v for n, v in settings.items())
        ]

    def writer(
        self,
        identity: Identity,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        attributes: Mapping[str, Any] | None = None,
        shard_rows: int | None = None,
    ) -> Writer:
        """Begin or continue the artifact `identity`."""
        from cgd.store.writer import Writer

        return Writer(self.files, identity, shapes, attributes=attributes, shard_rows=shard_rows)

    def write_whole(
        self,
        identity: Identity,
        arrays: Mapping[str, Any],
        *,
        attributes: Mapping[str, Any] | None = None,
        blobs: Mapping[str, bytes] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Key:
        """Write and seal an artifact that fits into memory, unless it is sealed already."""
        if not self.is_sealed(identity.key):
            writer = self.writer(identity, {n: a.shape for n, a in arrays.items()}, attributes=attributes)
            for shard in writer.missing():
                rows = writer.shard_range(shard)
                part = (
                    {n: a[rows.start : rows.stop] for n, a in arrays.items()}
                    if identity.key.kind in layout.ROWWISE
                    else arrays
                )
                writer.write(shard, part, blobs)
            writer.seal(notes)
        return identity.key

    def verify(self, key: Key | None = None) -> Iterator[tuple[Key, list[str]]]:
        """Read everything of `key`, or of every artifact; the problems of each (none = whole)."""
        found = [key] if key else [e.key for e in self.entries()]
        for each in found:
            if not self.is_sealed(each):
                yield each, [f"{each}: not sealed"]
                continue
            try:
                artifact = self.get(each)
            except StoreError as error:
                yield each, [str(error)]
                continue
            yield each, list(artifact.problems())


def _holds_other_files(root: Path) -> bool:
    """Whether a folder holds anything but the temporary files of a store that was hardly begun."""
    if not root.is_dir():
        return False
    inside = {path.name for path in root.iterdir()}
    begun = {path.name for path in (root / ".cgd").iterdir()} if ".cgd" in inside else set()
    return not (inside <= {".cgd"} and begun <= {"tmp"})
