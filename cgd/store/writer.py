"""Writing an artifact: shards written once each, resumed at the first one missing, sealed when whole."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from cgd.errors import StoreError
from cgd.store import layout, shards
from cgd.store.files import LocalFiles
from cgd.store.keys import Identity, sha256

Shapes = Mapping[str, tuple[int, ...]]
_LIBRARIES = ("cgd", "torch", "torchvision", "timm", "pillow", "numpy", "zarr")


class Writer:
    """The shards of one artifact; any number of writers may work on it, on any machine, without a lock.

    `shapes` gives every array's full shape. Where the artifact exists already its own cut into shards holds.
    """

    def __init__(
        self,
        files: LocalFiles,
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
        self._started = time.time()
        self._wrote = 0
        rows = next((shapes[a.name][0] for a in self._specs), 1)
        if self.key.kind in layout.ROWWISE:
            cut = layout.shard_rows(rows, layout.row_bytes(shapes, self._specs), shard_rows)
        else:
            cut = 0  # every array is one shard
        files.sweep()
        self._publish_metadata(shapes, attributes or {}, cut)
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
        node = shards.group_metadata if self._specs else shards.leaf_metadata
        self.files.publish(f"{folder}/zarr.json", node({"cgd": about}))
        self._compare(about, self.files.read_json(f"{folder}/zarr.json")["attributes"]["cgd"])
        self._metadata: dict[str, bytes] = {}
        for array in self._specs:
            shape = shapes[array.name]
            if cut and self._metadata:  # whoever came first decided, by the first array
                cut = shards.shape_of(next(iter(self._metadata.values())))[1]
            path = f"{folder}/{array.name}/zarr.json"
            self.files.publish(path, shards.array_metadata(array, shape, cut or shape[0]))
            self._metadata[array.name] = self.files.read(path)
            stored, _ = shards.shape_of(self._metadata[array.name])
            if stored != shape:
                raise StoreError(
                    f"{self.key} holds {array.name} of shape {stored}, this run makes {shape}; nothing was written."
                )

    def _compare(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Refuse an artifact that was determined by something else, naming both values."""
        for name in sorted(ours.keys() | theirs.keys()):
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
        present = set(self.files.children(f"{layout.RECEIPTS}/{self.key}"))
        return [s for s in range(self.shard_count) if _receipt_name(s) not in present]

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
        digests: dict[str, str] = {}
        for path, data in sorted(payload.items()):
            self.files.publish(f"{self.key}/{path}", data)
            # The first writer wins: what counts is what stands there now.
            digests[path] = sha256(self.files.read(f"{self.key}/{path}"))
        rows = self.shard_range(shard)
        receipt = {"shard": shard, "rows": [rows.start, rows.stop], "files": digests}
        self.files.publish(f"{layout.RECEIPTS}/{self.key}/{_receipt_name(shard)}", _text(receipt))
        self._wrote += 1

    def seal(self, notes: Mapping[str, Any] | None = None) -> None:
        """Declare the artifact whole; refuses while a shard is missing.

        `notes` (times, memory: what differs between two equal runs) join the provenance.
        """
        if missing := self.missing():
            raise StoreError(
                f"{self.key} lacks {len(missing)} of {self.shard_count} shards; repeat the command that makes it."
            )
        digests = {p: sha256(self.files.read(f"{self.key}/{p}")) for p in self._metadata_paths()}
        for shard in range(self.shard_count):
            receipt = self.files.read_json(f"{layout.RECEIPTS}/{self.key}/{_receipt_name(shard)}")
            digests.update(receipt["files"])
        self._provenance(notes or {})
        self.files.publish(
            f"{layout.SEALS}/{self.key}.json", _text({"schema": layout.SCHEMA, "key": str(self.key), "files": digests})
        )

    def _metadata_paths(self) -> list[str]:
        return ["zarr.json", *(f"{a.name}/zarr.json" for a in self._specs)]

    def _provenance(self, notes: Mapping[str, Any]) -> None:
        """Who, when, with which libraries: beside the artifact, outside its mark and its seal."""
        if not self._wrote:
            return
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        record = {
            "user": _user(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "shards_written": self._wrote,
            "platform": platform.platform(),
            "python": platform.python_version(),
            "libraries": {name: v for name in _LIBRARIES if (v := _version(name))},
            **notes,
        }
        self.files.publish(
            f"{layout.PROVENANCE}/{self.key}/{moment}-{socket.gethostname()}-{os.getpid()}.json", _text(record)
        )


def _receipt_name(shard: int) -> str:
    return f"{shard:08d}.json"


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user entry
        return "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
