"""Ranks of positives, found in two ways: by sorting every query's whole list, and by the package's search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cgd.retrieval.search import exact_ranks

Ranker = Callable[[np.ndarray, Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]


def sorted_ranks(
    scores: np.ndarray, positives: Sequence[np.ndarray], ignored: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Score descending, then gallery index ascending; what is ignored is taken out of the list."""
    found = []
    for row, wanted, junk in zip(scores, positives, ignored, strict=True):
        order = np.argsort(-row, kind="stable")
        found.append(np.flatnonzero(np.isin(order[~np.isin(order, junk)], wanted)))
    return found


def searched_ranks(
    scores: np.ndarray, positives: Sequence[np.ndarray], ignored: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The same from the package, which looks at the gallery in seven blocks."""
    return exact_ranks(scores, positives, ignored, columns=-(-scores.shape[1] // 7))


RANKERS: dict[str, Ranker] = {"sorted": sorted_ranks, "searched": searched_ranks}


def tie_bounds(
    scores: np.ndarray, positives: Sequence[np.ndarray], ignored: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ranks where every positive comes before all that tie with it, and after them."""
    best, worst = [], []
    for row, wanted, junk in zip(scores, positives, ignored, strict=True):
        kept = ~np.isin(np.arange(len(row)), junk)
        relevant = np.isin(np.arange(len(row)), wanted)
        for found, last in ((best, ~relevant), (worst, relevant)):
            order = np.lexsort((last, -row))
            found.append(np.flatnonzero(relevant[order[kept[order]]]))
    return best, worst


def nothing(queries: int) -> list[np.ndarray]:
    """No gallery image, for each query."""
    return [np.zeros(0, np.int64)] * queries
