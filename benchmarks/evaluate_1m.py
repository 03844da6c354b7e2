"""Scoring 70 queries in 4,993 + 1,000,000 vectors from a store: the published way, `cgd evaluate`'s, and the floor.

Usage: python benchmarks/evaluate_1m.py [--dims 512,2048] [--distractors N] [--rounds N] [--skip-random] [--json]

The ground truth is revisited Oxford's own (CGD_SHARED, by default ../shared); vectors are drawn so that positives lie
1.6 to 4.2 standard deviations above distractors, as in the fixtures of the parity tests. Each competitor runs in a
process of its own, so that its peak memory is its own; times are taken after imports; they take turns.

reference   single-precision gallery in memory, one product, a full argsort, the published loop over E, M and H
ours        `cgd.stages.evaluate` with stored descriptors; once more they are made from the stored embeddings (describe)
floor       reading the shards, half to single, the bare product; the faster of NumPy's threads and one per core
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from timing import option, peak_rss_mb, report_each

from cgd.config import EvaluateConfig
from cgd.data.groundtruth import read_ground_truth
from cgd.retrieval.metrics import average_precision, relevance
from cgd.retrieval.search import DotProducts
from cgd.retrieval.vectors import l2
from cgd.stages.descriptors import Member, RandomDistractors, computed, describe, open_gallery
from cgd.stages.evaluate import evaluate
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify, ids_digest
from cgd.types import Benchmark, ImageList, Key

SHARED = Path(os.environ.get("CGD_SHARED", Path(__file__).parents[2] / "shared"))
PROTOCOLS = ("easy", "medium", "hard")
RANDOM = (1_000_000, 10_000_000)


def benchmark_of(dim: int) -> Benchmark:
    known = read_ground_truth(SHARED / "data/revisitop/gnd_roxford5k.json")

    def images(split: str, names: tuple[str, ...]) -> ImageList:
        return ImageList(f"drawn{dim}", split, names, names)

    return Benchmark(f"drawn{dim}", images("gallery", known.gallery), images("query", known.queries), known.truth)


def distractor_list(dim: int, count: int) -> ImageList:
    ids = tuple(f"{n:07d}" for n in range(count))
    return ImageList(f"distractors{dim}", None, ids, ids)


# The store, written once


def write(store: FeatureStore, images: ImageList, dim: int, draw: Callable[[range], np.ndarray]) -> Key:
    """Embeddings of `images` in single precision, as an extraction leaves them."""
    settings = {"dataset": images.name, "split": images.split, "ids": ids_digest(images), "view": "fixed",
                "encoder": {"name": "drawn"}, "precision": "fp32"}  # fmt: skip
    spec = {"combine": "mean", "scales": [1.0], "size": 1024, "resize": "longest", "filter": "bilinear"}
    count = len(images)
    shapes = {"ids": (count,), "vectors": (count, 1, dim), "valid": (count,), "digests": (count, 32),
              "reasons": (count,)}  # fmt: skip
    identity = identify("embeddings", [images.title, "drawn", "fixed"], 1, settings)
    writer = store.writer(identity, shapes, attributes={"label": "drawn", "dim": dim, "input": spec})
    ids, empty = np.array(images.ids, object), np.array([""] * count, object)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        part = slice(rows.start, rows.stop)
        writer.write(shard, {"ids": ids[part], "vectors": draw(rows)[:, None], "valid": np.ones(len(rows), bool),
                             "digests": np.zeros((len(rows), 32), np.uint8), "reasons": empty[part]})  # fmt: skip
    writer.seal()
    return identity.key


def make_store(folder: Path, dim: int, count: int) -> None:
    store, benchmark = FeatureStore.open(folder, write=True), benchmark_of(dim)
    truth, lift = benchmark.truth, np.random.default_rng(1).uniform(0, 1, 70)
    assert truth is not None
    queries = l2(np.random.default_rng(2).standard_normal((70, dim), np.float32))
    gallery = np.random.default_rng(3).standard_normal((len(benchmark.gallery), dim), np.float32)
    for q in range(70):
        for rows, height in (
            (truth.easy[q], 2.6 + 1.6 * lift[q]),
            (truth.hard[q], 1.6 + 1.6 * lift[q]),
            (truth.junk[q], 2),
        ):
            gallery[rows] += np.float32(height) * queries[q]  # a standard deviation of the products is 1 here
    write(store, benchmark.queries, dim, lambda rows: queries[rows.start : rows.stop])
    write(store, benchmark.gallery, dim, lambda rows: l2(gallery[rows.start : rows.stop]))
    write(store, distractor_list(dim, count), dim, lambda rows: l2(
        np.random.default_rng([4, rows.start]).standard_normal((len(rows), dim), np.float32)))  # fmt: skip


def opened(folder: Path, dim: int) -> tuple[FeatureStore, Benchmark, Member]:
    store, benchmark = FeatureStore.open(folder, write=True), benchmark_of(dim)
    gallery, queries = (store.find("embeddings", dataset=f"drawn{dim}", split=s)[0] for s in ("gallery", "query"))
    others = tuple(store.find("embeddings", dataset=f"distractors{dim}"))
    return store, benchmark, Member("drawn", gallery, queries, None, others)


# The competitors, each in a process of its own; seconds and what it found


def ours(folder: Path, dim: int, random: int = 0) -> tuple[float, Any]:
    store, benchmark, member = opened(folder, dim)
    forget_scores(folder)
    drawn = RandomDistractors(random) if random else None
    if random:
        member = Member(member.label, member.gallery, member.queries)
    started = time.perf_counter()
    result = evaluate(
        store=store, benchmark=benchmark, model="drawn", members=[member], queries_cropped=None,
        config=EvaluateConfig(), random=drawn,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return seconds, {p: result["protocols"][p]["mAP"] for p in PROTOCOLS}


def make_descriptors(folder: Path, dim: int) -> tuple[float, Any]:
    store, _, member = opened(folder, dim)
    started = time.perf_counter()
    for key in (member.gallery, *member.distractors):
        assert isinstance(key, Key)
        describe(store, key, None)
    return time.perf_counter() - started, None


def reference(folder: Path, dim: int) -> tuple[float, Any]:
    store, benchmark, member = opened(folder, dim)
    queries = computed(store, member.queries, None).read(range(70))
    files = shards(store, member)
    started = time.perf_counter()
    gallery = np.concatenate([single(path, rows, dim) for path, rows in files])
    loaded = time.perf_counter()
    scores = gallery @ queries.T
    ranks = np.argsort(-scores, axis=0)
    found = maps(ranks, benchmark)
    finished = time.perf_counter()
    return finished - started, {**found, "without_reading": finished - loaded}


def floor(folder: Path, dim: int) -> tuple[float, Any]:
    store, _, member = opened(folder, dim)
    queries = computed(store, member.queries, None).read(range(70))
    files = shards(store, member)

    def one(file: tuple[Path, int]) -> None:
        queries @ single(*file, dim).T

    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    for file in files:
        one(file)
    threads_of_numpy = time.perf_counter() - started
    started = time.perf_counter()
    with threadpool_limits(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(one, files))
    one_per_core = time.perf_counter() - started
    return min(threads_of_numpy, one_per_core), None


def stable(folder: Path, dim: int) -> tuple[float, Any]:
    """Not a competitor: mAP of a stable sort over the very products that ours takes."""
    store, benchmark, member = opened(folder, dim)
    queries = computed(store, member.queries, None).read(range(70))
    scorer = DotProducts(queries)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        blocks = open_gallery(store, [member], "half").blocks
        scores = np.concatenate([scorer.scores(scorer.load(b.read()), slice(0, 70)) for b in blocks], axis=1)
    return 0.0, maps(np.argsort(-scores, axis=1, kind="stable").T, benchmark)


def maps(ranks: np.ndarray, benchmark: Benchmark) -> dict[str, float]:
    """mAP x 100 of rankings (N, Q) under E, M and H, each query's whole ranking looked through as published."""
    assert benchmark.truth is not None
    found = {}
    for protocol in PROTOCOLS:
        positives, ignored = relevance(benchmark.truth, protocol)
        values = []
        for q in range(ranks.shape[1]):
            if len(positives[q]):
                at = np.flatnonzero(np.isin(ranks[:, q], positives[q]))
                junk = np.flatnonzero(np.isin(ranks[:, q], ignored[q]))
                values.append(average_precision(at - np.searchsorted(junk, at), len(positives[q])))
        found[protocol] = 100 * float(np.mean(values))
    return found


def shards(store: FeatureStore, member: Member) -> list[tuple[Path, int]]:
    """Files of the stored descriptors, gallery first, and the rows in each."""
    files = []
    for key in (member.gallery, *member.distractors):
        assert isinstance(key, Key)
        artifact = store.get(describe(store, key, None))
        for shard in range(artifact.shard_count):
            files.append(
                (store.files.root / str(artifact.key) / f"vectors/c/{shard}/0", len(artifact.shard_range(shard)))
            )
    return files


def single(path: Path, rows: int, dim: int) -> np.ndarray:
    """A shard in single precision; its inner chunks of 512 rows each end in a checksum, which nobody looks at here."""
    data = path.read_bytes()
    vectors = np.empty((rows, dim), np.float32)
    for number, start in enumerate(range(0, rows, 512)):
        here = vectors[start : start + 512]
        chunk = np.frombuffer(data, np.float16, 512 * dim, number * (512 * dim * 2 + 4))
        here[:] = chunk.reshape(512, dim)[: len(here)]
    return vectors


def forget_scores(folder: Path) -> None:
    for part in ("scores", *(f".cgd/{kind}/scores" for kind in ("seals", "receipts", "provenance"))):
        shutil.rmtree(folder / part, ignore_errors=True)


RUNS = {"ours": ours, "reference": reference, "floor": floor, "stable": stable, "describe": make_descriptors}


def alone(name: str, folder: Path, dim: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, str(folder), str(dim), *more]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def measure(folder: Path, dim: int, count: int, rounds: int) -> dict[str, Any]:
    store = folder / f"{dim}.zarr"
    started = time.perf_counter()
    make_store(store, dim, count)
    print(f"{dim}: store written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    described = alone("describe", store, dim)
    results: dict[str, list[dict[str, Any]]] = {"floor": [], "ours": [], "reference": []}
    for number in range(rounds + 1):
        for name, found in results.items():
            one = alone(name, store, dim)
            if number:  # the first round warms the page cache
                found.append(one)
            print(f"{dim} {name}: {one['seconds']:.2f} s, {one['peak_rss_mb']:.0f} MB", file=sys.stderr)

    def ratio(over: str, under: str) -> float:
        pairs = zip(results[over], results[under], strict=True)
        return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)

    exact = alone("stable", store, dim)["found"]
    mine, theirs = results["ours"][0]["found"], results["reference"][0]["found"]
    shutil.rmtree(store)
    return {
        "reference_over_ours": ratio("reference", "ours"),
        "limit": ratio("reference", "floor"),
        "ours_over_floor": ratio("ours", "floor"),
        "peak_rss_mb": max(r["peak_rss_mb"] for r in results["ours"]),
        "reference_peak_rss_mb": max(r["peak_rss_mb"] for r in results["reference"]),
        "max_map_difference": max(abs(mine[p] - exact[p]) for p in PROTOCOLS),
        "mAP": mine,
        "max_map_difference_of_reference": max(abs(theirs[p] - exact[p]) for p in PROTOCOLS),
        "seconds": statistics.median(r["seconds"] for r in results["ours"]),
        "seconds_to_describe": described["seconds"],
        "describe_peak_rss_mb": described["peak_rss_mb"],
    }


def drawn_distractors(folder: Path) -> dict[str, Any]:
    """Distractors that no disk holds: ten times as many take ten times as long and no more memory."""
    store = folder / "512.zarr"
    make_store(store, 512, 1)
    runs = {count: alone("ours", store, 512, str(count)) for count in RANDOM}
    few, many = (runs[count] for count in RANDOM)
    return {
        "time_ratio": many["seconds"] / few["seconds"],
        **{f"peak_rss_mb_{count}": run["peak_rss_mb"] for count, run in runs.items()},
        "seconds": many["seconds"],
    }


def main() -> None:
    if "--one" in sys.argv:
        name, folder, dim, *more = sys.argv[sys.argv.index("--one") + 1 :]
        seconds, found = RUNS[name](Path(folder), int(dim), *map(int, more))
        print(json.dumps({"seconds": seconds, "found": found, "peak_rss_mb": peak_rss_mb()}))
        return
    count, rounds = int(option("--distractors", "1000000")), int(option("--rounds", "3"))
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=option("--folder", tempfile.gettempdir())) as folder:
        for dim in map(int, filter(None, option("--dims", "512,2048").split(","))):
            result[str(dim)] = measure(Path(folder), dim, count, rounds)
        if "--skip-random" not in sys.argv:
            result["drawn distractors, 512"] = drawn_distractors(Path(folder))
    report_each(f"70 queries, 4,993 + {count:,} vectors", result)


if __name__ == "__main__":
    main()
