"""One epoch's targets from a store of GLDv2-clean's size, beside a loop that only reads and checksums its shards.

Usage: python benchmarks/epoch_targets.py [--images N] [--labels N] [--dim D] [--rounds N] [--folder DIR] [--json]

The store holds three teachers' whitened vectors in half precision, drawn (4.9 GB at 1,580,470 x 512), and is removed in
the end; every label has two images or more, so an epoch has a pair of each. Every measurement is a process of its own,
so that its peak memory is its own; times are taken after imports; competitors take turns.

write, copy, verify   a teacher through `Writer`; its files by `shutil.copyfile` and fsync; all of it read by `verify`
ours                  `cgd.stages.fuse.epoch_targets`: whiten-mtd, max-min, batches of 256 pairs
read, crc             every shard of the vectors read and its SHA-256 taken, as the package does; or its crc32c only

Cold means that POSIX_FADV_DONTNEED let go of every page of every file just before, which needs no rights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import option, peak_rss_mb, report

if TYPE_CHECKING:  # what only reads files shall not carry NumPy and Zarr
    from cgd.store.keys import Identity

TEACHERS = 3
Found = tuple[float, Any]


@dataclass(frozen=True)
class Job:
    """Where the store is, how large, and which of its teachers is meant, where one is."""

    store: Path
    images: int
    labels: int
    dim: int
    teacher: int = 0


def identity_of(teacher: int) -> Identity:
    from cgd.store.keys import identify

    settings = {"dataset": "drawn", "split": None, "view": "fixed", "teacher": teacher}
    return identify("whitened", ["drawn", f"teacher{teacher}", "fixed"], 1, settings)


# What is measured, each in a process of its own; seconds and what else is told


def write(job: Job) -> Found:
    """A teacher's vectors, shard by shard; drawing them is not timed. Told: bytes."""
    import numpy as np

    from cgd.store.feature_store import FeatureStore

    identity = identity_of(job.teacher)
    shapes = {
        "ids": (job.images,),
        "vectors": (job.images, job.dim),
        "valid": (job.images,),
        "digests": (job.images, 32),
    }
    started = time.perf_counter()
    writer = FeatureStore.open(job.store, write=True).writer(
        identity, shapes, attributes={"label": f"teacher{job.teacher}"}
    )
    seconds = time.perf_counter() - started
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        generator = np.random.default_rng([job.teacher, shard])
        blocks = {
            "ids": np.array([f"{row:016x}" for row in rows], object),
            "vectors": generator.standard_normal((len(rows), job.dim), np.float32).astype(np.float16),
            "valid": np.ones(len(rows), bool),
            "digests": np.zeros((len(rows), 32), np.uint8),
        }
        started = time.perf_counter()
        writer.write(shard, blocks)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    writer.seal()
    seconds += time.perf_counter() - started
    return seconds, sum(path.stat().st_size for path in files_of(job.store, job.teacher))


def copy(job: Job) -> Found:
    """The files of a teacher into another folder, each on the disk before the next one; removed after."""
    files, target = files_of(job.store, job.teacher), job.store.parent / "copy"
    target.mkdir()
    started = time.perf_counter()
    for number, path in enumerate(files):
        shutil.copyfile(path, target / str(number))
        handle = os.open(target / str(number), os.O_RDWR)
        os.fsync(handle)
        os.close(handle)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds, None


def verify(job: Job) -> Found:
    from cgd.store.feature_store import FeatureStore

    opened = FeatureStore.open(job.store)
    started = time.perf_counter()
    problems = [problem for _, found in opened.verify(identity_of(job.teacher).key) for problem in found]
    seconds = time.perf_counter() - started
    assert not problems, problems
    return seconds, None


def ours(job: Job) -> Found:
    """Told: pairs in the epoch, and a digest of all targets, which no round may change."""
    import numpy as np

    from cgd.config import WhitenMtdConfig
    from cgd.stages.fuse import TargetPlan, epoch_targets

    label_of = np.random.default_rng(0).permutation(job.images) % job.labels
    plan = TargetPlan(
        store=(str(job.store),),
        teachers=tuple((identity_of(teacher).key,) for teacher in range(TEACHERS)),
        views=(0,),
        labels=tuple(map(str, label_of.tolist())),
        method="whiten-mtd",
        method_config=WhitenMtdConfig(),
        fusion="max-min",
        batch_pairs=256,
        seed=0,
    )
    started = time.perf_counter()
    batches, targets = epoch_targets(plan, 0)
    seconds = time.perf_counter() - started
    digest = hashlib.sha256()
    for target in targets:
        for name in sorted(target):
            digest.update(target[name].tobytes())
    return seconds, {"pairs": sum(map(len, batches)), "digest": digest.hexdigest()}


def read(job: Job) -> Found:
    return reading(job.store, lambda data: hashlib.sha256(data).digest())


def crc(job: Job) -> Found:
    import google_crc32c

    return reading(job.store, google_crc32c.value)


def reading(store: Path, checksum: Callable[[bytes], Any]) -> Found:
    """One after the other, every shard of the vectors is read whole and its checksum taken."""
    shards = sorted(store.glob("whitened/*/vectors/c/*/0"))
    started = time.perf_counter()
    for path in shards:
        checksum(path.read_bytes())
    return time.perf_counter() - started, sum(path.stat().st_size for path in shards)


RUNS: dict[str, Callable[[Job], Found]] = {run.__name__: run for run in (write, copy, verify, ours, read, crc)}


# One run of all


def files_of(store: Path, teacher: int) -> list[Path]:
    return sorted(p for p in store.glob(f"whitened/drawn.teacher{teacher}.*/**/*") if p.is_file())


def forget(store: Path) -> None:
    """Let the operating system drop what it holds of the store's files; they are on the disk by now."""
    for path in store.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def alone(name: str, job: Job) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, *map(str, astuple(job))]
    found = dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    print(f"{name}: {found['seconds']:.2f} s, {found['peak_rss_mb']:.0f} MB", file=sys.stderr)
    return found


def over(runs: dict[str, list[dict[str, Any]]], above: str, below: str) -> float:
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs[above], runs[below], strict=True))


def rates(runs: dict[str, list[dict[str, Any]]], size: float) -> Iterator[tuple[str, float]]:
    """MB/s of each competitor for `size` bytes."""
    for name, found in runs.items():
        yield f"{name}_mb_per_s", size / 1e6 / statistics.median(r["seconds"] for r in found)


def measure(job: Job, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {"images": job.images, "labels": job.labels, "dim": job.dim, "teachers": TEACHERS}
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in ("write", "copy", "verify")}
    for teacher in range(TEACHERS):
        for name, found in kept.items():
            found.append(alone(name, replace(job, teacher=teacher)))
    seen: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for state in ("cold", "warm"):
        runs = seen[state] = {name: [] for name in ("ours", "read", "crc")}
        for number in range(rounds):
            print(f"{state}, round {number + 1} of {rounds}", file=sys.stderr)
            for name, found in runs.items():
                if state == "cold":
                    forget(job.store)
                found.append(alone(name, job))
    epochs = [run["found"] for runs in seen.values() for run in runs["ours"]]
    assert all(epoch == epochs[0] for epoch in epochs), epochs
    size = seen["warm"]["read"][0]["found"]
    result |= {"vector_bytes": size, "pairs": epochs[0]["pairs"]}
    result["ours_over_read"] = {state: over(runs, "ours", "read") for state, runs in seen.items()}
    result["ours_over_crc_read"] = {state: over(runs, "ours", "crc") for state, runs in seen.items()}
    result["peak_rss_mb"] = max(run["peak_rss_mb"] for runs in seen.values() for run in runs["ours"])
    result["write_over_copy"], result["verify_over_copy"] = over(kept, "write", "copy"), over(kept, "verify", "copy")
    result |= dict(rates(kept, kept["write"][0]["found"]))
    for state, runs in seen.items():
        for name, found in runs.items():
            result[f"{name}_seconds_{state}"] = statistics.median(run["seconds"] for run in found)
        result[f"read_mb_per_s_{state}"] = size / 1e6 / result[f"read_seconds_{state}"]
    result["write_peak_rss_mb"], result["verify_peak_rss_mb"] = (
        max(run["peak_rss_mb"] for run in kept[name]) for name in ("write", "verify")
    )
    return result


def main() -> None:
    if "--one" in sys.argv:
        name, store, *numbers = sys.argv[sys.argv.index("--one") + 1 :]
        seconds, found = RUNS[name](Job(Path(store), *map(int, numbers)))
        print(json.dumps({"seconds": seconds, "found": found, "peak_rss_mb": peak_rss_mb()}))
        return
    images, labels = int(option("--images", "1580470")), int(option("--labels", "81313"))
    dim, rounds = int(option("--dim", "512")), int(option("--rounds", "3"))
    with tempfile.TemporaryDirectory(prefix="cgd-bench-", dir=option("--folder", tempfile.gettempdir())) as folder:
        result = measure(Job(Path(folder) / "features.zarr", images, labels, dim), rounds)
    if "--json" not in sys.argv:  # a line of the table is one number
        for name in ("ours_over_read", "ours_over_crc_read"):
            result |= {f"{name}, {state}": value for state, value in result.pop(name).items()}
    report(f"targets of {result['pairs']:,} pairs of {images:,} x {dim} x {TEACHERS} teachers", result)


if __name__ == "__main__":
    main()
