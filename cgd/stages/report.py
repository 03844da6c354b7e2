"""From stored descriptors to what a report shows: similarities, precision by recall, nearest images; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cgd.config import EvaluateConfig
from cgd.data.datasets import label_truth
from cgd.retrieval.metrics import average_precision, relevance
from cgd.retrieval.search import DotProducts, Scorer, count_above, nearest, ranks_of
from cgd.stages.descriptors import Gallery, Member, Vectors, computed, join, open_gallery
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, GroundTruth

PAIRS = 200_000  # similarities in a histogram, at most
MOST_QUERIES = 2_000  # whose similarities are drawn, at most
PAIRS_AT_ONCE = 8_192
RECALLS = np.linspace(0, 1, 101)
ScorerOf = Callable[[np.ndarray], Scorer]


@dataclass(frozen=True)
class Similarities:
    """Cosines of queries with gallery images: of another landmark, `others` (N,), and of the `same` (M,)."""

    others: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """How well a model ranks: `average_precision` (Q,), NaN without positives, and mean `precision` at `RECALLS`."""

    average_precision: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class Choice:
    """A query, and the `rule` that it was chosen by."""

    query: int
    rule: str


def truth_of(benchmark: Benchmark) -> GroundTruth:
    """The ground truth, from labels where the benchmark brings none."""
    return benchmark.truth or label_truth(benchmark.gallery, benchmark.queries, benchmark.leave_one_out)


def similarities(store: FeatureStore, member: Member, truth: GroundTruth, precision: str) -> Similarities:
    """Cosines of at most `PAIRS` pairs of each sort, the same pairs for every model of one benchmark.

    Junk is neither: it is left out. One block of the gallery is in memory at a time.
    """
    gallery = open_gallery(store, [member], precision).sets[0][0]
    queries = computed(store, member.queries, member.whitening)
    chosen, others, same = _pairs(truth, len(gallery.valid))
    vectors = queries.read(range(len(queries.valid)))
    return Similarities(*(_cosines(gallery, vectors, chosen, pairs) for pairs in (others, same)))


def _pairs(truth: GroundTruth, gallery: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some queries, and (N, 2) int64 pairs of one of them, by its place, with a row of another or the same landmark."""
    draw = np.random.default_rng(0)
    count = len(truth.easy)
    chosen = np.sort(draw.choice(count, min(count, MOST_QUERIES), replace=False))
    each = PAIRS // len(chosen)
    others: list[np.ndarray] = []
    same: list[np.ndarray] = []
    for place, query in enumerate(chosen.tolist()):
        right = np.concatenate([truth.easy[query], truth.hard[query]])
        rows = np.arange(gallery) if gallery <= each else draw.integers(0, gallery, each)
        wrong = rows[~np.isin(rows, np.concatenate([right, truth.junk[query]]))]
        for found, of in ((wrong, others), (right, same)):
            of.append(np.stack([np.full(len(found), place), found], axis=1))
    positives = np.concatenate(same)
    if len(positives) > PAIRS:
        positives = positives[np.sort(draw.choice(len(positives), PAIRS, replace=False))]
    return chosen, np.concatenate(others), positives


def _cosines(gallery: Vectors, queries: np.ndarray, chosen: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Products of each pair's unit vectors, part by part of the gallery; images that are not valid are left out."""
    found = [np.zeros(0, np.float32)]
    for part in gallery.parts:
        here = pairs[(pairs[:, 1] >= part.start) & (pairs[:, 1] < part.stop)]
        here = here[gallery.valid[here[:, 1]]]
        vectors = gallery.read(part) if len(here) else None
        for start in range(0, len(here), PAIRS_AT_ONCE):
            assert vectors is not None
            places, rows = here[start : start + PAIRS_AT_ONCE].T
            right = vectors[rows - part.start].astype(np.float32)
            found.append(np.einsum("nd,nd->n", queries[chosen[places]].astype(np.float32), right))
    return np.concatenate(found)


def ranking(
    store: FeatureStore,
    members: Sequence[Member],
    truth: GroundTruth,
    config: EvaluateConfig,
    scorer: ScorerOf = DotProducts,
) -> Ranking:
    """Average precision and precision by recall under Medium, or by label: junk is taken out."""
    gallery, queries = _opened(store, members, config)
    positives, ignored = relevance(truth, "medium")
    wanted = [np.union1d(p, i).astype(np.int64) for p, i in zip(positives, ignored, strict=True)]
    above = count_above(scorer(queries), gallery.blocks, wanted)
    ranks = [ranks_of(*each) for each in zip(wanted, above, positives, ignored, strict=True)]
    scored = [r for r, p in zip(ranks, positives, strict=True) if len(p)]
    total = sum((interpolated_precision(r) for r in scored), np.zeros(len(RECALLS)))
    return Ranking(
        np.array([average_precision(r, len(p), config.ap) for r, p in zip(ranks, positives, strict=True)]),
        total / len(scored) if scored else np.full(len(RECALLS), np.nan),
    )


def interpolated_precision(ranks: np.ndarray) -> np.ndarray:
    """At each of `RECALLS` the highest precision at that recall or more, (101,); `ranks` are those of all positives."""
    found = np.arange(1, len(ranks) + 1)
    best = np.maximum.accumulate((found / (ranks + 1))[::-1])[::-1]
    least = np.ceil(RECALLS * len(ranks) - 1e-9).astype(int)  # positives that this recall takes
    reached: np.ndarray = best[np.maximum(least, 1) - 1]
    return reached


def nearest_rows(
    store: FeatureStore,
    members: Sequence[Member],
    chosen: Sequence[int],
    k: int,
    config: EvaluateConfig,
    scorer: ScorerOf = DotProducts,
) -> np.ndarray:
    """Gallery rows (len(chosen), k) nearest to some queries, -1 where there are fewer."""
    gallery, queries = _opened(store, members, config)
    _, rows = nearest(scorer(queries[list(chosen)]), gallery.blocks, k)
    return rows


def _opened(store: FeatureStore, members: Sequence[Member], config: EvaluateConfig) -> tuple[Gallery, np.ndarray]:
    """The gallery of some members, and their queries as one vector each."""
    vectors = [computed(store, m.queries, m.whitening) for m in members]
    return open_gallery(store, members, config.descriptors), join([v.read(range(len(v.valid))) for v in vectors])


def choose(before: np.ndarray | None, after: np.ndarray) -> tuple[Choice, ...]:
    """Up to four queries by what training changed in their average precision (Q,), never by how good they look.

    Largest, median and smallest gain, and lowest precision after; without `before` the highest, median and lowest
    after. Where a rule gives a query that is taken, it gives the next one; ties go to the first query.
    """
    if before is None:
        scored = np.flatnonzero(~np.isnan(after))
        order = scored[np.argsort(-after[scored], kind="stable")]
        wanted = {"the highest AP": order, "the median AP": _from_middle(order), "the lowest AP": order[::-1]}
    else:
        gains = after - before
        scored = np.flatnonzero(~np.isnan(gains))
        order = scored[np.argsort(-gains[scored], kind="stable")]
        wanted = {
            "the largest gain in AP": order,
            "the median gain": _from_middle(order),
            "the smallest gain": scored[np.argsort(gains[scored], kind="stable")],
            "the lowest AP after training": scored[np.argsort(after[scored], kind="stable")],
        }
    chosen: list[Choice] = []
    for rule, queries in wanted.items():
        left = [q for q in queries.tolist() if q not in {c.query for c in chosen}]
        chosen += [Choice(q, rule) for q in left[:1]]
    return tuple(chosen)


def _from_middle(order: np.ndarray) -> np.ndarray:
    """The middle one first, then its neighbours outwards."""
    return order[np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) // 2), kind="stable")]
