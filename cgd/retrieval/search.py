"""Exact ranks of chosen gallery images: score descending, then gallery index ascending."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def exact_ranks(
    scores: np.ndarray,
    positives: Sequence[np.ndarray],
    ignored: Sequence[np.ndarray],
    above: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Sorted 0-based ranks of each query's `positives` after its `ignored` images are taken out.

    `scores` (Q, G); `above` (per query, aligned with `positives`) counts distractors ranked before each.
    """
    ranks = []
    for query, (wanted, junk) in enumerate(zip(positives, ignored, strict=True)):
        place = np.empty(scores.shape[1], np.int64)
        place[np.argsort(-scores[query], kind="stable")] = np.arange(scores.shape[1])
        before = (np.sort(place[junk])[None, :] < place[wanted][:, None]).sum(axis=1)
        found = place[wanted] - before
        ranks.append(np.sort(found if above is None else found + above[query]))
    return ranks


def count_above(
    scores: np.ndarray, positives: Sequence[np.ndarray], distractors: Iterable[np.ndarray]
) -> list[np.ndarray]:
    """How many distractors score strictly above each positive of each query.

    `scores` (Q, G) are those of the gallery, `distractors` yields blocks (Q, M). Distractors stand behind the
    gallery, so a tie is the gallery's; they are counted and never ranked, whatever their number.
    """
    order = [np.argsort(scores[q, p], kind="stable") for q, p in enumerate(positives)]
    levels = [scores[q, p][o] for q, (p, o) in enumerate(zip(positives, order, strict=True))]
    counts = [np.zeros(len(p), np.int64) for p in positives]
    for block in distractors:
        for q, level in enumerate(levels):
            if len(level):
                # A distractor beats the levels strictly below it.
                beaten = np.bincount(np.searchsorted(level, block[q], side="left"), minlength=len(level) + 1)
                counts[q] += beaten[::-1].cumsum()[::-1][1:]
    above = []
    for o, count in zip(order, counts, strict=True):
        back = np.empty_like(count)
        back[o] = count
        above.append(back)
    return above
