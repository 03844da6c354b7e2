"""FeatureStore: open, list, find, read, write and verify; light enough to list a store in milliseconds."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.errors import CgdError, DamageError, MissingError, StoreError
from cgd.store import layout, provenance
from cgd.store.files import TEMPORARY, Files, LocalFiles, fetch_all, here
from cgd.store.keys import Identity
from cgd.store.remote import open_files
from cgd.store.seals import checked_attributes, read_receipt, receipt_numbers, seal_path, shard_count
from cgd.types import Key

if TYPE_CHECKING:
    import numpy as np

    from cgd.store.artifact import Artifact
    from cgd.store.writer import Writer

SHOWN = 8  # keys in a sentence


@dataclass(frozen=True)
class Entry:
    """One line of a listing: an artifact, `sealed` or begun, and the `files` it is in."""

    key: Key
    sealed: bool
    files: Files

    @property
    def shards_done(self) -> int:
        """How many shards are finished: all of what is sealed, and otherwise those that have a receipt."""
        count = shard_count if self.sealed else lambda files, key: len(receipt_numbers(files, key))
        return count(self.files, self.key)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """What its `zarr.json` says, unchecked; nothing where that is damaged."""
        try:
            found: Mapping[str, Any] = json.loads(self.files.read(f"{self.key}/zarr.json"))["attributes"]["cgd"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What determined the artifact; refuses where its `zarr.json` is damaged or another's."""
        try:
            metadata = self.files.read(f"{self.key}/zarr.json")
        except FileNotFoundError:
            metadata = b""
        found: Mapping[str, Any] = checked_attributes(self.key, metadata)["settings"]
        return found


class FeatureStore:
    """A folder or a URL of artifacts in Zarr v3, with others behind it; read-only unless `write`.

    What is not sealed in `files` is read from the first of `upstream` that has it; everything written goes to `files`.
    """

    def __init__(self, files: Files, upstream: Sequence[Files] = ()) -> None:
        self.files = files
        self.upstream = tuple(upstream)
        self._opened: dict[Key, Artifact] = {}
        self._entries: dict[Key, Entry] = {}

    @classmethod
    def open(cls, url: str | Path, *, write: bool = False, upstream: Iterable[str | Path] = ()) -> FeatureStore:
        """Open the store at `url`, with read-only ones behind it; only with `write`, or those, may it not exist yet."""
        behind = [_opened(each) for each in upstream]
        if not write and behind and not _is_there(url):
            return cls(open_files(url), behind)
        return cls(_opened(url, write=write), behind)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What to open in another process: the store's own address and those behind it, passwords included."""
        return tuple(files.address for files in self.places)

    @contextmanager
    def beacon(self) -> Iterator[str]:
        """The path of a file that stands in this store, and in no copy of it, until the block ends."""
        path = f"{TEMPORARY}/{here()}-{os.getpid()}-{secrets.token_hex(4)}"  # swept should this process be killed
        self.files.publish(path, b"")
        try:
            yield path
        finally:
            self.files.remove(path)

    @property
    def places(self) -> tuple[Files, ...]:
        """Where artifacts are looked for, in this order."""
        return (self.files, *self.upstream)

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Every artifact begun, sealed or not, sorted by key; each once, from where it is read."""
        for each in [kind] if kind else sorted(layout.LAYOUT):
            found: dict[Key, Entry] = {}
            for files in self.places:
                for entry in _entries(files, each):
                    if entry.key not in found or (entry.sealed and not found[entry.key].sealed):
                        found[entry.key] = self._looked_at(entry)
            if kind:  # whoever asks for a kind looks at its settings
                fetch_all(lambda entry: entry.attributes, [e for e in found.values() if not e.files.is_local])
            yield from (found[key] for key in sorted(found))

    def _looked_at(self, entry: Entry) -> Entry:
        """The same entry, with the attributes it has fetched already where it is sealed far away."""
        if entry.files.is_local or not entry.sealed:
            return entry
        return self._entries.setdefault(entry.key, entry)

    def is_sealed(self, key: Key) -> bool:
        return self._holder(key) is not None

    def get(self, key: Key) -> Artifact:
        """The sealed artifact `key`; refuses an unsealed one."""
        from cgd.store.artifact import Artifact

        if key in self._opened:
            return self._opened[key]
        files = self._holder(key)
        if files is None:
            if self.files.exists(f"{key}/zarr.json"):
                raise MissingError(f"{key} is not whole yet: repeat the command that makes it, it continues.")
            where = " or ".join(each.url for each in self.places)
            raise MissingError(f"there is no {key} in the store {where}; `cgd store ls` lists what there is.")
        try:
            artifact = Artifact(files, key)
        except FileNotFoundError:  # a catalog may lag behind, and somebody may remove it just now
            raise MissingError(f"{key} was taken away from {files.url}; `cgd store ls` lists what there is.") from None
        if not files.is_local:  # its seal and metadata would cost a round trip each, again and again
            self._opened[key] = artifact
        return artifact

    def _holder(self, key: Key) -> Files | None:
        """The first place where `key` is sealed."""
        if key in self._opened:
            return self._opened[key].files
        return next((files for files in self.places if files.exists(seal_path(key))), None)

    def resolve(self, text: str, kinds: tuple[str, ...], *, unsealed: bool = False) -> Key:
        """A key as typed: whole, or any part of one that fits a single artifact of `kinds`, sealed unless told."""
        there = [e for k in kinds for e in self.entries(k) if text in str(e.key)]
        fits = [e.key for e in there if e.sealed or unsealed]
        if not fits and there:
            raise MissingError(f"{there[0].key} is not whole yet: repeat the command that makes it, it continues.")
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise MissingError(f"no {' or '.join(kinds)} artifact fits '{text}'; `cgd store ls` lists what there is.")
        some = ", ".join(map(str, fits[:SHOWN])) + (", …" if len(fits) > SHOWN else "")
        raise MissingError(f"'{text}' fits {len(fits)} artifacts; name one of: {some}.")

    def finished_shards(self, key: Key, *, ends: bool = False) -> Iterator[tuple[range, Callable[[str], np.ndarray]]]:
        """Rows of each shard with a receipt, sealed or not, and what reads an array of it, digest checked.

        `ends` asks for the first and the last of them only.
        """
        from cgd.store.artifact import read_finished

        holder = self._holder(key)
        files = holder or self.files
        # a listing of a long artifact's receipts takes hundreds of requests
        numbers = [0, shard_count(files, key) - 1] if holder and ends else receipt_numbers(files, key)
        for number in sorted({numbers[0], numbers[-1]}) if ends and numbers else numbers:
            try:
                receipt = read_receipt(files, key, number)
            except FileNotFoundError:
                continue
            yield range(*receipt.rows), partial(read_finished, files, key, receipt)

    def provenance(self, key: Key) -> list[dict[str, Any]]:
        """Who wrote shards of `key`, when, with which libraries, and what they noted; oldest first."""
        return provenance.read(self._holder(key) or self.files, key)

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

    def verify(self, key: Key | None = None) -> Iterator[tuple[Key | None, list[str]]]:
        """Read everything of `key`, or of all there is; the problems of each (none = whole), the store's own first.

        What is still being written is no problem.
        """
        from cgd.store.verify import verify

        for each, found in verify(self.files, [key] if key else None):
            yield each, [str(problem) for problem in found]


def _opened(url: str | Path, *, write: bool = False) -> Files:
    """The files of the store at `url`; refuses what is none, and what is not there unless it is to be written."""
    files = open_files(url, write=write)
    if isinstance(files, LocalFiles) and files.root.exists() and not files.root.is_dir():
        raise StoreError(f"{files.url} is a file, not a feature store; name a folder with --store.")
    if not files.exists("zarr.json"):
        problem = _why_none(files, write=write)
        if problem is None:
            return files
        if not files.exists("zarr.json"):  # a store's first file: another process may just have made what was seen
            raise problem
    _check_schema(files)
    return files


def _why_none(files: Files, *, write: bool) -> CgdError | None:
    """Why there is no store to open where `zarr.json` was not seen; nothing where one may be made."""
    if files.lists and files.children(layout.SEALS):
        return DamageError(f"{files.url}/zarr.json is missing: `cgd store repair --store {files.url}` writes it again.")
    if not write:
        return MissingError(
            f"there is no feature store at {files.url}; `cgd extract-teachers` makes one, --store names another."
        )
    if isinstance(files, LocalFiles) and _holds_other_files(files.root):
        return StoreError(
            f"{files.url} holds other files and is no feature store; name an empty or new folder with --store."
        )
    return None


def _is_there(url: str | Path) -> bool:
    files = open_files(url)
    return files.exists("zarr.json") or (isinstance(files, LocalFiles) and files.root.exists())


def _check_schema(files: Files) -> None:
    try:
        found = json.loads(files.read("zarr.json"))["attributes"]["cgd"]["schema"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, int) or found < 1:
        if files.children(layout.SEALS):
            raise DamageError(
                f"{files.url}/zarr.json is damaged: `cgd store repair --store {files.url}` writes it again."
            )
        raise StoreError(f"{files.url} is a Zarr group but no feature store of cgd.")
    if found > layout.SCHEMA:
        raise StoreError(f"{files.url} has format version {found}, this cgd reads up to {layout.SCHEMA}: upgrade cgd.")


def keys_in(files: Files, kind: str | None = None) -> list[Key]:
    """Everything begun in one place, sorted: what has a folder, receipts or a seal."""
    found = []
    for each in [kind] if kind else sorted(layout.LAYOUT):
        sealed = (name.removesuffix(".json") for name in files.children(f"{layout.SEALS}/{each}"))
        names = {*files.children(each), *files.children(f"{layout.RECEIPTS}/{each}"), *sealed}
        # not zarr.json, nor what a file system or a person left there
        found += [Key.parse(f"{each}/{name}") for name in sorted(names) if Key.is_name(name)]
    return found


def _entries(files: Files, kind: str) -> Iterator[Entry]:
    """The artifacts of a kind in one place."""
    seals = set(files.children(f"{layout.SEALS}/{kind}"))
    for key in keys_in(files, kind):
        yield Entry(key, f"{key.name}.json" in seals, files)


def _holds_other_files(root: Path) -> bool:
    """Whether a folder holds anything but the temporary files of a store that was hardly begun."""
    if not root.is_dir():
        return False
    inside = {path.name for path in root.iterdir()}
    begun = {path.name for path in (root / ".cgd").iterdir()} if ".cgd" in inside else set()
    return not (inside <= {".cgd"} and begun <= {"tmp"})
