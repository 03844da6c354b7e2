"""Random damage to copies of a store: every case is found and named, nothing wrong is read, and repair mends it.

`make faults` tries a thousand, `make test` a few of each kind; counts are printed with `-s`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from corruptions import CUT, HARMS, IMAGES, Made, Place, Tree, is_shard, linked, make, tree, write

from cgd.errors import CgdError
from cgd.store import catalog, layout
from cgd.store.feature_store import FeatureStore, keys_in
from cgd.store.files import LocalFiles
from cgd.store.repair import repair
from cgd.store.verify import Problem, store_problems, verify
from cgd.types import Key

FULL = os.environ.get("CGD_FAULTS") == "full"
CASES = 1000 if FULL else 60
SEED = 6


@dataclass
class Counts:
    """What was found in the cases of one kind of corruption."""

    cases: int = 0
    detected: int = 0
    read: int = 0
    refused: int = 0
    wrong: int = 0
    by_source: int = 0
    by_dropping: int = 0
    dropped: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """The pristine store, its files, what it was made from, and the files of stores with other contents."""

    root: Path
    files: Tree
    made: list[Made]
    others: list[Tree]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # power is not cut here


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def pristine(folder: Path) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        made = make(folder / "pristine", 0)
        make(folder / "numbers", 1)
        make(folder / "cut", 0, shard_rows=2)
    others = [tree(folder / name) for name in ("numbers", "cut")]
    return Store(folder / "pristine", tree(folder / "pristine"), made, others)


def problems(root: Path, keys: list[Key] | None = None) -> list[Problem]:
    return [problem for _, found in verify(LocalFiles(root), keys) for problem in found]


def shares(count: int) -> dict[str, int]:
    """How many cases each kind of corruption gets."""
    return {name: count // len(HARMS) + (n < count % len(HARMS)) for n, name in enumerate(HARMS)}


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize("kind", HARMS)
def test_corruptions_are_found_never_read_and_mended(kind, pristine, folder):
    counts = Counts()
    for number in range(shares(CASES)[kind]):
        draw = np.random.default_rng([SEED, list(HARMS).index(kind), number])
        with tempfile.TemporaryDirectory(dir=folder) as name:
            root = linked(pristine.root, Path(name) / "harmed")
            changed: set[str] = set()
            while not changed:  # chance may put a file where it stood
                HARMS[kind](Place(root, pristine.files, pristine.others, draw))
                changed = differing(tree(root), pristine.files)
            counts.cases += 1
            try:
                look(root, pristine, changed, counts)
                mend_from_source(root, pristine, counts)
                mend_by_dropping(root, pristine, changed, counts)
            except AssertionError as error:
                counts.failures.append(f"case {number}, {sorted(changed)[:3]}: {error}")
    report = {name: value for name, value in vars(counts).items() if name != "failures"}
    print(f"{kind:26}" + ", ".join(f"{name} {value}" for name, value in report.items()), *counts.failures, sep="\n  ")
    assert counts.failures == []
    assert counts.cases == counts.detected == counts.by_source == counts.by_dropping
    assert counts.wrong == 0


def differing(one: Tree, two: Tree) -> set[str]:
    return {path for path in one.keys() | two.keys() if one.get(path) != two.get(path)}


def look(root: Path, pristine: Store, changed: set[str], counts: Counts) -> None:
    """Verify names what changed, and what is read is right or refused."""
    found = problems(root)
    unnamed = [path for path in changed if not is_named(path, pristine, changed, found)]
    assert not unnamed, f"not named: {unnamed[:5]}; found {[str(p) for p in found][:5]}"
    counts.detected += 1
    touched = {key_of(path) for path in changed}
    for made in pristine.made:
        if str(made.key) in touched or None in touched:
            compare(root, made, counts, may_refuse=True)
        elif made.key.kind == "whitening":  # of what is untouched some is enough: everything is read
            compare(root, made, counts, may_refuse=False)


def key_of(path: str) -> str | None:
    """The artifact to which a file belongs, if any."""
    parts = path.removeprefix(f"{layout.RECEIPTS}/").removeprefix(f"{layout.SEALS}/").split("/")
    name = parts[1].removesuffix(".json") if len(parts) > 1 else ""
    return f"{parts[0]}/{name}" if Key.is_name(name) else None


def is_named(path: str, pristine: Store, changed: set[str], found: list[Problem]) -> bool:
    """Whether a problem names the file, and its rows if it is a shard of rows.

    Where the seal itself or another proof of what must stand there is damaged, a problem of the artifact is enough.
    """
    key = key_of(path)
    if key is None:
        return any(p.path == path for p in found)
    sealed = f"{layout.SEALS}/{key}.json" in pristine.files
    proofs = {p for p in changed if key_of(p) == key and p.startswith(".cgd/")}
    if f"{layout.SEALS}/{key}.json" in proofs or (not sealed and proofs):
        return any(key in p.path for p in found)
    named = [p for p in found if p.path == path]
    kind, number = path.split("/")[0], path.partition("/c/")[2].split("/")[0]
    if kind not in layout.ROWWISE or not is_shard(path) or path not in pristine.files:
        return bool(named)
    rows = range(int(number) * CUT, min(int(number) * CUT + CUT, IMAGES))
    return any(p.rows == rows and f"rows {rows.start} to {rows.stop - 1}" in str(p) for p in named)


def compare(root: Path, made: Made, counts: Counts, *, may_refuse: bool) -> None:
    """Every way to read an artifact: as it was written, or refused in one sentence."""

    def tried(read, expected):
        try:
            value = read()
        except CgdError as error:
            counts.refused += 1
            if not may_refuse:
                counts.failures.append(f"{made.key} is untouched, but: {error}")
            return None
        counts.read += 1
        if expected is not None and not same(value, expected):
            counts.wrong += 1
        return value

    if not made.sealed:
        for name, expected in made.arrays.items():
            tried(lambda n=name, e=expected: finished(root, made.key, n, e), True)
        return
    store = tried(lambda: FeatureStore.open(root), None)
    if store is None or not (root / layout.SEALS / f"{made.key}.json").exists():
        return
    if may_refuse:  # as it does where another one of the kind is damaged
        tried(lambda: made.key in store.find(made.key.kind, **made.identity.settings), True)
    artifact = tried(lambda: store.get(made.key), None)
    if artifact is None:
        return
    assert artifact.arrays == sorted(made.arrays)
    assert (artifact.settings, artifact.attributes["label"]) == (made.identity.settings, "é")
    assert [str(key) for key in artifact.inputs] == list(made.identity.inputs)
    rows = np.array([7, 0, 4, 4])
    for name, expected in made.arrays.items():
        tried(lambda n=name: artifact.read(n), expected)
        if made.key.kind in layout.ROWWISE:
            tried(lambda n=name: artifact.gather(n, rows), expected[rows])
    for name, data in made.blobs.items():
        tried(lambda n=name: artifact.blob(n), data)


def finished(root: Path, key: Key, array: str, expected: np.ndarray) -> bool:
    """Whether the finished shards of an artifact that is being written hold the right rows."""
    store = FeatureStore.open(root)
    return all(same(read(array), expected[r.start : r.stop]) for r, read in store.finished_shards(key))


def same(one: object, two: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        equal = one.tolist() == two.tolist() if two.dtype == object else one.tobytes() == two.tobytes()
        return one.dtype == two.dtype and one.shape == two.shape and equal
    return one == two


def mend_from_source(root: Path, pristine: Store, counts: Counts) -> None:
    """A store that has everything gives back what is damaged."""
    mended = linked(root, root.with_name("mended"))
    repair(LocalFiles(mended, write=True), None, [LocalFiles(pristine.root)])
    other = differing(tree(mended), pristine.files)  # which verifies
    assert not other, f"repaired to other bytes: {sorted(other)[:5]}"
    counts.by_source += 1


def mend_by_dropping(root: Path, pristine: Store, changed: set[str], counts: Counts) -> None:
    """Without another store what is damaged goes, visibly; what is left is right, and can be completed."""
    done = repair(LocalFiles(root, write=True), None)
    dropped = [what for each in done for what in each.dropped]
    assert len(dropped) == len(set(dropped)), f"told twice: {dropped[:5]}"
    counts.dropped += len(dropped)
    files = LocalFiles(root)
    touched = [key for key in keys_in(files) if str(key) in {key_of(path) for path in changed}]
    left = store_problems(files) + problems(root, touched)
    assert not left, f"dropped, but: {[str(p) for p in left][:3]}"
    left = {path: data for path, data in tree(root).items() if not path.startswith(f"{layout.LOST}/")}
    wrong = differing(left, pristine.files) & left.keys() - {catalog.PATH}
    # receipts of rows that were kept although their artifact's own metadata is lost do not name it
    wrong -= {path for path in wrong if path.startswith(layout.RECEIPTS) and f"{key_of(path)}/zarr.json" not in left}
    assert not wrong, f"dropped, but there are wrong bytes in {sorted(wrong)[:5]}"
    write(root, pristine.made)
    catalog.publish(LocalFiles(root, write=True))
    left = {path: data for path, data in tree(root).items() if not path.startswith(f"{layout.LOST}/")}
    other = differing(left, pristine.files) - {catalog.PATH}  # which names the provenance
    # only sealing completes the receipts of an artifact that lost its own metadata
    other -= {p for p in other if p.startswith(layout.RECEIPTS) and f"{layout.SEALS}/{key_of(p)}.json" not in left}
    assert not other, f"completed to other bytes: {sorted(other)[:5]}"
    counts.by_dropping += 1


def test_the_store_holds_every_kind_and_verifies(pristine):
    assert {made.key.kind for made in pristine.made} == set(layout.LAYOUT)
    assert len(pristine.files) > 200
    assert problems(pristine.root) == []


def test_a_missing_seal_is_told_where_all_shards_are_there(pristine, folder):
    root = linked(pristine.root, folder / "unsealed")
    made = next(m for m in pristine.made if m.key.kind == "embeddings")
    (root / layout.SEALS / f"{made.key}.json").unlink()
    (seal, named) = sorted(problems(root), key=lambda p: p.path, reverse=True)
    assert seal.path == f"{layout.SEALS}/{made.key}.json"
    assert "every shard is there" in seal.what
    assert (named.path, str(made.key) in named.what) == (catalog.PATH, True)
    (done, *_) = repair(LocalFiles(root, write=True), [made.key])
    assert done.restored == [seal.path]
    assert differing(tree(root), pristine.files) == set()


def test_a_foreign_catalog_is_found(pristine, folder):
    root = linked(pristine.root, folder / "listed")
    gone = next(m for m in pristine.made if m.key.kind == "scores")
    shutil.rmtree(root / str(gone.key))
    shutil.rmtree(root / layout.RECEIPTS / str(gone.key))
    (root / layout.SEALS / f"{gone.key}.json").unlink()
    (problem,) = problems(root)
    assert problem.path == catalog.PATH
    assert str(gone.key) in problem.what
    repair(LocalFiles(root, write=True), None)
    assert problems(root) == []
