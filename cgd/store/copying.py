"""Artifacts from one store into another: only what is missing, in parallel, compared on both sides, resumed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from cgd.errors import CgdError, StoreError
from cgd.progress import progress
from cgd.store import catalog, layout, shards
from cgd.store.artifact import Artifact
from cgd.store.feature_store import Entry, FeatureStore
from cgd.store.files import FETCHES, Files
from cgd.store.keys import sha256
from cgd.store.seals import (
    Receipt,
    batched,
    publish,
    read_receipts,
    read_seal,
    receipt_numbers,
    receipt_path,
    receipts_of,
    seal_path,
    sealing,
    shard_of,
)
from cgd.types import Key


@dataclass
class CopyReport:
    """Keys that were copied, that were there already, that are not whole at the source, and what went wrong by key."""

    copied: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


def copy(source: FeatureStore, target: FeatureStore, wanted: Iterable[Entry]) -> CopyReport:
    """Copy `wanted` artifacts of `source` and publish the target's catalog.

    An artifact that fails stops no other. What stands at the target is never overwritten: where somebody else is
    writing the same artifact there, its shards and those copied make it up together.
    """
    report = CopyReport()
    _frame(target.files)
    for entry in wanted:
        name = str(entry.key)
        if target.files.exists(seal_path(entry.key)):
            report.present.append(name)
        elif not entry.sealed:
            report.unfinished.append(name)
        else:
            try:
                report.bytes += copy_artifact(source.get(entry.key).files, target.files, entry.key)
                report.copied.append(name)
            except CgdError as error:
                report.failed[name] = str(error)
            except FileNotFoundError as error:
                report.failed[name] = f"{error} was taken away meanwhile: repeat the same command, it continues."
    catalog.publish(target.files)
    return report


def with_inputs(store: FeatureStore, keys: Iterable[Key]) -> list[Key]:
    """`keys` and everything they were made from, as far as the store has it, inputs first."""
    found: dict[Key, None] = {}

    def add(key: Key) -> None:
        if key not in found and store.is_sealed(key):
            for source in store.get(key).inputs:
                add(source)
            found[key] = None

    for key in keys:
        add(key)
    return list(found)


def copy_artifact(source: Files, target: Files, key: Key) -> int:
    """Copy one sealed artifact; bytes moved. Raises `CgdError` where either side refuses."""
    seal, artifact = read_seal(source, key), Artifact(source, key)
    target.publish(f"{key.kind}/zarr.json", shards.group_metadata({}))
    moved = 0
    for path, digest in seal.metadata.items():
        there, size = _moved(artifact, target, path)
        moved += size
        if there != digest:
            raise StoreError(
                f"{key} is being written in {target.url} with other settings of storage ({path} differs): finish it "
                "there, or remove it there, and copy again."
            )
    ranges = {
        n: artifact.shard_range(n) if key.kind in layout.ROWWISE else _all_rows(artifact)
        for n in range(artifact.shard_count)
    }
    done = set(receipt_numbers(target, key))
    left = {shard: rows for shard, rows in ranges.items() if shard not in done}

    def move(receipt: Receipt) -> int:
        found = {path: _moved(artifact, target, path) for path in receipt.files}
        digests = {path: digest for path, (digest, _) in found.items()}
        arrived = Receipt(key, receipt.shard, receipt.rows, digests, receipt.metadata)
        target.publish(receipt_path(key, receipt.shard), arrived.text())
        return sum(size for _, size in found.values())

    with ThreadPoolExecutor(_workers(source, target)) as pool, progress(len(left), f"{key}, shards") as bar:
        for some in batched(receipts_of(seal, left), layout.PAGE_SHARDS):
            for size in pool.map(move, some):
                bar.update(1)
                moved += size
    _copy_provenance(source, target, key)
    arrived = read_receipts(target, key, range(len(ranges)))
    for path, data in sealing(key, seal.metadata, len(ranges), arrived):
        publish(target, path, data)
    return moved


def _moved(artifact: Artifact, target: Files, path: str) -> tuple[str, int]:
    """Publish one file; the SHA-256 of what stands there then, and how many bytes had to go there."""
    array = path.split("/")[0]

    def is_whole(data: bytes) -> bool:
        if path.endswith("zarr.json"):
            return True
        return array in artifact.arrays and shards.is_whole(artifact.raw(f"{array}/zarr.json"), shard_of(path), data)

    there, ours = target.settle(f"{artifact.key}/{path}", artifact.raw(path), is_whole)
    return sha256(there), len(there) if ours else 0


def _copy_provenance(source: Files, target: Files, key: Key) -> None:
    for name in source.children(f"{layout.PROVENANCE}/{key}"):
        path = f"{layout.PROVENANCE}/{key}/{name}"
        with suppress(FileNotFoundError):  # no part of the artifact
            target.publish(path, source.read(path))


def _frame(target: Files) -> None:
    """The nodes above the artifacts."""
    target.publish("zarr.json", shards.group_metadata({"cgd": {"schema": layout.SCHEMA}}))
    target.publish(".cgd/zarr.json", shards.leaf_metadata({}))


def _all_rows(artifact: Artifact) -> range:
    names = [array.name for array in layout.LAYOUT[artifact.key.kind] if array.name in artifact.arrays]
    return range(artifact.shape(names[0])[0] if names else 1)


def _workers(*places: Files) -> int:
    return (os.cpu_count() or 1) if all(files.is_local for files in places) else FETCHES
