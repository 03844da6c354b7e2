"""A store of an older format version brought to the present one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from cgd.errors import DamageError
from cgd.store import catalog, layout, shards
from cgd.store.feature_store import keys_in
from cgd.store.files import Files
from cgd.store.keys import sha256
from cgd.store.seals import (
    Receipt,
    read_receipt,
    read_seal,
    receipt_numbers,
    receipt_path,
    receipts_of,
    sealing,
)
from cgd.store.verify import Examination, examine
from cgd.types import Key


def upgrade(files: Files) -> list[str]:
    """Rewrite receipts and seals as the present version has them; the keys that were changed.

    Everything is read and compared first, and damage is refused: a proof must not be given to what is wrong. The
    version rises last, so an interrupted upgrade is repeated. Arrays stay as they are.
    """
    changed = []
    for key in keys_in(files):
        found = examine(files, key)
        if found.problems:
            raise DamageError(f"{found.problems[0]}; run `cgd store repair {key}` first, then upgrade again.")
        texts = _sealed(files, found) if found.state == "sealed" else _receipts(files, key)
        if _replaced(files, texts):
            changed.append(str(key))
    root = shards.group_metadata({"cgd": {"schema": layout.SCHEMA}})
    if json.loads(files.read("zarr.json")) != json.loads(root):
        files.replace("zarr.json", root)
    if files.exists(catalog.PATH):
        catalog.publish(files)
    return changed


def _replaced(files: Files, texts: Iterable[tuple[str, bytes]]) -> bool:
    """Let every text stand at its path; whether another, or none, stood at one of them."""
    changed = False
    for path, text in texts:
        if not files.exists(path) or files.read(path) != text:
            files.replace(path, text)
            changed = True
    return changed


def _sealed(files: Files, found: Examination) -> Iterator[tuple[str, bytes]]:
    """The receipts of a sealed artifact, then its seal."""
    seal = read_seal(files, found.key)
    for receipt in receipts_of(seal, found.ranges):
        yield receipt_path(found.key, receipt.shard), receipt.text()
    yield from sealing(found.key, seal.metadata, len(found.ranges), receipts_of(seal, found.ranges))


def _receipts(files: Files, key: Key) -> Iterator[tuple[str, bytes]]:
    """The receipts of an artifact that is being written, with the digests of its metadata."""
    metadata = {
        path.removeprefix(f"{key}/"): sha256(files.read(path))
        for path in files.walk(str(key))
        if path.endswith("zarr.json")
    }
    if "zarr.json" not in metadata:  # a repair kept the rows only; their receipts name no metadata until it is back
        return
    for number in receipt_numbers(files, key):
        old = read_receipt(files, key, number)
        yield receipt_path(key, number), Receipt(key, number, old.rows, old.files, metadata).text()
