"""Receipts and seals: which bytes an artifact's files must have, in files that also prove themselves."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any, TypeVar

from cgd.errors import DamageError, StoreError
from cgd.store import layout
from cgd.store.files import Files, fetch_all
from cgd.store.keys import canonical, sha256
from cgd.types import Key

PAGES_KEPT = 8  # in memory, 2 MB each
T = TypeVar("T")
ByShard = Mapping[int, Mapping[str, str]]
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


class Pages(Mapping[str, str]):
    """The SHA-256 of every file of a long artifact by its path: its `metadata`, and what stands in pages.

    A page holds the digests of `page_shards` shards in a row; it is read when one of them is asked for, and a few are
    kept. `digests` are those of the pages. Raises `DamageError` where a page is missing or not the one that was sealed.
    """

    def __init__(
        self, files: Files, key: Key, metadata: Mapping[str, str], digests: Sequence[str], page_shards: int
    ) -> None:
        self.metadata = metadata
        self.digests = tuple(digests)
        self.page_shards = page_shards
        self._files, self._key = files, key
        self._page = lru_cache(PAGES_KEPT)(self._read)

    def _read(self, number: int) -> ByShard:
        path = page_path(self._key, number)
        where = f"{self._files.url}/{path}"
        try:
            data = self._files.read(path)
        except FileNotFoundError:
            raise DamageError(f"{where} is missing; `cgd store verify {self._key}` tells what is left.") from None
        if sha256(data) != self.digests[number]:
            raise DamageError(f"{where} is damaged: it is not the page that was sealed.")
        found = _by_shard(_digests(checked(data, where)["files"], where))
        if not set(found) <= set(range(number * self.page_shards, (number + 1) * self.page_shards)):
            raise DamageError(f"{where} names shards of other pages: do not trust that store.")
        return found

    def of_shard(self, shard: int) -> Mapping[str, str]:
        """The files of one shard; none where there is no such shard."""
        number = shard // self.page_shards
        return self._page(number).get(shard, {}) if number < len(self.digests) else {}

    def broken(self) -> Iterator[tuple[str, DamageError]]:
        """The pages that cannot be read, by their path in the store; all are looked at."""
        for number in range(len(self.digests)):
            try:
                self._page(number)
            except DamageError as error:
                yield page_path(self._key, number), error

    def __getitem__(self, path: str) -> str:
        found = self.metadata.get(path)
        return self.of_shard(shard_of(path))[path] if found is None else found

    def __iter__(self) -> Iterator[str]:
        yield from self.metadata
        for number in range(len(self.digests)):
            for files in self._page(number).values():
                yield from files

    def __len__(self) -> int:
        return len(self.metadata) + sum(len(f) for n in range(len(self.digests)) for f in self._page(n).values())


@dataclass(frozen=True)
class Seal:
    """The SHA-256 of every file of an artifact, by its path below the artifact; of a long one they are `Pages`."""

    key: Key
    files: Mapping[str, str]
    schema: int = layout.SCHEMA

    @property
    def metadata(self) -> Mapping[str, str]:
        """Those of every `zarr.json`."""
        if isinstance(self.files, Pages):
            return self.files.metadata
        return {path: digest for path, digest in self.files.items() if _is_metadata(path)}

    def of_shard(self, shard: int) -> Mapping[str, str]:
        """Those of the files of one shard."""
        if isinstance(self.files, Pages):
            return self.files.of_shard(shard)
        return self._shards.get(shard, {})

    @cached_property
    def _shards(self) -> ByShard:
        return _by_shard({path: digest for path, digest in self.files.items() if not _is_metadata(path)})

    def broken(self) -> Iterator[tuple[str, DamageError]]:
        """Pages that cannot be read, by their path in the store."""
        return self.files.broken() if isinstance(self.files, Pages) else iter(())

    def text(self) -> bytes:
        """The seal of an artifact that is not long."""
        return signed({"schema": self.schema, "key": str(self.key), "files": self.files})


def seal_path(key: Key) -> str:
    return f"{layout.SEALS}/{key}.json"


def page_path(key: Key, number: int) -> str:
    return f"{layout.PAGES}/{key}/{layout.receipt_name(number)}"


def receipt_path(key: Key, shard: int) -> str:
    return f"{layout.RECEIPTS}/{key}/{layout.receipt_name(shard)}"


def read_seal(files: Files, key: Key) -> Seal:
    """The seal of `key`, without its pages; raises `FileNotFoundError`, and `DamageError` if not whole or another's."""
    path = seal_path(key)
    value = _value(files.read(path), f"{files.url}/{path}", _SEAL)
    schema = value["schema"]
    if not isinstance(schema, int) or schema < 1:
        raise DamageError(f"{files.url}/{path} is damaged: {schema!r} is no format version.")
    if schema > layout.PAGED_SCHEMA:
        raise StoreError(f"{files.url}/{path} has format version {schema}, this cgd reads up to {layout.PAGED_SCHEMA}.")
    if value["key"] != str(key):
        raise DamageError(f"{files.url}/{path} is damaged: it is the seal of {value['key']}.")
    digests = _digests(value["files"], f"{files.url}/{path}")
    if schema < layout.PAGED_SCHEMA:
        return Seal(key, digests, schema)
    pages, size = value.get("pages"), value.get("page_shards")
    if not isinstance(pages, list) or not all(isinstance(p, str) for p in pages) or type(size) is not int or size < 1:
        raise DamageError(f"{files.url}/{path} is damaged: it lists no pages.")
    return Seal(key, Pages(files, key, digests, pages, size), schema)


def read_whole_seal(files: Files, key: Key) -> Seal:
    """As `read_seal`, and each of its pages was looked at; raises `DamageError` also where one cannot be read."""
    seal = read_seal(files, key)
    for _, error in seal.broken():
        raise error
    return seal


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


def read_receipts(files: Files, key: Key, shards: range) -> Iterator[Receipt]:
    """The receipts of `shards` in their order; over a network many at once."""
    read = partial(read_receipt, files, key)
    for some in batched(shards, layout.PAGE_SHARDS):
        yield from map(read, some) if files.is_local else fetch_all(read, some)


def receipts_of(seal: Seal, ranges: Mapping[int, range]) -> Iterator[Receipt]:
    """The receipts that a seal was made from; `ranges` are the rows of each shard."""
    metadata = seal.metadata
    for shard, rows in ranges.items():
        yield Receipt(seal.key, shard, (rows.start, rows.stop), seal.of_shard(shard), metadata)


def seal_of(key: Key, metadata: Mapping[str, str], receipts: Iterable[Receipt]) -> Seal:
    """The seal of the artifact that these receipts make up, all in memory."""
    files = dict(metadata)
    for receipt in receipts:
        files.update(receipt.files)
    return Seal(key, files)


def sealing(
    key: Key, metadata: Mapping[str, str], shards: int, receipts: Iterable[Receipt]
) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of every file that declares an artifact of so many `shards` whole: its pages, at last the seal.

    `receipts` come in the order of their shards; of a long artifact no more than a page of them is in memory.
    """
    if not layout.seal_pages(shards):
        yield seal_path(key), seal_of(key, metadata, receipts).text()
        return
    digests = []
    for number, some in enumerate(batched(receipts, layout.PAGE_SHARDS)):
        named = {path: digest for receipt in some for path, digest in receipt.files.items()}
        data = signed({"key": str(key), "page": number, "files": named})
        digests.append(sha256(data))
        yield page_path(key, number), data
    paged = {"pages": digests, "page_shards": layout.PAGE_SHARDS}
    yield seal_path(key), signed({"schema": layout.PAGED_SCHEMA, "key": str(key), "files": metadata, **paged})


def publish(files: Files, path: str, data: bytes) -> None:
    """Let a file of `sealing` stand; a page that says other than the receipts is left from a seal that is gone."""
    if path.startswith(f"{layout.PAGES}/"):
        files.settle(path, data, lambda _: False)
    else:
        files.publish(path, data)


def remove_pages(files: Files, key: Key) -> None:
    """Every page of a seal, whatever else stands beside them."""
    for name in files.children(f"{layout.PAGES}/{key}"):
        files.remove(f"{layout.PAGES}/{key}/{name}")


def batched(values: Iterable[T], count: int) -> Iterator[list[T]]:
    """`values` in their order, `count` at a time."""
    rest = iter(values)
    while some := list(islice(rest, count)):
        yield some


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


def shard_count(files: Files, key: Key) -> int:
    """How many shards a sealed artifact has, by its `zarr.json`; where that does not say, how many have a receipt."""
    if key.kind in layout.ROWWISE:
        try:
            inside = json.loads(files.read(f"{key}/zarr.json"))["consolidated_metadata"]["metadata"]
            about = inside[layout.LAYOUT[key.kind][0].name]
            rows, cut = about["shape"][0], about["chunk_grid"]["configuration"]["chunk_shape"][0]
            return int(-(-rows // cut))
        except (OSError, DamageError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            pass  # version 1, or damaged
    return len(receipt_numbers(files, key))


def receipt_numbers(files: Files, key: Key) -> list[int]:
    """The shards that have a receipt, whatever else a file system left beside them."""
    names = files.children(f"{layout.RECEIPTS}/{key}")
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def shard_of(path: str) -> int:
    """The shard a file below an artifact belongs to; files that are no shard belong to the first."""
    parts = path.split("/")
    return int(parts[2]) if len(parts) > 2 and parts[1] == "c" and parts[2].isdigit() else 0


def _is_metadata(path: str) -> bool:
    return path.rpartition("/")[2] == "zarr.json"


def _by_shard(digests: Mapping[str, str]) -> ByShard:
    found: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for path, digest in digests.items():
        found[shard_of(path)][path] = digest
    return dict(found)


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
