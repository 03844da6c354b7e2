"""A store of an older format version brought to the present one."""

from __future__ import annotations

import json

from cgd.errors import DamageError
from cgd.store import catalog, layout, shards
from cgd.store.feature_store import keys_in
from cgd.store.files import Files
from cgd.store.keys import sha256
from cgd.store.seals import (
    Receipt,
    Seal,
    read_receipt,
    read_seal,
    receipt_numbers,
    receipt_path,
    receipts_of,
    seal_path,
)
from cgd.store.verify import examine
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
        if found.state == "sealed":
            seal = read_seal(files, key)
            wanted = receipts_of(seal, found.ranges)
            texts = {receipt_path(key, r.shard): r.text() for r in wanted} | {
                seal_path(key): Seal(key, seal.files).text()
            }
        else:
            texts = _receipts(files, key)
        if any(files.read(path) != text for path, text in texts.items()):
            for path, text in texts.items():
                files.replace(path, text)
            changed.append(str(key))
    root = shards.group_metadata({"cgd": {"schema": layout.SCHEMA}})
    if json.loads(files.read("zarr.json")) != json.loads(root):
        files.replace("zarr.json", root)
    if files.exists(catalog.PATH):
        catalog.publish(files)
    return changed


def _receipts(files: Files, key: Key) -> dict[str, bytes]:
    """The receipts of an artifact that is being written, with the digests of its metadata."""
    metadata = {
        path.removeprefix(f"{key}/"): sha256(files.read(path))
        for path in files.walk(str(key))
        if path.endswith("zarr.json")
    }
    if "zarr.json" not in metadata:  # a repair kept the rows only; their receipts name no metadata until it is back
        return {}
    texts = {}
    for number in receipt_numbers(files, key):
        old = read_receipt(files, key, number)
        texts[receipt_path(key, number)] = Receipt(key, number, old.rows, old.files, metadata).text()
    return texts
