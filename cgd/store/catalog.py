"""The catalog: which sealed artifacts a store has, in one file, for those who cannot list it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgd.errors import DamageError, StoreError
from cgd.store import layout
from cgd.store.files import Files
from cgd.store.seals import checked, shard_count, signed
from cgd.types import Key

PATH = ".cgd/catalog.json"
Artifacts = Mapping[str, Mapping[str, Any]]
_PLACES = (layout.SEALS, layout.RECEIPTS, layout.PROVENANCE)
_MOST_RECEIPTS = 10_000_000  # more would be somebody's attempt to fill the memory


def publish(files: Files) -> int:
    """Write the catalog of what is sealed, looking again until nothing joined meanwhile; how many it names."""
    while True:
        found = listing(files)
        data = signed({"schema": layout.SCHEMA, "artifacts": found})
        if not files.exists(PATH) or files.read(PATH) != data:
            files.replace(PATH, data)
        if listing(files) == found:
            return len(found)


def listing(files: Files) -> dict[str, dict[str, Any]]:
    """What a catalog says of each sealed artifact: how many receipts it has, and the names of its provenance."""
    found = {}
    for kind in sorted(layout.LAYOUT):
        for name in files.children(f"{layout.SEALS}/{kind}"):
            key = f"{kind}/{name.removesuffix('.json')}"
            found[key] = {
                "receipts": shard_count(files, Key.parse(key)),
                "provenance": files.children(f"{layout.PROVENANCE}/{key}"),
            }
    return found


def read(files: Files) -> Artifacts:
    """The artifacts a catalog names; raises `FileNotFoundError`, and `CgdError` where it is damaged or too new."""
    found = checked(files.read(PATH), f"{files.url}/{PATH}")
    if not isinstance(found.get("schema"), int) or not isinstance(found.get("artifacts"), dict):
        raise DamageError(f"{files.url}/{PATH} is damaged: `cgd store copy` into that store writes it again.")
    if found["schema"] > layout.SCHEMA:
        raise StoreError(
            f"{files.url} has format version {found['schema']}, this cgd reads up to {layout.SCHEMA}: upgrade cgd."
        )
    artifacts: Artifacts = {name: about for name, about in found["artifacts"].items() if _is_key(name)}
    if not all(_is_about(about) for about in artifacts.values()):
        raise DamageError(f"{files.url}/{PATH} is damaged: `cgd store copy` into that store writes it again.")
    return artifacts


def lists(folder: str) -> bool:
    """Whether a catalog says what stands in `folder`."""
    return folder in layout.LAYOUT or folder.startswith(tuple(f"{place}/" for place in _PLACES))


def children(artifacts: Artifacts, folder: str) -> list[str]:
    """Names directly in `folder` as a listing would give them, of the folders that are listed."""
    for place in _PLACES:
        if folder.startswith(f"{place}/"):
            inside = folder.removeprefix(f"{place}/")
            if place == layout.SEALS:
                return sorted(f"{Key.parse(a).name}.json" for a in artifacts if Key.parse(a).kind == inside)
            about = artifacts.get(inside, {})
            if place == layout.RECEIPTS:
                return [layout.receipt_name(shard) for shard in range(about.get("receipts", 0))]
            return sorted(about.get("provenance", []))
    return sorted(Key.parse(a).name for a in artifacts if Key.parse(a).kind == folder)


def _is_about(about: Any) -> bool:
    """Whether this is what `listing` says of an artifact; names are joined to paths, so they may not lead elsewhere."""
    if not isinstance(about, dict):
        return False
    count, names = about.get("receipts"), about.get("provenance")
    return (
        isinstance(count, int)
        and 0 <= count <= _MOST_RECEIPTS
        and isinstance(names, list)
        and all(isinstance(name, str) and name.endswith(".json") and not set(name) & set("/\\") for name in names)
    )


def _is_key(text: str) -> bool:
    kind, _, name = text.partition("/")
    return kind in layout.LAYOUT and Key.is_name(name)
