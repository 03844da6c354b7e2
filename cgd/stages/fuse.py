"""Combine stored teachers into training targets, an epoch ahead, in a process of its own and without torch."""

from __future__ import annotations

import dataclasses
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cgd import registry
from cgd.data.sampling import (
    append_unlabelled,
    class_batches,
    epoch_generator,
    image_pairs,
    label_classes,
    label_numbers,
    label_pairs,
    single_images,
    some_labels,
    some_of_each,
)
from cgd.engines import Engine, Work, Worker
from cgd.engines.local import LOCAL
from cgd.errors import InputError, StoreError
from cgd.methods import Method
from cgd.retrieval.vectors import combine_scales, to_single
from cgd.stages.sight import Sight, sight
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.types import Batch, Codebook, Key, Target

CHECKED_AT_ONCE = 256  # rows; so many stay in a core's cache


@dataclass(frozen=True)
class TargetPlan:
    """All that determines every epoch's batches and targets; small enough to send to another process.

    `teachers` holds, per teacher, the key of its vectors for each number in `views`: whitened, or embeddings as they
    came. `labels` are there where pairs are of images with one label, or where the method asks for them; batches by
    class use a share `labelled` of them, and a share `unlabelled` of the batch is appended to it. `withheld` are rows
    not to train on. With `groups`, of the images' videos, an epoch sees one image of each. `maps` are
    teachers' feature maps by their kind, in the order in which a student gives its own.
    """

    store: tuple[str, ...]
    teachers: tuple[tuple[Key, ...], ...]
    views: tuple[int, ...]
    labels: tuple[str, ...] | None
    method: str
    method_config: Any
    fusion: str
    batch_pairs: int
    seed: int
    codebook: Key | None = None
    withheld: tuple[int, ...] = ()
    images_per_class: int = 8
    labelled: float = 1.0
    unlabelled: float = 0.0
    groups: tuple[str, ...] | None = None
    maps: tuple[tuple[str, tuple[Key, ...]], ...] = ()

    @property
    def vectors(self) -> tuple[tuple[Key, ...], ...]:
        """All that is read for training: teachers' vectors, then their feature maps."""
        return (*self.teachers, *(keys for _, keys in self.maps))

    @property
    def numbers(self) -> np.ndarray | None:
        """(N,) the label that each image is trained with, where the method asks for it; -1 of none."""
        if self.labels is None or not registry.find("cgd.methods", self.method).needs.labels:
            return None
        return some_labels(label_numbers(self.labels), self.labelled, self.seed)

    def open_store(self, *, write: bool = False) -> FeatureStore:
        """The store of the URL `store` begins with, the others behind it."""
        return FeatureStore.open(self.store[0], write=write, upstream=self.store[1:])


def make_method(
    name: str, config: Any, fusion: str, codebook: Codebook | None = None, labels: Sequence[str] = ()
) -> Method:
    """The method called `name` with its settings and its fusion, of the kind it takes.

    `codebook` and `labels`, of all images, are for those that need them.
    """
    kind = registry.find("cgd.methods", name)
    combine = registry.find("cgd.fusion", fusion)
    wanted = kind.needs.fusion
    if wanted not in (None, combine.combines):
        fitting = [n for n in registry.names("cgd.fusion") if registry.find("cgd.fusion", n).combines == wanted]
        raise InputError(f"the method {name} combines {wanted}, '{fusion}' does not: use {' or '.join(fitting)}.")
    method: Method = kind(config, combine, codebook)
    if kind.needs.classes:
        method = dataclasses.replace(method, classes=label_classes(labels))  # type: ignore[type-var]
    return method


def method_of(plan: TargetPlan) -> Method:
    """The plan's method, with its codebook read from the store."""
    codebook = None if plan.codebook is None else read_codebook(plan.open_store(), plan.codebook)
    return make_method(plan.method, plan.method_config, plan.fusion, codebook, plan.labels or ())


def read_codebook(store: FeatureStore, key: Key) -> Codebook:
    """A stored codebook as a value."""
    artifact = store.get(key)
    return Codebook(artifact.read("centroids"), artifact.read("rotations") if "rotations" in artifact.arrays else None)


def epoch_batches(plan: TargetPlan, epoch: int) -> list[Batch]:
    """The batches of an epoch, of what the method asks for; pairs are by label where the plan has labels."""
    generator = epoch_generator(plan.seed, epoch)
    usable = usable_rows(plan.open_store(), plan.vectors)
    usable[list(plan.withheld)] = False
    if plan.groups is not None:
        frames = np.random.default_rng(np.random.SeedSequence([plan.seed, epoch, 10]))
        usable = some_of_each(plan.groups, usable, 1, frames)
    needs = registry.find("cgd.methods", plan.method).needs
    numbers = plan.numbers
    if needs.classes and numbers is not None:
        usable &= numbers >= 0  # an image of no class has no target
    drawn = usable, plan.views, plan.batch_pairs
    batches: Iterable[Batch]
    if needs.batches == "classes":
        assert numbers is not None, "who draws by class asks for labels"
        batches = class_batches(numbers, *drawn, plan.images_per_class, generator)
        if extra := round(plan.unlabelled * plan.batch_pairs):
            others = np.random.default_rng(np.random.SeedSequence([plan.seed, epoch, 9]))
            rows = np.flatnonzero(usable & (numbers < 0))
            batches = append_unlabelled(list(batches), rows, plan.views, extra, others)
    elif needs.batches == "images":
        batches = single_images(*drawn, generator)
    elif plan.labels is not None:
        batches = label_pairs(plan.labels, *drawn, generator)
    else:
        batches = image_pairs(*drawn, generator)
    if numbers is None:
        return list(batches)
    return [dataclasses.replace(batch, labels=numbers[batch.rows]) for batch in batches]


def epoch_targets(plan: TargetPlan, epoch: int) -> tuple[list[Batch], list[Target]]:
    """Batches and targets of an epoch, by one sequential pass over each teacher's shards."""
    store = plan.open_store()
    batches = epoch_batches(plan, epoch)
    rows = np.concatenate([b.rows for b in batches])  # (P, V)
    views = np.concatenate([b.views for b in batches])
    method = method_of(plan)
    teachers = plan.teachers if method.needs.teachers else ()
    vectors = [gather_views(store, keys, plan.views, rows, views) for keys in teachers]
    maps = {kind: gather_views(store, keys, plan.views, rows, views) for kind, keys in plan.maps}
    generator = np.random.default_rng(np.random.SeedSequence([plan.seed, epoch, 1]))
    targets: list[Target] = []
    start = 0
    # On products this small more threads gain little, and where cores are busy they wait for each other.
    with threadpool_limits(1, "blas"):
        for batch in batches:
            part = slice(start, start + len(batch))
            target = method.target([to_single(v[part]) for v in vectors], batch, generator)
            targets.append({**target, **{kind: to_single(m[part]) for kind, m in maps.items()}})
            start += len(batch)
    return batches, targets


def trained_rows(plan: TargetPlan) -> np.ndarray:
    """(N,) bool: the images that batches are drawn from, which is what teachers had to look at for this plan."""
    rows = usable_rows(plan.open_store(), plan.vectors)
    rows[list(plan.withheld)] = False
    needs = registry.find("cgd.methods", plan.method).needs
    if needs.classes or (needs.batches == "classes" and not plan.unlabelled):
        assert plan.numbers is not None, "who draws by class asks for labels"
        rows &= plan.numbers >= 0
    elif needs.batches == "pairs" and plan.labels is not None:
        _, owner, counts = np.unique(np.asarray(plan.labels)[rows], return_inverse=True, return_counts=True)
        rows[rows] = counts[owner] >= 2  # one alone has no pair
    return rows


def usable_rows(store: FeatureStore, teachers: Sequence[Sequence[Key]]) -> np.ndarray:
    """(N,) bool: images that every teacher could read."""
    first, *others = (key for keys in teachers for key in keys)
    rows = np.array(store.get(first).read("valid"))  # a copy: what is read cannot be written to
    for key in others:  # one at a time: of 10^9 images each takes a gigabyte
        rows &= store.get(key).read("valid")
    return rows


def gather_views(
    store: FeatureStore, keys: Sequence[Key], numbers: Sequence[int], rows: np.ndarray, views: np.ndarray
) -> np.ndarray:
    """One teacher's vectors (P, V, D) for `rows` (P, V) under `views` (P, V), in the store's precision."""
    gathered: np.ndarray | None = None
    for number, key in zip(numbers, keys, strict=True):
        here = np.flatnonzero(views.ravel() == number)
        found = gather_vectors(store.get(key), rows.ravel()[here])
        if len(here) == rows.size:  # of one view nothing has to be put together
            return found.reshape(*rows.shape, -1)
        if gathered is None:
            gathered = np.empty((rows.size, found.shape[-1]), found.dtype)
        gathered[here] = found
    assert gathered is not None
    return gathered.reshape(*rows.shape, -1)


def gather_vectors(artifact: Artifact, rows: np.ndarray) -> np.ndarray:
    """Vectors (M, D) of `rows` (M,): whitened ones as stored; of raw ones the scales are joined. Refuses NaN."""
    found = artifact.gather("vectors", rows)
    if found.ndim == 3:  # raw embeddings, (M, S, D)
        found = found[:, 0] if found.shape[1] == 1 else combine_scales(found, artifact.attributes["input"]["combine"])
    for start in range(0, len(found), CHECKED_AT_ONCE):
        broken = ~_finite(found[start : start + CHECKED_AT_ONCE])
        if broken.any():
            row = int(rows[start + np.argmax(broken)])
            raise StoreError(
                f"{artifact.key} holds values that are not finite in row {row}, an image it says is valid: extract or "
                "whiten it anew into another store."
            )
    return found


def _finite(vectors: np.ndarray) -> np.ndarray:
    """(M,) bool: which `vectors` (M, D) hold numbers only; of half precision several times as fast as `isfinite`."""
    if vectors.dtype != np.float16:
        return np.isfinite(vectors).all(axis=1)
    return (vectors.view(np.uint16) & 0x7FFF).max(axis=1, initial=0) < 0x7C00  # the exponent of infinity and NaN


@dataclass(frozen=True)
class _Building(Work["_Builder"]):
    """Targets of epochs, into `folder` where whoever asks is on the same machine."""

    plan: TargetPlan
    folder: Path
    sight: Sight

    def check(self) -> None:
        self.sight.check()

    def open(self, worker: Worker) -> _Builder:
        return _Builder(self.plan, None if worker.elsewhere else self.folder)

    def abandon(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Builder:
    plan: TargetPlan
    folder: Path | None

    def build(self, epoch: int) -> bytes:
        """Targets of an epoch as a `.npz` file: in the folder, or sent where the folder is not here."""
        file: Any = io.BytesIO() if self.folder is None else self.folder / _name(epoch)
        _build(self.plan, epoch, file)
        return file.getvalue() if self.folder is None else b""


def _name(epoch: int) -> str:
    return f"epoch-{epoch}.npz"


class EpochTargets(AbstractContextManager["EpochTargets"]):
    """Targets of epochs up to `last`, built while earlier ones are used: one by each worker of the engine.

    With one worker at most two epochs are on disk.
    """

    def __init__(self, plan: TargetPlan, engine: Engine = LOCAL) -> None:
        self.plan = plan
        with ExitStack() as ends:
            folder = ends.enter_context(tempfile.TemporaryDirectory(prefix="cgd-targets-"))
            self._folder = Path(folder)
            seen = ends.enter_context(sight(plan.open_store(write=engine.elsewhere), engine))
            self._pool = ends.enter_context(engine.start(_Building(plan, self._folder, seen), apart=True))
            self._ends = ends.pop_all()
        self._building: Iterator[tuple[int, bytes]] = iter(())
        self._following = -1  # what will be built next, unless another epoch is asked for
        self._built: set[int] = set()

    def epoch(self, epoch: int, last: int) -> tuple[list[Batch], Iterator[Target]]:
        """Batches and their targets; those after it, up to the `last`, are built meanwhile."""
        path = self._folder / _name(epoch)
        try:
            if epoch not in self._built and epoch != self._following:
                self._building = self._pool.run(_Builder.build, range(epoch, last + 1))
            while epoch not in self._built:
                found, sent = next(self._building)
                if sent:
                    (self._folder / _name(found)).write_bytes(sent)
                self._built.add(found)
        except OSError as error:
            raise StoreError(
                f"cannot write the targets of epoch {epoch + 1} in {self._folder}: {error.strerror or error}; "
                "free space there (or set TMPDIR) and repeat the same command, it continues."
            ) from error
        self._built.remove(epoch)
        self._following = epoch + 1
        (self._folder / _name(epoch - 1)).unlink(missing_ok=True)
        with np.load(path) as saved:
            sizes = saved["sizes"]
            cuts = np.cumsum(sizes)[:-1]
            batches = [
                Batch(r, v) for r, v in zip(np.split(saved["rows"], cuts), np.split(saved["views"], cuts), strict=True)
            ]
        return batches, self._targets(path, len(batches))

    def _targets(self, path: Path, count: int) -> Iterator[Target]:
        with np.load(path) as saved:
            names = [n.removeprefix("0.") for n in saved.files if n.startswith("0.")]
            for i in range(count):
                yield {name: saved[f"{i}.{name}"] for name in names}

    def __exit__(self, *_: object) -> None:
        self._ends.close()


def _build(plan: TargetPlan, epoch: int, file: Path | io.BytesIO) -> None:
    batches, targets = epoch_targets(plan, epoch)
    arrays = {f"{i}.{name}": value for i, target in enumerate(targets) for name, value in target.items()}
    save: Any = np.savez  # its stub takes a dictionary of arrays for its flag
    save(
        file,
        sizes=np.array([len(b) for b in batches]),
        rows=np.concatenate([b.rows for b in batches]),
        views=np.concatenate([b.views for b in batches]),
        **arrays,
    )
