"""Everything in a store read and compared: bytes with seals, receipts with each other, rows with the ids they claim."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from cgd.errors import DamageError
from cgd.progress import progress
from cgd.store import catalog, layout, shards
from cgd.store.artifact import rows_text
from cgd.store.feature_store import keys_in
from cgd.store.files import Files
from cgd.store.keys import canonical, ids_digest_of, sha256
from cgd.store.seals import (
    Pages,
    Receipt,
    Seal,
    batched,
    checked_attributes,
    read_receipt,
    read_seal,
    receipt_numbers,
    receipt_path,
    receipts_of,
    seal_path,
    shard_of,
)
from cgd.types import Key

STRAY = "is no part of it"
AT_ONCE = 4096  # files that wait to be read
_MISSING = "is missing"
_NO_SEAL = "is missing, although every shard is there: repeat the command that makes it, or repair"
ROOT, OUT_OF_SIGHT = "zarr.json", ".cgd/zarr.json"


@dataclass(frozen=True)
class Problem:
    """A file that is not as it was written: its path in the store, and what is wrong.

    `rows` are those the file holds; `found` is the SHA-256 of what stands there instead.
    """

    path: str
    what: str
    rows: range | None = None
    found: str | None = None

    def __str__(self) -> str:
        return f"{self.path}{rows_text(self.rows) if self.rows else ''}: {self.what}"


@dataclass(frozen=True)
class Examination:
    """What an artifact is found to be.

    `sealed`; `whole`: every shard is there but no seal; or `unfinished`. `expected` has the SHA-256 of each file by its
    path below the artifact, from the seal, or from the receipts where there is none; `ranges` the rows of each shard.
    """

    key: Key
    state: Literal["sealed", "whole", "unfinished"]
    expected: Mapping[str, str]
    ranges: Mapping[int, range]
    problems: tuple[Problem, ...]

    @property
    def bad_files(self) -> list[str]:
        """Paths below the artifact of files that are missing or differ."""
        bad = {p.path.removeprefix(f"{self.key}/") for p in self.problems}
        return [path for path in self.expected if path in bad]


def verify(files: Files, keys: Sequence[Key] | None = None) -> Iterator[tuple[Key | None, Sequence[Problem]]]:
    """The problems of each artifact of `keys`, or of every artifact, after those of the store itself (None), if any."""
    if keys is None and (found := store_problems(files)):
        yield None, found
    for key in keys_in(files) if keys is None else keys:
        yield key, name_the_misplaced(files, examine(files, key).problems)


def store_problems(files: Files) -> list[Problem]:
    """What is wrong with the files that belong to no artifact."""
    problems = []
    for path, wanted in frame(files).items():
        try:
            found = json.loads(files.read(path))
        except FileNotFoundError:
            problems.append(Problem(path, _MISSING))
            continue
        except ValueError:
            found = None
        if not _same_node(found, json.loads(wanted)):
            problems.append(Problem(path, "is damaged"))
    return problems + _of_catalog(files)


def _of_catalog(files: Files) -> list[Problem]:
    """Whether the catalog is whole and names only what is sealed here; it may lack what came later."""
    if not files.lists or not files.exists(catalog.PATH):
        return []
    try:
        named = catalog.read(files)
    except DamageError:
        return [Problem(catalog.PATH, "is damaged")]
    gone = sorted(named.keys() - catalog.listing(files).keys())
    return [Problem(catalog.PATH, f"names {', '.join(gone)}, not sealed here")] if gone else []


def frame(files: Files) -> dict[str, bytes]:
    """What must stand at the store's root and above its artifacts."""
    if not files.lists:  # a web server shows only what is in its catalog
        return {}
    schema = layout.SCHEMA
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(files.read(ROOT))["attributes"]["cgd"]["schema"]
        schema = found if found in range(1, layout.SCHEMA) else layout.SCHEMA
    texts = {
        ROOT: shards.group_metadata({"cgd": {"schema": schema}}),
        OUT_OF_SIGHT: shards.leaf_metadata({}),
    }
    kinds = {key.kind for key in keys_in(files)}
    return texts | {f"{kind}/zarr.json": shards.group_metadata({}) for kind in sorted(kinds)}


def examine(files: Files, key: Key) -> Examination:
    """Read everything of one artifact; of one that is sealed no more than a few pages of digests are in memory."""
    problems: list[Problem] = []
    seal: Seal | None = _tried(partial(read_seal, files, key), seal_path(key), problems)
    for path, error in seal.broken() if seal else ():
        problems.append(Problem(path, _MISSING if "is missing" in str(error) else "is damaged"))
    return _examine_unsealed(files, key, problems) if problems or seal is None else _examine_sealed(files, key, seal)


def _examine_sealed(files: Files, key: Key, seal: Seal) -> Examination:
    numbers = receipt_numbers(files, key)
    ranges = _ranges(files, key, seal.files)
    if ranges is None:
        ranges = _ranges_of(_known(files, key, numbers, []))
    problems = _compared(files, key, seal.files, ranges)
    if f"{key}/zarr.json" not in {p.path for p in problems}:
        problems += _of_attributes(files, key)
    problems += _of_receipts(files, seal, ranges, numbers)
    problems += _strays(files, key, seal, ranges)
    if not problems:
        problems += _of_rows(files, key, ranges)
    return Examination(key, "sealed", seal.files, ranges, tuple(problems))


def _examine_unsealed(files: Files, key: Key, problems: list[Problem]) -> Examination:
    """By the receipts, all in memory; `problems` are those of the seal."""
    numbers = receipt_numbers(files, key)
    known = _known(files, key, numbers, problems)
    expected = _agreed(files, key, known)
    ranges = _ranges(files, key, expected, trusting=bool(known))
    if ranges is None:
        ranges = _ranges_of(known)
    others = _of_other_receipts(key, ranges, known, expected)
    problems += others.values()
    known = {n: receipt for n, receipt in known.items() if n not in others}
    expected.update((path, digest) for receipt in known.values() for path, digest in receipt.files.items())
    problems += _compared(files, key, expected, ranges)
    bad = {p.path for p in problems}
    if f"{key}/zarr.json" not in bad:
        problems += _of_attributes(files, key)
    nameless = _is_nameless(files, key, known)
    if not ranges or set(ranges) - set(numbers) or nameless:
        told = [p for p in problems if p.path != seal_path(key) or p.what != _MISSING]
        # An empty folder is all there is of an artifact whose writer was killed at once.
        begun = not told and key.name in files.children(key.kind) and not files.walk(str(key))
        if not begun and not nameless and f"{key}/zarr.json" not in bad and not files.exists(f"{key}/zarr.json"):
            told.append(Problem(f"{key}/zarr.json", _MISSING))
        return Examination(key, "unfinished", expected, ranges, tuple(told))
    told = [replace(p, what=_NO_SEAL) if p.path == seal_path(key) and p.what == _MISSING else p for p in problems]
    return Examination(key, "whole", expected, ranges, tuple(told))


def name_the_misplaced(files: Files, problems: Iterable[Problem]) -> list[Problem]:
    """The same problems, told where a file holds what belongs elsewhere in the store."""
    problems = list(problems)
    wanted = {p.found for p in problems if p.found}
    places = belongings(files, wanted) if wanted else {}
    return [
        replace(p, what=f"{p.what}: it holds what belongs at {places[p.found]}") if p.found in places else p
        for p in problems
    ]


def belongings(files: Files, wanted: Collection[str]) -> dict[str | None, str]:
    """Where in the store the bytes of each SHA-256 in `wanted` belong, as the seals say."""
    found: dict[str | None, str] = {}
    for key in keys_in(files):
        with suppress(FileNotFoundError, DamageError):
            named = read_seal(files, key).files.items()
            found.update({digest: f"{key}/{path}" for path, digest in named if digest in wanted})
    return found


def _tried(read: Any, path: str, problems: list[Problem]) -> Any:
    try:
        return read()
    except FileNotFoundError:
        problems.append(Problem(path, _MISSING))
    except DamageError as error:
        problems.append(
            Problem(path, str(error).partition(": ")[2].rstrip(".") if "seal of" in str(error) else "is damaged")
        )
    return None


def _is_nameless(files: Files, key: Key, receipts: Mapping[int, Receipt]) -> bool:
    """Whether a repair kept the rows of an artifact whose own metadata is lost; its command names it again."""
    unbound = bool(receipts) and not any(receipt.metadata for receipt in receipts.values())
    return unbound and not files.exists(f"{key}/zarr.json")


def _agreed(files: Files, key: Key, receipts: Mapping[int, Receipt]) -> dict[str, str]:
    """The digests of the metadata that most receipts name; of as many, those that stand there."""
    votes = Counter(canonical(receipt.metadata) for receipt in receipts.values() if receipt.metadata)
    most = [json.loads(named) for named, count in votes.items() if count == max(votes.values())]

    def there(named: Mapping[str, str]) -> int:
        return sum(_digest(files, f"{key}/{path}") == digest for path, digest in named.items())

    return max(most, key=there) if len(most) > 1 else dict(*most)


def _of_other_receipts(
    key: Key, ranges: Mapping[int, range], known: Mapping[int, Receipt], agreed: Mapping[str, str]
) -> dict[int, Problem]:
    """Receipts that say other than most of them, by their shard."""
    problems = {}
    for number, receipt in known.items():
        rows = ranges.get(number)
        fits = rows is not None and receipt.rows == (rows.start, rows.stop)
        if not fits or receipt.metadata not in ({}, agreed):
            found = Problem(receipt_path(key, number), "is another artifact's", wanted_rows(key, ranges, number))
            problems[number] = found
    return problems


def _digest(files: Files, path: str) -> str | None:
    try:
        return sha256(files.read(path))
    except (FileNotFoundError, DamageError):
        return None


def _known(files: Files, key: Key, numbers: Iterable[int], problems: list[Problem]) -> dict[int, Receipt]:
    """The receipts that are whole; the others join the problems."""
    found = {n: _tried(partial(read_receipt, files, key, n), receipt_path(key, n), problems) for n in numbers}
    return {n: receipt for n, receipt in found.items() if receipt is not None}


def _ranges(files: Files, key: Key, expected: Mapping[str, str], *, trusting: bool = False) -> dict[int, range] | None:
    """The rows of each shard, as the arrays' metadata say where it is undamaged; None where it tells nothing.

    `trusting` where receipts of version 1 are there, which have no digest of it.
    """
    for array in layout.LAYOUT[key.kind]:
        path = f"{array.name}/zarr.json"
        if expected.get(path) != _digest(files, f"{key}/{path}") and (expected or not trusting):
            continue
        try:
            shape, rows = shards.shape_of(files.read(f"{key}/{path}"))
        except (FileNotFoundError, ValueError, KeyError, TypeError, DamageError):  # version 1 says no digest of it
            continue
        if key.kind not in layout.ROWWISE:
            return {0: range(shape[0])}
        return {n: range(n * rows, min(shape[0], (n + 1) * rows)) for n in range(-(-shape[0] // rows))}
    return None if layout.LAYOUT[key.kind] else {0: range(1)}


def _ranges_of(receipts: Mapping[int, Receipt]) -> dict[int, range]:
    """The rows of each shard as the receipts have them."""
    return {number: range(*receipt.rows) for number, receipt in receipts.items()}


def _compared(files: Files, key: Key, expected: Mapping[str, str], ranges: Mapping[int, range]) -> list[Problem]:
    """Files that are missing or differ from what is expected of them."""

    def look(path: str) -> Problem | None:
        rows = ranges.get(shard_of(path)) if key.kind in layout.ROWWISE and "/c/" in path else None
        try:
            found = sha256(files.read(f"{key}/{path}"))
        except FileNotFoundError:
            return Problem(f"{key}/{path}", _MISSING, rows)
        except DamageError:
            return Problem(f"{key}/{path}", "cannot be read from the disk", rows)
        return None if found == expected[path] else Problem(f"{key}/{path}", "differs from its seal", rows, found)

    found = []
    with ThreadPoolExecutor(os.cpu_count() if files.is_local else 16) as pool, progress(len(expected), str(key)) as bar:
        for some in batched(expected, AT_ONCE):
            for problem in pool.map(look, some):
                bar.update(1)
                found += [problem] if problem else []
    return sorted(found, key=lambda p: (p.path.split("/c/")[0], p.rows.start if p.rows else 0))


def _of_attributes(files: Files, key: Key) -> list[Problem]:
    try:
        checked_attributes(key, files.read(f"{key}/zarr.json"))
    except FileNotFoundError:
        return []
    except DamageError:
        return [Problem(f"{key}/zarr.json", "is damaged or another artifact's")]
    return []


def _of_receipts(files: Files, seal: Seal, ranges: Mapping[int, range], numbers: Sequence[int]) -> list[Problem]:
    """Receipts that are missing, damaged, or say other than the seal; `numbers` are those that are there."""
    key, there = seal.key, set(numbers)
    problems: list[Problem] = []
    for wanted in receipts_of(seal, ranges):
        path = receipt_path(key, wanted.shard)
        if wanted.shard not in there:
            problems.append(Problem(path, _MISSING, wanted_rows(key, ranges, wanted.shard)))
            continue
        there.remove(wanted.shard)
        found: Receipt | None = _tried(partial(read_receipt, files, key, wanted.shard), path, problems)
        if found and (found.files != wanted.files or found.metadata not in ({}, wanted.metadata)):
            problems.append(Problem(path, "differs from its seal", wanted_rows(key, ranges, wanted.shard)))
    _known(files, key, sorted(there), problems)
    return problems


def wanted_rows(key: Key, ranges: Mapping[int, range], shard: int) -> range | None:
    return ranges.get(shard) if key.kind in layout.ROWWISE else None


def _strays(files: Files, key: Key, seal: Seal, ranges: Mapping[int, range]) -> list[Problem]:
    """Files that belong to nothing."""
    if not files.lists:
        return []
    found = [path.removeprefix(f"{key}/") for path in files.walk(str(key))]
    found.sort(key=shard_of)  # a page of the seal after the other
    there = sorted(f"{key}/{path}" for path in found if path not in seal.files)
    pages = len(seal.files.digests) if isinstance(seal.files, Pages) else 0
    for folder, count in ((layout.RECEIPTS, None), (layout.PAGES, pages)):
        own = map(layout.receipt_name, ranges if count is None else range(count))
        names = set(files.children(f"{folder}/{key}")).difference(own)
        there += [f"{folder}/{key}/{name}" for name in sorted(names)]
    return [Problem(path, STRAY) for path in there]


def _of_rows(files: Files, key: Key, ranges: Mapping[int, range]) -> list[Problem]:
    """Whether row i is the i-th image of the list that the settings name, and every array has as many rows."""
    if key.kind not in layout.ROWWISE:
        return []
    about = checked_attributes(key, files.read(f"{key}/zarr.json"))
    settings = about["settings"]
    shape, _ = shards.shape_of(files.read(f"{key}/ids/zarr.json"))
    problems = []
    for array in layout.LAYOUT[key.kind]:
        path = f"{key}/{array.name}/zarr.json"
        if files.exists(path) and shards.shape_of(files.read(path))[0][0] != shape[0]:
            problems.append(Problem(path, f"has another number of rows than the {shape[0]} ids"))
    if isinstance(settings.get("ids"), str) and "dataset" in settings:
        metadata = files.read(f"{key}/ids/zarr.json")
        paths = {shard: f"{key}/{layout.shard_path('ids', shard, 1)}" for shard in ranges}
        ids = (shards.decode(metadata, shard, files.read(path)) for shard, path in paths.items())
        if ids_digest_of(settings["dataset"], ids) != settings["ids"]:
            problems.append(Problem(f"{key}/ids", "are not the images that its settings name, or in another order"))
    return problems


def _same_node(found: Any, wanted: Any) -> bool:
    """Whether a group's or empty array's metadata says what it must; Zarr may add what it likes."""
    return isinstance(found, dict) and all(
        found.get(name) == value for name, value in wanted.items() if value is not None
    )
