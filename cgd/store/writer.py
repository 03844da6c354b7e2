"""Writing an artifact: shards written once each, resumed at the first one missing, sealed when whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from cgd.errors import DamageError, StoreError
from cgd.store import layout, provenance, seals, shards
from cgd.store.files import Files
from cgd.store.keys import Identity, sha256
from cgd.store.seals import Receipt

Shapes = Mapping[str, tuple[int, ...]]


class Writer:
    """The shards of one artifact; any number of writers may work on it, on any machine, without a lock.

    `shapes` gives every array's full shape. Where the artifact exists already (`begun`) its own cut into shards holds.
    """

    def __init__(
        self,
        files: Files,
        identity: Identity,
        shapes: Shapes,
        *,
        attributes: Mapping[str, Any] | None = None,
        shard_rows: int | None = None,
    ) -> None:
        self.files = files
        self.identity = identity
        self.key = identity.key
        self._specs = layout.arrays(self.key.kind, shapes)
        self._record = provenance.Record(files, self.key)
        rows = next((shapes[a.name][0] for a in self._specs), 1)
        if self.key.kind in layout.ROWWISE:
            cut = layout.shard_rows(rows, layout.row_bytes(shapes, self._specs), shard_rows)
        else:
            cut = 0  # every array is one shard
        files.sweep()
        self._publish_metadata(shapes, attributes or {}, cut)
        provenance.tell_of_other_libraries(self.key, provenance.read(files, self.key))
        self.rows, self.shard_rows = rows, cut or rows
        if cut and self._specs:
            self.shard_rows = shards.shape_of(self._metadata[self._specs[0].name])[1]

    def _publish_metadata(self, shapes: Shapes, attributes: Mapping[str, Any], cut: int) -> None:
        """Put every `zarr.json` there, then work with those that stand there, whoever wrote them."""
        kind, folder = self.key.kind, str(self.key)
        self.files.publish("zarr.json", shards.group_metadata({"cgd": {"schema": layout.SCHEMA}}))
        self.files.publish(".cgd/zarr.json", shards.leaf_metadata({}))
        self.files.publish(f"{kind}/zarr.json", shards.group_metadata({}))
        about = {
            "schema": layout.SCHEMA,
            "digest": self.identity.digest,
            "version": self.identity.version,
            "settings": self.identity.settings,
            "inputs": list(self.identity.inputs),
            **attributes,
        }
        about = json.loads(json.dumps(about))
        arrays = {
            a.name: self._standing(a.name) or shards.array_metadata(a, shapes[a.name], cut or shapes[a.name][0])
            for a in self._specs
        }
        node = shards.artifact_metadata({"cgd": about}, arrays) if arrays else shards.leaf_metadata({"cgd": about})
        self.begun = not self.files.publish(f"{folder}/zarr.json", node)
        self._texts = {"zarr.json": self.files.read(f"{folder}/zarr.json")}
        self._compare(about, self._attributes())
        decided = shards.arrays_inside(self._texts["zarr.json"])  # whoever came first decided the cut
        self._metadata: dict[str, bytes] = {}
        for array in self._specs:
            shape, path = shapes[array.name], f"{folder}/{array.name}/zarr.json"
            if not decided and cut and self._metadata:  # begun in version 1: the first array tells
                cut = shards.shape_of(next(iter(self._metadata.values())))[1]
            ours = decided.get(array.name) or shards.array_metadata(array, shape, cut or shape[0])
            self.files.publish(path, ours)
            self._metadata[array.name] = self._texts[f"{array.name}/zarr.json"] = self.files.read(path)
            stored, _ = shards.shape_of(self._metadata[array.name])
            if stored != shape:
                raise StoreError(
                    f"{self.key} holds {array.name} of shape {stored}, this run makes {shape}; nothing was written."
                )

    def _standing(self, array: str) -> bytes | None:
        """The metadata of an array whose artifact lost its own; a repair kept the rows, so their cut holds."""
        if self.files.exists(f"{self.key}/zarr.json"):
            return None
        try:
            return self.files.read(f"{self.key}/{array}/zarr.json")
        except FileNotFoundError:
            return None

    def _attributes(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._texts["zarr.json"])["attributes"]["cgd"]
            return found
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(f"{self.key}/zarr.json is damaged: run `cgd store repair {self.key}`.") from error

    def _compare(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Refuse an artifact that was determined by something else, naming both values."""
        for name in sorted((ours.keys() | theirs.keys()) - {"schema"}):  # of the program that began it
            if ours.get(name) != theirs.get(name):
                raise StoreError(
                    f"{self.key} was made with {name} = {theirs.get(name)!r}, this run has {ours.get(name)!r}; "
                    "nothing was written: use the same versions, or another --name for the data set."
                )

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_rows) if self.key.kind in layout.ROWWISE else 1

    def shard_range(self, shard: int) -> range:
        return range(shard * self.shard_rows, min(self.rows, (shard + 1) * self.shard_rows))

    def missing(self) -> list[int]:
        """Shards without a receipt."""
        left = bytearray(b"\1") * self.shard_count
        for shard in seals.receipt_numbers(self.files, self.key):
            if shard < len(left):
                left[shard] = 0
        return [shard for shard, is_left in enumerate(left) if is_left]

    def has(self, shard: int) -> bool:
        """Whether a shard has its receipt by now, whoever wrote it."""
        return self.files.exists(seals.receipt_path(self.key, shard))

    def write(self, shard: int, blocks: Mapping[str, np.ndarray], blobs: Mapping[str, bytes] | None = None) -> None:
        """Publish the rows of one shard (every array of the artifact), then its receipt.

        `blobs` are files that are no arrays; only artifacts of a single shard have them.
        """
        if set(blocks) != set(self._metadata):
            raise ValueError(f"{self.key} holds {sorted(self._metadata)}, got {sorted(blocks)}")
        payload = dict(blobs or {})
        for array in self._specs:
            block = np.asarray(blocks[array.name])
            if self.key.kind in layout.ROWWISE and len(block) != len(self.shard_range(shard)):
                raise ValueError(
                    f"shard {shard} of {self.key} has {len(self.shard_range(shard))} rows, got {len(block)}"
                )
            payload[layout.shard_path(array.name, shard, block.ndim)] = shards.encode(
                self._metadata[array.name], shard, block
            )
        self._record.begin()
        digests: dict[str, str] = {}
        for path, data in sorted(payload.items()):
            # The first writer wins: what counts is what stands there now.
            there, _ = self.files.settle(f"{self.key}/{path}", data, partial(self._is_whole, path, shard))
            digests[path] = sha256(there)
        rows = self.shard_range(shard)
        receipt = Receipt(self.key, shard, (rows.start, rows.stop), digests, self._metadata_digests())
        self.files.publish(seals.receipt_path(self.key, shard), receipt.text())
        self._record.wrote += 1

    def _is_whole(self, path: str, shard: int, data: bytes) -> bool:
        """Whether bytes that another process left are a shard; of files that are no arrays nobody can tell."""
        array = path.split("/")[0]
        return array not in self._metadata or shards.is_whole(self._metadata[array], shard, data)

    def seal(self, notes: Mapping[str, Any] | None = None) -> None:
        """Declare the artifact whole; refuses while a shard is missing.

        `notes` (times, memory: what differs between two equal runs) join the provenance.
        """
        if missing := self.missing():
            raise StoreError(
                f"{self.key} lacks {len(missing)} of {self.shard_count} shards; repeat the command that makes it."
            )
        metadata = self._metadata_digests()
        found = seals.read_receipts(self.files, self.key, range(self.shard_count))
        receipts = (self._completed(receipt, metadata) for receipt in found)
        for path, data in seals.sealing(self.key, metadata, self.shard_count, receipts):
            if path == seals.seal_path(self.key):
                self._record.end(notes or {})
            seals.publish(self.files, path, data)

    def _completed(self, receipt: Receipt, metadata: Mapping[str, str]) -> Receipt:
        """A receipt that names the metadata, as those of version 1 and those kept by a repair do not."""
        if receipt.metadata not in ({}, metadata):
            raise DamageError(f"{self.key} has a damaged zarr.json: run `cgd store repair {self.key}`.")
        whole = replace(receipt, metadata=metadata)
        if not receipt.metadata:
            self.files.replace(seals.receipt_path(self.key, receipt.shard), whole.text())
        return whole

    def _metadata_digests(self) -> dict[str, str]:
        return {path: sha256(data) for path, data in self._texts.items()}
