"""Scores of ranked lists from the ranks of their positives alone: no ranking is ever held (methods.md 8.3 to 8.7).

`ranks` are always the sorted 0-based places (int) of one query's positives once its ignored images are taken out.
They may be fewer than its positives where an approximate search did not find all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cgd.types import GroundTruth, Score

PRECISION_AT = RECALL_AT = (1, 5, 10)
PROTOCOLS = ("easy", "medium", "hard")
HAMMING, HAMMING_AT = "hamming", (10, 100, 1000)  # the protocol of binary codes by label, and its depths
VIDEO_PROTOCOLS: Mapping[str, int | None] = {"top-100": 100, "all": None}  # how much of a ranking of videos counts
Rule = Literal["trapezoid", "mean-precision"]


def average_precision(ranks: np.ndarray, positives: int, rule: Rule = "trapezoid") -> float:
    """AP of the `ranks` at which positives were found, of `positives` there are; NaN where there is none.

    The trapezoid averages the precision before and after each positive: `j / r` (1 at rank 0) and
    `(j + 1) / (r + 1)`; `mean-precision` takes only the latter (methods.md 8.3).
    """
    if positives == 0:
        return float("nan")
    found = np.arange(len(ranks))
    after = (found + 1) / (ranks + 1)
    if rule == "mean-precision":
        return float(after.sum() / positives)
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    return float((before + after).sum() / 2 / positives)


def average_precision_at(ranks: np.ndarray, k: int | None = None) -> float:
    """Mean precision at the hits among the first `k`, or at all; 0 where there is none (methods.md 8.5, 8.6).

    It is divided by the hits, not by the positives: a smaller `k` usually scores higher.
    """
    hits = ranks if k is None else ranks[ranks < k]
    return average_precision(hits, len(hits), "mean-precision") if len(hits) else 0.0


def mean_average_precision_at(ranks: Sequence[np.ndarray], k: int | None = None) -> float:
    """Mean of `average_precision_at` over all queries, those without a hit included.

    The ranking itself must not be cut for it: released hashing code asks for the first -1 and loses the last image.
    """
    return float(np.mean([average_precision_at(r, k) for r in ranks]))


def score_at(protocol: str, ranks: Sequence[np.ndarray], k: int | None = None) -> Score:
    """Means of `average_precision_at` over all queries; 0 is the score of one without a hit (methods.md 8.5)."""
    precisions = np.array([average_precision_at(r, k) for r in ranks])
    return Score(protocol, float(precisions.mean()), len(ranks), precisions)


def precision_at(ranks: np.ndarray, positives: int, k: int) -> float:
    """Share of positives among the first k, or up to the last of all `positives` where that comes earlier.

    NaN where there is none (methods.md 8.3).
    """
    if positives == 0:
        return float("nan")
    cut = min(k, int(ranks[-1]) + 1) if len(ranks) == positives else k
    return float(np.count_nonzero(ranks < cut) / cut)


def precision_and_recall_at(
    ranks: Sequence[np.ndarray], positives: Sequence[np.ndarray], k: int
) -> tuple[float, float]:
    """Hits among the first k over k, and over the positives; means over all queries, 0 without positives (8.6)."""
    hits = np.array([np.count_nonzero(r < k) for r in ranks])
    relevant = np.array([len(p) for p in positives])
    return float((hits / k).mean()), float((hits / np.maximum(relevant, 1)).mean())


def recall_at(ranks: Sequence[np.ndarray], k: int) -> float:
    """Share of all queries with a positive among the first k; without positives a query never has (8.7)."""
    return float(np.mean([len(r) > 0 and r[0] < k for r in ranks]))


def random_queries(count: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of all `count` queries, or of `most` drawn at random where there are more; ascending.

    EmbeddingDistillation scores 10,000 at most, drawn without a seed, so its recall on SOP differs from run to run
    (methods.md 8.7). Scoring all is the rule; this is for comparing with it.
    """
    return np.sort(generator.choice(count, min(most, count), replace=False))


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
    protocol: str,
    ranks: Sequence[np.ndarray],
    positives: Sequence[np.ndarray],
    rule: Rule = "trapezoid",
    recalls: Sequence[int] = RECALL_AT,
) -> Score:
    """One protocol's means over the queries that have a positive; `ranks` are those of `positives`.

    Recall at each k of `recalls` is over all queries, those of classes with a single image too (methods.md 8.7).
    """
    counts = [len(p) for p in positives]
    precisions = np.array([average_precision(r, n, rule) for r, n in zip(ranks, counts, strict=True)])
    scored = ~np.isnan(precisions)

    def mean(values: np.ndarray) -> float:
        return float(values[scored].mean()) if scored.any() else float("nan")

    return Score(
        protocol=protocol,
        mean_ap=mean(precisions),
        queries=int(scored.sum()),
        average_precision=precisions,
        precision_at={
            k: mean(np.array([precision_at(r, n, k) for r, n in zip(ranks, counts, strict=True)])) for k in PRECISION_AT
        },
        recall_at={k: recall_at(ranks, k) for k in recalls},
    )
