"""Combine whitened teachers into training targets, an epoch ahead, in a process of its own and without torch."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd import registry
from cgd.data.sampling import epoch_generator, image_pairs, label_pairs
from cgd.errors import StoreError
from cgd.methods import Method
from cgd.store.feature_store import FeatureStore
from cgd.types import Batch, Key, Target


@dataclass(frozen=True)
class TargetPlan:
    """All that determines every epoch's batches and targets; small enough to send to another process.

    `teachers` holds, per teacher, the key of its vectors for each number in `views`.
    """

    store: str
    teachers: tuple[tuple[Key, ...], ...]
    views: tuple[int, ...]
    labels: tuple[str, ...] | None
    method: str
    method_config: Any
    fusion: str
    batch_pairs: int
    seed: int


def make_method(name: str, config: Any, fusion: str) -> Method:
    """The method called `name` with its settings and its fusion."""
    method: Method = registry.find("cgd.methods", name)(config, registry.find("cgd.fusion", fusion))
    return method


def epoch_batches(plan: TargetPlan, usable: np.ndarray, epoch: int) -> list[Batch]:
    """The batches of an epoch; pairs by label where the plan has labels, else two views of an image."""
    generator = epoch_generator(plan.seed, epoch)
    if plan.labels is not None:
        return list(label_pairs(plan.labels, usable, plan.views, plan.batch_pairs, generator))
    return list(image_pairs(usable, plan.views, plan.batch_pairs, generator))


def epoch_targets(plan: TargetPlan, epoch: int) -> tuple[list[Batch], list[Target]]:
    """Batches and targets of an epoch, by one sequential pass over each teacher's shards."""
    store = FeatureStore.open(plan.store)
    batches = epoch_batches(plan, usable_rows(store, plan.teachers), epoch)
    rows = np.concatenate([b.rows for b in batches])  # (P, 2)
    views = np.concatenate([b.views for b in batches])
    vectors = [_gather(store, keys, plan.views, rows, views) for keys in plan.teachers]
    method = make_method(plan.method, plan.method_config, plan.fusion)
    generator = np.random.default_rng(np.random.SeedSequence([plan.seed, epoch, 1]))
    targets, start = [], 0
    for batch in batches:
        part = slice(start, start + len(batch))
        targets.append(method.target([v[part].astype(np.float32) for v in vectors], batch, generator))
        start += len(batch)
    return batches, targets


def usable_rows(store: FeatureStore, teachers: Sequence[Sequence[Key]]) -> np.ndarray:
    """(N,) bool: images that every teacher could read."""
    return np.logical_and.reduce([store.get(key).read("valid") for keys in teachers for key in keys])


def _gather(
    store: FeatureStore, keys: Sequence[Key], numbers: Sequence[int], rows: np.ndarray, views: np.ndarray
) -> np.ndarray:
    """One teacher's vectors (P, 2, D) for `rows` (P, 2) under `views` (P, 2), in the store's precision."""
    gathered: np.ndarray | None = None
    for number, key in zip(numbers, keys, strict=True):
        here = views == number
        found = store.get(key).gather("vectors", rows[here])
        if gathered is None:
            gathered = np.empty((*rows.shape, found.shape[-1]), found.dtype)
        gathered[here] = found
    assert gathered is not None
    return gathered


class EpochTargets(AbstractContextManager["EpochTargets"]):
    """Targets of consecutive epochs, each built while the one before is used; at most two are on disk."""

    def __init__(self, plan: TargetPlan) -> None:
        self.plan = plan
        self._folder = tempfile.TemporaryDirectory(prefix="cgd-targets-")
        self._pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=_live_and_die_with_parent,
            initargs=(self._folder.name,),
        )
        self._building: dict[int, Future[Path]] = {}

    def epoch(self, epoch: int, last: int) -> tuple[list[Batch], Iterator[Target]]:
        """Batches and their targets; begins to build the next epoch unless `epoch` is the `last`."""
        try:
            path = self._start(epoch).result()
        except (OSError, BrokenProcessPool) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StoreError(
                f"cannot write the targets of epoch {epoch + 1} in {self._folder.name}: {reason}; "
                "free space there (or set TMPDIR) and repeat the same command, it continues."
            ) from error
        del self._building[epoch]
        if epoch < last:
            self._start(epoch + 1)
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
        path.unlink()

    def _start(self, epoch: int) -> Future[Path]:
        if epoch not in self._building:
            path = Path(self._folder.name) / f"epoch-{epoch}.npz"
            self._building[epoch] = self._pool.submit(_build, self.plan, epoch, path)
        return self._building[epoch]

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()


def _live_and_die_with_parent(folder: str) -> None:
    """Leave Ctrl-C to the training process; when that is killed, remove its targets and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _build(plan: TargetPlan, epoch: int, path: Path) -> Path:
    batches, targets = epoch_targets(plan, epoch)
    arrays = {f"{i}.{name}": value for i, target in enumerate(targets) for name, value in target.items()}
    save: Any = np.savez  # its stub takes a dictionary of arrays for its flag
    save(
        path,
        sizes=np.array([len(b) for b in batches]),
        rows=np.concatenate([b.rows for b in batches]),
        views=np.concatenate([b.views for b in batches]),
        **arrays,
    )
    return path
