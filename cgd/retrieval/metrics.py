"""Scores of ranked lists: average precision with junk, precision at k, recall at k (methods.md 8.3 to 8.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cgd.types import GroundTruth, Score

PRECISION_AT, RECALL_AT = (1, 5, 10), (1, 5, 10)
PROTOCOLS = ("easy", "medium", "hard")
Rule = Literal["trapezoid", "mean-precision"]


def average_precision(ranks: np.ndarray, positives: int, rule: Rule = "trapezoid") -> float:
    """AP of the sorted 0-based `ranks` at which positives were found, of `positives` there are; NaN where none is.

    The trapezoid averages the precision before and after each positive: `j / r` (1 at rank 0) and
    `(j + 1) / (r + 1)`; `mean-precision` takes only the latter.
    """
    if positives == 0:
        return float("nan")
    found = np.arange(len(ranks))
    after = (found + 1) / (ranks + 1)
    if rule == "mean-precision":
        return float(after.sum() / positives)
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    return float((before + after).sum() / 2 / positives)


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Share of positives among the first k, or among those up to the last positive where that comes earlier."""
    if not len(ranks):
        return float("nan")
    cut = min(k, int(ranks.max()) + 1)
    return float((ranks < cut).sum() / cut)


def relevance(truth: GroundTruth, protocol: str) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """Positives and ignored gallery indices per query under Easy, Medium or Hard."""
    parts = list(zip(truth.easy, truth.hard, truth.junk, strict=True))
    if protocol == "easy":
        return truth.easy, [np.concatenate([junk, hard]) for _, hard, junk in parts]
    if protocol == "medium":
        return [np.concatenate([easy, hard]) for easy, hard, _ in parts], truth.junk
    if protocol == "hard":
        return truth.hard, [np.concatenate([junk, easy]) for easy, _, junk in parts]
    raise ValueError(protocol)


def score(
    protocol: str, ranks: Sequence[np.ndarray], positives: Sequence[np.ndarray], rule: Rule = "trapezoid"
) -> Score:
    """One protocol's means over the queries that have a positive; `ranks` are those of `positives`, sorted.

    Recall at k is the share of all queries with a positive among the first k, those without any included.
    """
    precisions = np.array([average_precision(r, len(p), rule) for r, p in zip(ranks, positives, strict=True)])
    scored = ~np.isnan(precisions)
    best = np.array([r.min() if len(r) else np.inf for r in ranks])

    def mean(values: np.ndarray) -> float:
        return float(values[scored].mean()) if scored.any() else float("nan")

    return Score(
        protocol=protocol,
        mean_ap=mean(precisions),
        queries=int(scored.sum()),
        average_precision=precisions,
        precision_at={k: mean(np.array([precision_at(r, k) for r in ranks])) for k in PRECISION_AT},
        recall_at={k: float((best < k).mean()) for k in RECALL_AT},
    )
