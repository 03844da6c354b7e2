"""Receipts and seals: which bytes an artifact's files must have, in files that also prove themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cgd.errors import DamageError, StoreError
from cgd.store import layout
from cgd.store.files import Files
from cgd.store.keys import canonical, sha256
from cgd.types import Key

_PROOF = "sha256"
_SEAL, _RECEIPT = {"schema", "key", "files"}, {"shard", "rows", "files"}  # of version 1; later ones prove themselves


def text(value: Any) -> bytes:
    """The one spelling of a JSON file below `.cgd`."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def signed(value: Mapping[str, Any]) -> bytes:
    """`value` with the SHA-256 of its canonical form beside it."""
    return text({**value, _PROOF: sha256(canonical(value))})


def checked(data: bytes, where: str) -> dict[str, Any]:
    """What `signed` was given; refuses bytes it did not write."""
    try:
        value = json.loads(data)
        proof = value.pop(_PROOF)
        whole = proof == sha256(canonical(value))
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DamageError(f"{where} is damaged: its bytes are not those that were written.")
    found: dict[str, Any] = value
    return found


@dataclass(frozen=True)
class Receipt:
    """What one shard of `key` consists of: the SHA-256 of its files and of the artifact's metadata.

    `metadata` is empty in version 1, and after a repair that could not keep it.
    """

    key: Key
    shard: int
    rows: tuple[int, int]
    files: Mapping[str, str]
    metadata: Mapping[str, str]

    def text(self) -> bytes:
        value = {"key": str(self.key), "shard": self.shard, "rows": list(self.rows), "files": self.files}
        return signed({**value, "metadata": self.metadata})


@dataclass(frozen=True)
class Seal:
    """The SHA-256 of every file of an artifact, by its path below the artifact."""

    key: Key
    files: Mapping[str, str]
    schema: int = layout.SCHEMA

    def text(self) -> bytes:
        return signed({"schema": self.schema, "key": str(self.key), "files": self.files})


def seal_path(key: Key) -> str:
    return f"{layout.SEALS}/{key}.json"


def receipt_path(key: Key, shard: int) -> str:
    return f"{layout.RECEIPTS}/{key}/{layout.receipt_name(shard)}"


def read_seal(files: Files, key: Key) -> Seal:
    """The seal of `key`; raises `FileNotFoundError`, and `DamageError` where it is not whole or another's."""
    path = seal_path(key)
    value = _value(files.read(path), f"{files.url}/{path}", _SEAL)
    schema = value["schema"]
    if not isinstance(schema, int) or schema < 1:
        raise DamageError(f"{files.url}/{path} is damaged: {schema!r} is no format version.")
    if schema > layout.SCHEMA:
        raise StoreError(f"{files.url}/{path} has format version {schema}, this cgd reads up to {layout.SCHEMA}.")
    if value["key"] != str(key):
        raise DamageError(f"{files.url}/{path} is damaged: it is the seal of {value['key']}.")
    return Seal(key, _digests(value["files"], f"{files.url}/{path}"), schema)


def read_receipt(files: Files, key: Key, shard: int) -> Receipt:
    """The receipt of a shard; raises `FileNotFoundError`, and `DamageError` where it is not whole or another's."""
    path = receipt_path(key, shard)
    where = f"{files.url}/{path}"
    value = _value(files.read(path), where, _RECEIPT)
    rows = value["rows"]
    if value["shard"] != shard or not (isinstance(rows, list) and [type(r) for r in rows] == [int, int]):
        raise DamageError(f"{where} is damaged: it is the receipt of shard {value['shard']}.")
    if value.get("key", str(key)) != str(key):
        raise DamageError(f"{where} is damaged: it is a receipt of {value['key']}.")
    metadata = _digests(value.get("metadata", {}), where)
    return Receipt(key, shard, (rows[0], rows[1]), _digests(value["files"], where), metadata)


def receipts_of(seal: Seal, ranges: Mapping[int, range]) -> list[Receipt]:
    """The receipts that a seal was made from; `ranges` are the rows of each shard."""
    metadata = {p: d for p, d in seal.files.items() if p.rpartition("/")[2] == "zarr.json"}
    data = {p: d for p, d in seal.files.items() if p not in metadata}
    return [
        Receipt(seal.key, s, (r.start, r.stop), {p: d for p, d in data.items() if shard_of(p) == s}, metadata)
        for s, r in ranges.items()
    ]


def seal_of(key: Key, metadata: Mapping[str, str], receipts: Iterable[Receipt]) -> Seal:
    """The seal of the artifact that these receipts make up."""
    files = dict(metadata)
    for receipt in receipts:
        files.update(receipt.files)
    return Seal(key, files)


def checked_attributes(key: Key, metadata: bytes) -> dict[str, Any]:
    """The attributes in an artifact's `zarr.json`; refuses those of another artifact."""
    try:
        about: dict[str, Any] = json.loads(metadata)["attributes"]["cgd"]
        made = {"version": about["version"], "settings": about["settings"], "inputs": about["inputs"]}
        digest = sha256(canonical({"kind": key.kind, **made}))
        fits = digest == about["digest"] and digest.startswith(key.mark)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise DamageError(
            f"{key}/zarr.json is damaged or another artifact's; `cgd store verify {key}` tells what is left."
        )
    return about


def receipt_numbers(files: Files, key: Key) -> list[int]:
    """The shards that have a receipt, whatever else a file system left beside them."""
    names = files.children(f"{layout.RECEIPTS}/{key}")
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def shard_of(path: str) -> int:
    """The shard a file below an artifact belongs to; files that are no shard belong to the first."""
    parts = path.split("/")
    return int(parts[2]) if len(parts) > 2 and parts[1] == "c" and parts[2].isdigit() else 0


def _value(data: bytes, where: str, names: set[str]) -> dict[str, Any]:
    """The object in `data`, with its proof, or as version 1 wrote it."""
    try:
        first = json.loads(data)
    except ValueError as error:
        raise DamageError(f"{where} is damaged: {' '.join(str(error).split())}.") from error
    if isinstance(first, dict) and set(first) == names and text(first) == data:
        return first
    value = checked(data, where)
    if not names <= set(value):
        raise DamageError(f"{where} is damaged: it lacks {', '.join(sorted(names - set(value)))}.")
    return value


def _digests(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(d, str) for d in value.values()):
        raise DamageError(f"{where} is damaged: it lists no digests.")
    for path in value:  # they become paths in a store, perhaps another than this one
        if ".." in path.split("/") or path.startswith("/") or "\\" in path:
            raise DamageError(f"{where} names {path}, which is no file of an artifact: do not trust that store.")
    return value
