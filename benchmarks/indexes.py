"""Indexes over a million descriptors: time to build, queries per second, recall of the ten nearest, bytes per vector.

Usage: python benchmarks/indexes.py [--vectors N] [--dim D] [--kinds flat,ivf-pq,hnsw] [--json]

Vectors are drawn: 20,000 clusters of unequal directions (the variance of direction i falls as 1 / i), each image a mean
of its cluster's centre and noise of the same kind, so that neighbours mean something; independent vectors would have
none. Queries are drawn alike and are not in the gallery. Each kind runs in a process of its own; times are taken after
imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from timing import option, peak_rss_mb, report_each

from cgd.config import IndexConfig
from cgd.retrieval import approximate
from cgd.retrieval.search import Block, DotProducts, nearest
from cgd.retrieval.vectors import l2

CLUSTERS, BLOCK, QUERIES, K = 20_000, 16_384, 1000, 10


def drawn(rows: range, dim: int, seed: int) -> np.ndarray:
    """Descriptors (M, dim) in half precision, the same for the same rows."""
    spread = 1 / np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, dim), np.float32)
    generator = np.random.default_rng([seed, rows.start])
    own = generator.integers(0, CLUSTERS, len(rows))
    return l2((centres[own] + generator.standard_normal((len(rows), dim), np.float32)) * spread).astype(np.float16)


def gallery(count: int, dim: int) -> list[Block]:
    """The blocks in memory, so that drawing them is not timed."""
    cuts = [range(a, min(a + BLOCK, count)) for a in range(0, count, BLOCK)]
    return [Block(rows, partial(np.asarray, drawn(rows, dim, 1))) for rows in cuts]


def measure(kind: str, count: int, dim: int) -> dict[str, Any]:
    blocks, queries = gallery(count, dim), drawn(range(QUERIES), dim, 2).astype(np.float32)
    exact_seconds, (_, exact) = timed(lambda: nearest(DotProducts(queries), blocks, K))
    if kind == "exact":
        return {"queries_per_second": QUERIES / exact_seconds, "recall@10": 1.0, "bytes_per_vector": 2.0 * dim}
    config = IndexConfig()
    started = time.perf_counter()
    wanted = approximate.training_rows(kind, count, config)
    rows = np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))
    parts = [b.read()[rows[(rows >= b.rows.start) & (rows < b.rows.stop)] - b.rows.start] for b in blocks]
    index = approximate.make(kind, dim, count, config, np.concatenate(parts).astype(np.float32))
    trained = time.perf_counter()
    approximate.extend(index, (b.read() for b in blocks))
    built = time.perf_counter()
    size = 4.0 * dim if kind == "flat" else len(approximate.to_bytes(index)) / count
    index = approximate.ready(index, config)
    approximate.search(index, queries[:64], K, config)
    seconds, (_, found) = timed(lambda: approximate.search(index, queries, K, config))
    single, _ = timed(lambda: [approximate.search(index, q[None], K, config) for q in queries[:100]])
    return {
        "seconds_to_build": built - started,
        "of_them_training": trained - started,
        "queries_per_second": QUERIES / seconds,
        "exact_over_index": exact_seconds / seconds,
        "milliseconds_of_one_query": 1000 * single / 100,
        "recall@10": float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)])),
        "bytes_per_vector": size,
    }


def timed(run: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def main() -> None:
    count, dim = int(option("--vectors", "1000000")), int(option("--dim", "512"))
    if "--one" in sys.argv:
        print(json.dumps({**measure(option("--one", ""), count, dim), "peak_rss_mb": peak_rss_mb()}))
        return
    result = {}
    for kind in option("--kinds", "exact,flat,ivf-pq,hnsw").split(","):
        command = [sys.executable, __file__, "--one", kind, "--vectors", str(count), "--dim", str(dim)]
        result[kind] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{kind}: {result[kind]}", file=sys.stderr, flush=True)
    report_each(f"{count:,} x {dim}", result)


if __name__ == "__main__":
    main()
