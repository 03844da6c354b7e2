"""A damaged store made whole: from other stores, from files in the wrong place, or by dropping what is bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cgd.errors import CgdError, StoreError
from cgd.store import catalog, layout, provenance, verify
from cgd.store.artifact import checked_attributes, rows_text
from cgd.store.copying import copy_artifact
from cgd.store.feature_store import keys_in
from cgd.store.files import Files
from cgd.store.keys import sha256
from cgd.store.seals import Seal, read_receipt, read_seal, receipt_path, receipts_of, seal_of, seal_path, shard_of
from cgd.store.verify import Examination, examine
from cgd.types import Key

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
    """What was done about one artifact: files put back, what was dropped, and the command that makes that again."""

    key: str
    restored: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    command: str | None = None


def repair(files: Files, keys: Sequence[Key] | None, sources: Sequence[Files] = ()) -> list[Repair]:
    """Make `keys`, or everything, agree with their seals again; what was done, where anything was.

    A damaged file is taken from the store itself, if its bytes are found in another's place, or from a store in
    `sources` that has the same artifact. What nobody has is dropped: a shard, or an artifact of one shard, which is
    then visibly unfinished, and the command that made it computes the rest.
    """
    done = [] if keys else _repair_frame(files)
    found = [examine(files, key) for key in (keys or keys_in(files))]
    found = [each for each in found if each.problems]
    spare = _misplaced(files, found)
    for each in found:
        one = Repair(str(each.key))
        _repair_artifact(files, each, sources, spare, one)
        done.append(one)
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


def _misplaced(files: Files, found: Sequence[Examination]) -> dict[str, bytes]:
    """The bytes of files that stand in another's place, by their SHA-256: read before anything is put over them."""
    wanted = {each.expected[path] for each in found for path in each.bad_files}
    places = {p.found: p.path for each in found for p in each.problems if p.found in wanted}
    return {digest: files.read(path) for digest, path in places.items() if digest}


def _repair_artifact(
    files: Files, found: Examination, sources: Sequence[Files], spare: dict[str, bytes], report: Repair
) -> None:
    key = found.key
    seal = _seal_of(files, found, sources)
    expected = dict(seal.files) if seal else dict(found.expected)
    bad = [p for p in expected if not _is_good(files, key, p, expected[p])]
    lost = []
    for path in bad:
        data = _fetched(key, path, expected[path], sources, spare)
        if data is None:
            lost.append(path)
        else:
            files.replace(f"{key}/{path}", data)
            report.restored.append(f"{key}/{path}")
    if seal is None and found.state != "unfinished" and not lost:
        lost = ["zarr.json"]  # nobody can say what it must be
    if lost and _replaced_by_another(files, key, sources):
        report.restored.append(str(key))
    elif lost:
        _drop(files, found, lost, report)
    elif seal is not None:
        _agree(files, key, seal, report)
    else:
        _drop_bad_receipts(files, found, report)


def _seal_of(files: Files, found: Examination, sources: Sequence[Files]) -> Seal | None:
    """The artifact's seal: its own, another store's over the same files, or the one its receipts make up."""
    key = found.key
    for place in (files, *sources):
        try:
            seal = read_seal(place, key)
        except (FileNotFoundError, CgdError):
            continue
        shared = {p: d for p, d in found.expected.items() if p in seal.files}
        if place is files or (shared and all(seal.files[p] == d for p, d in shared.items())):
            return seal
    if found.state == "unfinished":
        return None
    try:
        receipts = [read_receipt(files, key, shard) for shard in found.ranges]
        metadata = dict(receipts[0].metadata) or _metadata_of(files, key, receipts[0].files)
    except (FileNotFoundError, CgdError):
        return None
    return seal_of(key, metadata, receipts)


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
    except (FileNotFoundError, StoreError):
        return False


def _fetched(key: Key, path: str, digest: str, sources: Sequence[Files], spare: dict[str, bytes]) -> bytes | None:
    """The bytes with this SHA-256, wherever they are."""
    if digest in spare:
        return spare[digest]
    for place in sources:
        try:
            data = place.read(f"{key}/{path}")
        except (FileNotFoundError, StoreError):
            continue
        if sha256(data) == digest:
            return data
    return None


def _replaced_by_another(files: Files, key: Key, sources: Sequence[Files]) -> bool:
    """Whether a store has the artifact whole, though made anew with other bits; then it is taken as it is there."""
    for place in sources:
        if not place.exists(seal_path(key)) or examine(place, key).problems:
            continue
        remove_artifact(files, key)
        copy_artifact(place, files, key)
        return True
    return False


def _drop(files: Files, found: Examination, lost: Sequence[str], report: Repair) -> None:
    """Take the seal away first, so that at no moment something sealed is not whole."""
    key = found.key
    report.command = _command(files, key)
    shards = sorted({shard_of(path) for path in lost})
    if key.kind not in layout.ROWWISE or any(path.endswith("zarr.json") for path in lost):
        remove_artifact(files, key)
        report.dropped.append(str(key))
        return
    files.remove(seal_path(key))
    _drop_bad_receipts(files, found, report)
    for shard in shards:
        files.remove(receipt_path(key, shard))
        for path in found.expected:
            if "/c/" in path and shard_of(path) == shard:
                files.remove(f"{key}/{path}")
        report.dropped.append(f"{key}{rows_text(found.ranges[shard])}")


def _drop_bad_receipts(files: Files, found: Examination, report: Repair) -> None:
    """Shards of an unsealed artifact whose receipt cannot be read are made again."""
    folder = f"{layout.RECEIPTS}/{found.key}"
    for problem in found.problems:
        if problem.path.startswith(f"{folder}/") and files.exists(problem.path):
            shard = int(problem.path.rpartition("/")[2].removesuffix(".json"))
            files.remove(problem.path)
            for path in files.walk(str(found.key)):
                inside = path.removeprefix(f"{found.key}/")
                if "/c/" in inside and shard_of(inside) == shard:
                    files.remove(path)
            report.command = report.command or _command(files, found.key)
            report.dropped.append(f"{found.key}{rows_text(found.ranges[shard]) if shard in found.ranges else ''}")


def _agree(files: Files, key: Key, seal: Seal, report: Repair) -> None:
    """Write the seal and the receipts that belong to these files, where others stand, and remove what is no part."""
    ranges = examine(files, key).ranges
    texts = {seal_path(key): seal.text()} | {
        receipt_path(key, receipt.shard): receipt.text() for receipt in receipts_of(seal, ranges)
    }
    bad = {problem.path for problem in examine(files, key).problems}
    for path in sorted(bad):
        if path in texts:
            files.replace(path, texts[path])
            report.restored.append(path)
        else:
            files.remove(path)
            report.dropped.append(path)


def remove_artifact(files: Files, key: Key) -> None:
    """Everything of an artifact: its seal first, its metadata last."""
    files.remove(seal_path(key))
    for name in files.children(f"{layout.RECEIPTS}/{key}"):
        files.remove(f"{layout.RECEIPTS}/{key}/{name}")
    for name in files.children(f"{layout.PROVENANCE}/{key}"):
        files.remove(f"{layout.PROVENANCE}/{key}/{name}")
    for path in sorted(files.walk(str(key)), key=lambda p: p.endswith("zarr.json")):
        files.remove(path)


def _command(files: Files, key: Key) -> str:
    """The command that made an artifact, as its provenance has it."""
    for record in reversed(provenance.read(files, key)):
        if record.get("command"):
            return str(record["command"])
    return RECOMPUTE.get(key.kind, "the command that made it")
