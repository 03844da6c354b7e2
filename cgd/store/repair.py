"""A damaged store made whole: from other stores, from files in the wrong place, or by dropping what is bad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from cgd.errors import DamageError
from cgd.store import catalog, layout, provenance, shards, verify
from cgd.store.artifact import rows_text
from cgd.store.copying import copy_artifact
from cgd.store.feature_store import keys_in
from cgd.store.files import Files
from cgd.store.keys import sha256
from cgd.store.seals import (
    Seal,
    checked_attributes,
    read_receipt,
    read_whole_seal,
    receipt_numbers,
    receipt_path,
    receipts_of,
    remove_pages,
    seal_of,
    seal_path,
    sealing,
    shard_of,
)
from cgd.store.verify import STRAY, Examination, Problem, examine
from cgd.types import Key

GONE = (FileNotFoundError, DamageError)  # not a network that is silent: what it has would be dropped
RECOMPUTE = {
    "embeddings": "the `cgd extract-teachers` or `cgd evaluate` that made it",
    "whitening": "`cgd fit-whitening`",
    "whitened": "`cgd fit-whitening`",
    "students": "the `cgd distill` that trained it",
    "codebooks": "the `cgd distill` that fitted it",
    "scores": "the `cgd evaluate` that scored it",
    "indexes": "`cgd index`",
}


@dataclass
class Repair:
    """What was done about one artifact.

    Files put back; what was dropped, where its whole files are kept, and the command that makes it again; and what is
    still wrong.
    """

    key: str
    restored: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept: str | None = None
    command: str | None = None
    left: list[str] = field(default_factory=list)


def repair(files: Files, keys: Sequence[Key] | None, sources: Sequence[Files] = ()) -> list[Repair]:
    """Make `keys`, or everything, agree with their seals again; what was done, where anything was.

    A damaged file is taken from the store itself, if its bytes are found in another's place, or from a store in
    `sources` that has the same artifact. What nobody has is dropped: a shard, or an artifact of one shard, which is
    then visibly unfinished, and the command that made it computes the rest.
    """
    found = [examine(files, key) for key in (keys or keys_in(files))]  # refuses what is newer, before anything is done
    done = [] if keys else _repair_frame(files)
    found = [each for each in found if each.problems]
    _keep_misplaced(files, found)
    for each in found:
        one = Repair(str(each.key))
        _repair_artifact(files, each, sources, one)
        done.append(one)
    for name in files.children(layout.SPARE):
        files.remove(f"{layout.SPARE}/{name}")
    if files.exists(catalog.PATH):
        catalog.publish(files)
    return done


def _repair_frame(files: Files) -> list[Repair]:
    problems = verify.store_problems(files)
    texts = verify.frame(files)
    for problem in problems:
        if problem.path in texts:
            files.replace(problem.path, texts[problem.path])
        else:
            files.remove(problem.path)  # the catalog
            catalog.publish(files)
    return [Repair("the store", restored=[p.path for p in problems])] if problems else []


def _keep_misplaced(files: Files, found: Sequence[Examination]) -> None:
    """Copy files that stand in another's place, by their SHA-256: an interrupted repair may not lose the last copy."""
    wanted = {each.expected[path] for each in found for path in each.bad_files}
    places = {p.found: p.path for each in found for p in each.problems if p.found in wanted}
    for digest, path in places.items():
        files.publish(f"{layout.SPARE}/{digest}", files.read(path))


def _repair_artifact(files: Files, found: Examination, sources: Sequence[Files], report: Repair) -> None:
    key = found.key
    seal = _seal_of(files, found, sources)
    expected = seal.files if seal else found.expected
    lost = _put_back(files, key, expected, sources, report)
    bad = {shard_of(path) for path in lost if not path.endswith("zarr.json")}
    nameless = not _is_own(files, key) or any(path.endswith("zarr.json") for path in lost)
    if seal is None and not nameless:
        bad = _mend_shards(files, found, bad, sources, report)
        seal = None if bad else _seal_of(files, examine(files, key), ())
    if seal is not None and not bad and not nameless:
        _agree(files, found, seal, report)
        return
    if lost == ["zarr.json"] and key.kind in layout.ROWWISE and _is_proven(files, found, seal):
        _drop_name(files, found, seal, report)
    elif nameless or key.kind not in layout.ROWWISE:
        if bad or nameless:
            _drop_all(files, found, expected, report)
    else:
        _drop(files, found, seal, bad, report)
    _complete(files, key, sources, report)
    report.left = [str(problem) for problem in examine(files, key).problems if key in keys_in(files, key.kind)]


def _is_proven(files: Files, found: Examination, seal: Seal | None) -> bool:
    """Whether the shards are this artifact's although its own `zarr.json` is lost: a seal or receipts name its key."""
    numbers = receipt_numbers(files, found.key)
    try:
        return seal is not None or bool(numbers and all(read_receipt(files, found.key, n).metadata for n in numbers))
    except GONE:
        return False


def _complete(files: Files, key: Key, sources: Sequence[Files], report: Repair) -> None:
    """Take what is missing now from a store that has the artifact, though perhaps made with other bits."""
    for place in sources:
        if not files.exists(seal_path(key)) and place.exists(seal_path(key)):
            try:
                if not _is_cut_alike(files, read_whole_seal(place, key)):
                    continue
                copy_artifact(place, files, key)
            except DamageError:
                continue
            report.restored.append(str(key))
            report.dropped, report.command = [], None
            return


def _is_cut_alike(files: Files, theirs: Seal) -> bool:
    """Whether the metadata here is that of another store's seal, so that shards of both make up one artifact."""
    return all(
        _is_good(files, theirs.key, path, digest) or not files.exists(f"{theirs.key}/{path}")
        for path, digest in theirs.metadata.items()
    )


def _is_own(files: Files, key: Key) -> bool:
    """Whether the artifact's `zarr.json` is its own."""
    try:
        checked_attributes(key, files.read(f"{key}/zarr.json"))
    except GONE:
        return False
    return True


def _put_back(
    files: Files,
    key: Key,
    expected: Mapping[str, str],
    sources: Sequence[Files],
    report: Repair,
) -> list[str]:
    """Files that are not what is expected made so; those that nobody has."""
    lost = []
    for path, digest in expected.items():
        if _is_good(files, key, path, digest):
            continue
        data = _fetched(files, key, path, digest, sources)
        if data is None:
            lost.append(path)
        else:
            files.replace(f"{key}/{path}", data)
            report.restored.append(f"{key}/{path}")
    return lost


def _mend_shards(
    files: Files, found: Examination, lost: set[int], sources: Sequence[Files], report: Repair
) -> set[int]:
    """Shards of an artifact without a seal taken from a store that has them; those that are still bad.

    A shard is bad if a file of it is lost, or if its receipt is not its own.
    """
    key, folder = found.key, f"{layout.RECEIPTS}/{found.key}/"
    receipts = [p.path.removeprefix(folder) for p in found.problems if p.path.startswith(folder)]
    bad = lost | {int(name.removesuffix(".json")) for name in receipts}
    metadata = {path: digest for path, digest in found.expected.items() if path.endswith("zarr.json")}
    return {shard for shard in bad if not _shard_from(files, key, shard, metadata, sources, report)}


def _shard_from(
    files: Files, key: Key, shard: int, metadata: Mapping[str, str], sources: Sequence[Files], report: Repair
) -> bool:
    """Take a shard with its receipt from the first store that has it for an artifact with the same metadata."""
    for place in sources:
        try:
            receipt = read_receipt(place, key, shard)
        except GONE:
            continue
        if receipt.metadata == metadata and not _put_back(files, key, receipt.files, [place], report):
            files.replace(receipt_path(key, shard), receipt.text())
            report.restored.append(receipt_path(key, shard))
            return True
    return False


def _seal_of(files: Files, found: Examination, sources: Sequence[Files]) -> Seal | None:
    """The artifact's seal: its own, another store's over the same files, or the one its receipts make up."""
    key = found.key
    for place in (files, *sources) if found.state != "unfinished" else ():
        try:
            seal = read_whole_seal(place, key)
        except GONE:
            continue
        if place is files and seal.schema == 1 and (mended := _outvoted(files, found, seal)):
            return mended
        if place is files or all(seal.files.get(path) == digest for path, digest in found.expected.items()):
            return seal
    if found.state != "whole":
        return None
    try:
        receipts = [read_receipt(files, key, shard) for shard in found.ranges]
        metadata = dict(receipts[0].metadata) or _metadata_of(files, key, receipts[0].files)
    except GONE:
        return None
    if any(p.path.startswith(f"{layout.RECEIPTS}/") for p in found.problems):
        return None
    return seal_of(key, metadata, receipts)


def _outvoted(files: Files, found: Examination, seal: Seal) -> Seal | None:
    """The seal that receipts and files agree on against one of version 1, which does not prove itself."""
    try:
        receipts = [read_receipt(files, found.key, shard) for shard in found.ranges]
    except GONE:
        return None
    said = {path: digest for receipt in receipts for path, digest in receipt.files.items()}
    there = {p.path.removeprefix(f"{found.key}/"): p.found for p in found.problems if p.found}
    wrong = {path: digest for path, digest in there.items() if said.get(path) == digest}
    return Seal(found.key, {**seal.files, **wrong}) if wrong else None


def _metadata_of(files: Files, key: Key, paths: object) -> dict[str, str]:
    """Digests of the metadata as it stands; for receipts of version 1, which do not name it."""
    text = files.read(f"{key}/zarr.json")
    checked_attributes(key, text)
    found = {"zarr.json": sha256(text)}
    for array in layout.LAYOUT[key.kind]:
        if any(str(p).startswith(f"{array.name}/") for p in paths):  # type: ignore[attr-defined]
            found[f"{array.name}/zarr.json"] = sha256(files.read(f"{key}/{array.name}/zarr.json"))
    return found


def _is_good(files: Files, key: Key, path: str, digest: str) -> bool:
    try:
        return sha256(files.read(f"{key}/{path}")) == digest
    except GONE:
        return False


def _fetched(files: Files, key: Key, path: str, digest: str, sources: Sequence[Files]) -> bytes | None:
    """The bytes with this SHA-256, wherever they are."""
    if path.endswith("/zarr.json"):  # the artifact's own holds its arrays'
        with suppress(*GONE, ValueError):
            data = shards.arrays_inside(files.read(f"{key}/zarr.json")).get(path.removesuffix("/zarr.json"), b"")
            if sha256(data) == digest:
                return data
    for place, there in [(files, f"{layout.SPARE}/{digest}"), *((source, f"{key}/{path}") for source in sources)]:
        try:
            data = place.read(there)
        except GONE:
            continue
        if sha256(data) == digest:
            return data
    return None


def _drop_all(files: Files, found: Examination, expected: Mapping[str, str], report: Repair) -> None:
    """An artifact that makes no sense in parts; what was whole of it is kept aside."""
    key, path_of = found.key, f"{layout.LOST}/{found.key}"
    report.command = report.command or _command(files, key)
    kept = [path for path, digest in expected.items() if _is_good(files, key, path, digest)]
    if not layout.LAYOUT[key.kind] and found.state == "sealed" and _is_own(files, key):  # a student may be days of work
        for path in kept:
            files.publish(f"{path_of}/{path}", files.read(f"{key}/{path}"))
        report.kept = path_of if kept else None
    remove_artifact(files, key, seal_last=True)
    report.dropped.append(str(key))


def _drop(files: Files, found: Examination, seal: Seal | None, bad: set[int], report: Repair) -> None:
    """Shards that are bad, so that those left are visibly not all.

    First the receipts of the others are made right, as long as the seal says what they are. Then files go, then their
    receipts, and the seal last: whoever is interrupted leaves damage that is still told, never a bad file that stands
    without a receipt and would be taken for another's work.
    """
    key = found.key
    report.command = _command(files, key) if bad else None
    for receipt in receipts_of(seal, found.ranges) if seal else ():
        if receipt.shard not in bad:
            _put(files, receipt_path(key, receipt.shard), receipt.text(), report)
    there = files.walk(str(key)) if bad else []
    for shard in sorted(bad):
        for path in there:
            inside = path.removeprefix(f"{key}/")
            if "/c/" in inside and shard_of(inside) == shard:
                files.remove(path)
        files.remove(receipt_path(key, shard))
        report.dropped.append(f"{key}{rows_text(found.ranges[shard]) if shard in found.ranges else ''}")
    _remove_strays(files, found.problems, report)
    _remove_seal(files, key)


def _drop_name(files: Files, found: Examination, seal: Seal | None, report: Repair) -> None:
    """Only the artifact's own `zarr.json` is lost: rows and receipts stay, and the command that made it names it again.

    The receipts say no longer which metadata belongs to them, because it may be spelt otherwise now.
    """
    key = found.key
    report.command = _command(files, key)
    known = (
        receipts_of(seal, found.ranges) if seal else [read_receipt(files, key, n) for n in receipt_numbers(files, key)]
    )
    for receipt in known:
        _put(files, receipt_path(key, receipt.shard), replace(receipt, metadata={}).text(), report)
    files.remove(f"{key}/zarr.json")
    _remove_seal(files, key)
    report.dropped.append(f"{key}/zarr.json")


def _agree(files: Files, found: Examination, seal: Seal, report: Repair) -> None:
    """Write the seal and the receipts that belong to these files, where others stand, and remove what is no part."""
    key = found.key
    ranges = examine(files, key).ranges  # the metadata is whole now
    for receipt in receipts_of(seal, ranges):
        _put(files, receipt_path(key, receipt.shard), receipt.text(), report)
    for path, data in sealing(key, seal.metadata, len(ranges), receipts_of(seal, ranges)):
        _put(files, path, data, report)
    _remove_strays(files, examine(files, key).problems, report)


def _put(files: Files, path: str, data: bytes, report: Repair) -> None:
    """Let `data` stand at `path`, told where it did not."""
    with suppress(*GONE):
        if files.read(path) == data:
            return
    files.replace(path, data)
    report.restored.append(path)


def _remove_strays(files: Files, problems: Iterable[Problem], report: Repair) -> None:
    """Files that are no part of a sealed artifact."""
    for problem in problems:
        if problem.what == STRAY:
            files.remove(problem.path)
            report.dropped.append(problem.path)


def remove_artifact(files: Files, key: Key, *, seal_last: bool = False) -> None:
    """Everything of an artifact: its seal first, so that nobody begins to read it, then receipts, metadata last.

    What is damaged loses its receipts and its seal last, so that nobody begins to write it while bad files still stand.
    """
    if not seal_last:
        files.remove(seal_path(key))
        remove_pages(files, key)
        for name in files.children(f"{layout.RECEIPTS}/{key}"):
            files.remove(f"{layout.RECEIPTS}/{key}/{name}")
    for path in sorted(files.walk(str(key)), key=lambda p: p.endswith("zarr.json")):
        files.remove(path)
    _remove_folders(files, str(key))
    for folder in (f"{layout.RECEIPTS}/{key}", f"{layout.PROVENANCE}/{key}"):
        for name in files.children(folder):
            files.remove(f"{folder}/{name}")
    _remove_seal(files, key)


def _remove_seal(files: Files, key: Key) -> None:
    """The seal, and before it its pages: those of a seal that is gone would speak of what no longer stands."""
    remove_pages(files, key)
    files.remove(seal_path(key))


def _remove_folders(files: Files, folder: str) -> None:
    """Folders without files, which would be listed as an artifact that was begun."""
    for name in files.children(folder):
        _remove_folders(files, f"{folder}/{name}")
    files.remove(f"{folder}/zarr.json")  # takes its empty folder along


def _command(files: Files, key: Key) -> str:
    """The command that made an artifact, as its provenance has it."""
    for record in reversed(provenance.read(files, key)):
        if record.get("command"):
            return str(record["command"])
    return RECOMPUTE.get(key.kind, "the command that made it")
