"""A reader of feature stores, written from docs/store-format.md alone: JSON, SHA-256 and NumPy, no cgd, no Zarr."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

ABSENT = 2**64 - 1


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Artifact:
    """A sealed artifact: `attributes`, `read(array)` and `file(path)`; `ValueError` where bytes are not the sealed."""

    def __init__(self, store: Path, key: str) -> None:
        self.folder = store / key
        seal = json.loads((store / f".cgd/seals/{key}.json").read_text())
        if seal.pop("sha256") != sha256(canonical(seal)) or seal["key"] != key:
            raise ValueError(f"the seal of {key} is damaged")
        self.files, self.seal, self.pages = seal["files"], seal, store / f".cgd/pages/{key}"
        self.attributes = json.loads(self.file("zarr.json"))["attributes"]["cgd"]
        named = {name: self.attributes[name] for name in ("version", "settings", "inputs")}
        if not sha256(canonical({"kind": key.split("/")[0], **named})).startswith(key[-16:]):
            raise ValueError(f"{key} holds another artifact")

    def file(self, path: str) -> bytes:
        data = (self.folder / path).read_bytes()
        if path not in self.files:  # a long artifact's seal leaves the digests of shards to its pages
            self._turn_to(int(path.split("/")[2]) // self.seal["page_shards"])
        if sha256(data) != self.files[path]:
            raise ValueError(f"{path} is damaged")
        return data

    def _turn_to(self, page: int) -> None:
        data = (self.pages / f"{page:08d}.json").read_bytes()
        if sha256(data) != self.seal["pages"][page]:
            raise ValueError(f"page {page} is damaged")
        self.files = self.seal["files"] | json.loads(data)["files"]

    def read(self, array: str) -> np.ndarray:
        about = json.loads(self.file(f"{array}/zarr.json"))
        shape, rows = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"][0]
        inner = about["codecs"][0]["configuration"]["chunk_shape"][0]
        parts = []
        for shard in range(-(-shape[0] // rows)):
            data = self.file("/".join([array, "c", str(shard), *["0"] * (len(shape) - 1)]))
            count = rows // inner
            index = np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(count, 2).tolist()
            chunks = [data[offset : offset + size - 4] for offset, size in index if offset != ABSENT]
            if about["data_type"] == "string":
                parts += [np.array(self._texts(chunk), object) for chunk in chunks]
            else:
                kind = np.dtype(about["data_type"]).newbyteorder("<")
                parts += [np.frombuffer(chunk, kind).reshape(inner, *shape[1:]) for chunk in chunks]
            parts = [np.concatenate(parts)[: min(shape[0], (shard + 1) * rows)]]
        return parts[0]

    def _texts(self, chunk: bytes) -> list[str]:
        texts, place = [], 4
        for _ in range(int.from_bytes(chunk[:4], "little")):
            size = int.from_bytes(chunk[place : place + 4], "little")
            texts.append(chunk[place + 4 : place + 4 + size].decode())
            place += 4 + size
        return texts
