"""How sure a mean over queries is: bootstrap intervals, and the paired comparison of two models on the same queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
AT_ONCE = 2**20  # numbers drawn at once: 8 MB, whatever the number of queries


@dataclass(frozen=True)
class Paired:
    """Two models on the `queries` that both scored; a win is a query on which the first is better.

    `difference` is the first mean minus the second, `low` and `high` are the ends of its interval, `p` is two-sided.
    All but the counts are NaN where no query was scored by both.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int
    queries: int


def interval(
    average_precision: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of the mean of `average_precision` (Q,) over queries; NaNs left out.

    Queries are drawn with replacement, `resamples` times (Efron & Tibshirani 1993, chapter 13): the interval tells how
    the mean varies with the choice of queries, not with a model's seed. NaN where no query is scored.
    """
    values = average_precision[~np.isnan(average_precision)]
    if not len(values):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), shape)].mean(axis=1) for shape in _chunks(resamples, values)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(a: np.ndarray, b: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Compare the scores `a` and `b` (Q,) of the same queries; a query that either lacks (NaN) is left out.

    The interval is that of the mean of the queries' differences. `p` is by a sign-flip test: were the models alike,
    each difference might as well have the other sign; it is the share of flips, the given one among them, with a mean
    at least as far from zero (Phipson & Smyth 2010), and so never below 1 / (resamples + 1).
    """
    if a.shape != b.shape:
        raise ValueError(f"scores of the same queries have one shape, got {a.shape} and {b.shape}")
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    differences = a - b
    low, high = interval(differences, level=level, resamples=resamples, seed=seed)
    nan = float("nan")
    mean_a, mean_b = (float(a.mean()), float(b.mean())) if len(a) else (nan, nan)
    return Paired(
        mean_a=mean_a,
        mean_b=mean_b,
        difference=float(differences.mean()) if len(a) else nan,
        low=low,
        high=high,
        p=_sign_flip(differences, resamples, seed) if len(a) else nan,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        queries=len(a),
    )


def _sign_flip(differences: np.ndarray, resamples: int, seed: int) -> float:
    """Share of random signs under which the sum is at least as far from zero as it is."""
    generator = np.random.default_rng(seed)
    total = differences.sum()
    # Equal sums added up in another order differ in their last digits.
    least = abs(total) - 1e-12 * np.abs(differences).sum()
    reached = 0
    for shape in _chunks(resamples, differences):
        positive = generator.integers(0, 2, shape, dtype=np.int8)
        reached += int((np.abs(2 * (positive @ differences) - total) >= least).sum())
    return (reached + 1) / (resamples + 1)


def _chunks(resamples: int, values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Shapes of blocks that make up (`resamples`, Q)."""
    rows = max(1, AT_ONCE // len(values))
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start), len(values)
