"""Fitting a whitening on 200,000 x 2048 rows: against scikit-learn's IncrementalPCA, and the matrix-product rate.

Usage: python benchmarks/whitening.py [--rows N] [--json]. Each competitor runs in a process of its own (so that
its peak memory is its own), reads the same random rows block by block, and they take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from timing import peak_rss_mb, report

WIDTH, DIM, BLOCK = 2048, 512, 8192
ROUNDS = 2


def blocks(rows: int) -> Iterator[np.ndarray]:
    """The same float32 rows for everyone; drawing them is not timed."""
    draw = np.random.default_rng(0)
    scale = np.linspace(0.2, 2, WIDTH, dtype=np.float32)
    for start in range(0, rows, BLOCK):
        yield draw.standard_normal((min(BLOCK, rows - start), WIDTH), np.float32) * scale


def ours(rows: int) -> float:
    """Seconds in `Moments.add` and `whitening_from`."""
    from cgd.retrieval.whitening import Moments, whitening_from

    moments, seconds = Moments(), 0.0
    for block in blocks(rows):
        started = time.perf_counter()
        moments.add(block)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    whitening_from(moments, "pca", DIM, 1e-5, "fixed")
    return seconds + time.perf_counter() - started


def sklearn(rows: int) -> float:
    """Seconds in `IncrementalPCA.partial_fit`, whitening to the same dimensions."""
    from sklearn.decomposition import IncrementalPCA

    model, seconds = IncrementalPCA(DIM, whiten=True), 0.0
    for block in blocks(rows):
        started = time.perf_counter()
        model.partial_fit(block)
        seconds += time.perf_counter() - started
    return seconds


def gemm(rows: int) -> float:
    """Seconds of bare float64 products X^T X of as many rows: the floor of any float64 covariance."""
    x = np.random.default_rng(0).standard_normal((BLOCK, WIDTH))
    x.T @ x
    started = time.perf_counter()
    for start in range(0, rows, BLOCK):
        part = x[: min(BLOCK, rows - start)]
        part.T @ part
    return time.perf_counter() - started


def main() -> None:
    rows = int(sys.argv[sys.argv.index("--rows") + 1]) if "--rows" in sys.argv else 200_000
    if "--one" in sys.argv:
        run = {"ours": ours, "sklearn": sklearn, "gemm": gemm}[sys.argv[sys.argv.index("--one") + 1]]
        print(json.dumps({"seconds": run(rows), "peak_rss_mb": peak_rss_mb()}))
        return
    results: dict[str, list[dict[str, float]]] = {"ours": [], "sklearn": [], "gemm": []}
    for _ in range(ROUNDS):
        for name, found in results.items():
            command = [sys.executable, __file__, "--one", name, "--rows", str(rows)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    def ratio(over: str, under: str) -> float:
        pairs = zip(results[over], results[under], strict=True)
        return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)

    result = {
        "rows": rows,
        "width": WIDTH,
        "dim": DIM,
        "seconds": statistics.median(r["seconds"] for r in results["ours"]),
        "sklearn_over_ours": ratio("sklearn", "ours"),
        "share_of_gemm_rate": ratio("gemm", "ours"),
        "peak_rss_mb": max(r["peak_rss_mb"] for r in results["ours"]),
        "sklearn_peak_rss_mb": max(r["peak_rss_mb"] for r in results["sklearn"]),
    }
    report(f"fitting a whitening to {DIM} dimensions on {rows:,} x {WIDTH} rows", result)


if __name__ == "__main__":
    main()
