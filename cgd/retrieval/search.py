"""Exact search, block by block: ranks of chosen gallery images and the nearest ones, without ranking a gallery whole.

The order is score descending, then gallery index ascending, as a stable sort has it (methods.md 8.4). The rank of
an image is the number of images above it, so memory is bounded by the blocks in hand whatever the gallery.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from cgd.launch import available_cores
from cgd.progress import progress
from cgd.retrieval.vectors import to_single

QUERIES_AT_ONCE = 512
MOST_WORKERS = 8  # each holds a block or two
BINS_PER_ROW, MOST_BINS = 0.25, 4096
T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Consecutive `rows` of a gallery, of which `valid` (M,) or all can be read.

    `read` gives what the scorer loads: their vectors (M, D), half or single, or their `Videos` by each model.
    """

    rows: range
    read: Callable[[], Any]
    valid: np.ndarray | None = None


class Scorer(Protocol):
    """Scores of a fixed list of queries; the higher, the nearer."""

    count: int

    def load(self, vectors: Any) -> Any:
        """What a block reads, as `scores` wants it; done once per block."""

    def scores(self, loaded: Any, queries: slice) -> np.ndarray:
        """Scores (Q', M) of some queries with a block."""


class DotProducts:
    """Inner products of queries (Q, D) in single precision on the CPU."""

    def __init__(self, queries: np.ndarray) -> None:
        self.queries = np.ascontiguousarray(queries, np.float32)
        self.count = len(queries)

    def load(self, vectors: np.ndarray) -> np.ndarray:
        return to_single(vectors)

    def scores(self, loaded: np.ndarray, queries: slice) -> np.ndarray:
        found: np.ndarray = self.queries[queries] @ loaded.T
        return found


class _Given:
    """Scores (Q, G) that are known already."""

    def __init__(self, count: int) -> None:
        self.count = count

    def load(self, vectors: np.ndarray) -> np.ndarray:
        return vectors

    def scores(self, loaded: np.ndarray, queries: slice) -> np.ndarray:
        return loaded[queries].copy()  # the scores are the caller's, and may be read-only


def exact_ranks(
    scores: np.ndarray, positives: Sequence[np.ndarray], ignored: Sequence[np.ndarray], columns: int | None = None
) -> list[np.ndarray]:
    """Sorted 0-based ranks of each query's `positives` among `scores` (Q, G) once its `ignored` images are taken out.

    `columns` at a time, where the gallery is to be looked at in blocks.
    """
    step = max(1, columns or scores.shape[1])
    blocks = [
        Block(rows, lambda r=rows: scores[:, r.start : r.stop])  # type: ignore[misc]
        for start in range(0, scores.shape[1], step)
        for rows in [range(start, min(start + step, scores.shape[1]))]
    ]
    wanted = [np.union1d(p, i) for p, i in zip(positives, ignored, strict=True)]
    above = count_above(_Given(len(scores)), blocks, wanted, workers=1)
    return [ranks_of(*each) for each in zip(wanted, above, positives, ignored, strict=True)]


def ranks_of(wanted: np.ndarray, above: np.ndarray, positives: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Sorted ranks of `positives` without `ignored`; both are among `wanted`, sorted, each with its number `above`."""
    found = np.sort(above[np.searchsorted(wanted, positives)])
    return found - np.searchsorted(np.sort(above[np.searchsorted(wanted, ignored)]), found)


def count_above(
    scorer: Scorer, blocks: Sequence[Block], wanted: Sequence[np.ndarray], *, workers: int | None = None, what: str = ""
) -> list[np.ndarray]:
    """How many images of the whole gallery come before each of a query's `wanted` rows.

    Reads the blocks that hold wanted rows once for their scores, then every block once to count. Every block is
    scored by one thread, so the numbers depend neither on `workers` nor on the machine's cores. Images that are not
    valid come last and are counted nowhere.
    """
    _refuse_beyond(blocks, wanted)
    levels = levels_of(wanted, [scores_of_wanted(scorer, blocks, wanted, workers=workers)])
    with _bar_of(blocks, what) as bar:
        totals = counts_above(scorer, blocks, levels, workers=workers, bar=bar)
    return in_given_order(levels, totals)


Pieces = list[list[tuple[np.ndarray, np.ndarray]]]


def scores_of_wanted(
    scorer: Scorer, blocks: Sequence[Block], wanted: Sequence[np.ndarray], *, workers: int | None = None
) -> Pieces:
    """By query, the places in its `wanted` of those rows that lie in `blocks`, and their scores: part of a gallery.

    Reads only the blocks that hold one.
    """
    asked = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, np.int64)
    holding = [b for b in blocks if np.searchsorted(asked, b.rows.start) < np.searchsorted(asked, b.rows.stop)]

    def look(block: Block) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for queries, scores in _scored(scorer, block):
            for row, rows in zip(scores, wanted[queries], strict=True):
                here = np.flatnonzero((rows >= block.rows.start) & (rows < block.rows.stop))
                found.append((here, row[rows[here] - block.rows.start]))
        return found

    pieces: Pieces = [[] for _ in wanted]
    for found in _over(holding, look, workers, None):
        for piece, one in zip(pieces, found, strict=True):
            if len(one[0]):
                piece.append(one)
    return pieces


def levels_of(wanted: Sequence[np.ndarray], parts: Iterable[Pieces]) -> list[Levels]:
    """The wanted images of every query by their scores, from all parts of the gallery."""
    values: list[np.ndarray] = [np.empty(len(w), np.float64) for w in wanted]
    dtype = np.dtype(np.float32)
    for part in parts:
        for value, pieces in zip(values, part, strict=True):
            for here, scores in pieces:
                value[here], dtype = scores, scores.dtype  # single precision fits into double
    levels = []
    for value, rows in zip(values, wanted, strict=True):
        order = np.argsort(value, kind="stable")
        levels.append(Levels(value[order].astype(dtype), rows[order], order))
    return levels


def counts_above(
    scorer: Scorer,
    blocks: Sequence[Block],
    levels: Sequence[Levels],
    *,
    workers: int | None = None,
    bar: Any = None,
) -> list[np.ndarray]:
    """By query, how many images of `blocks` come before each of its levels; counts of parts of a gallery add up."""

    def count(block: Block) -> list[np.ndarray]:
        return [
            level.count(row, block.rows)
            for queries, scores in _scored(scorer, block)
            for level, row in zip(levels[queries], _pinned(scores, levels[queries], block), strict=True)
        ]

    totals = [np.zeros(len(level.values), np.int64) for level in levels]
    for counts in _over(blocks, count, workers, bar):
        for total, found in zip(totals, counts, strict=True):
            total += found
    return totals


def in_given_order(levels: Sequence[Levels], counts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Counts above the levels as the rows of each were asked for."""
    return [level.in_given_order(total) for level, total in zip(levels, counts, strict=True)]


def _refuse_beyond(blocks: Sequence[Block], wanted: Sequence[np.ndarray]) -> None:
    asked = np.concatenate(wanted) if wanted else np.zeros(0, np.int64)
    if len(asked) and not (asked.min() >= 0 and asked.max() < blocks[-1].rows.stop):
        raise IndexError(f"rows {asked.min()} to {asked.max()} are wanted of a gallery of {blocks[-1].rows.stop}")


def _bar_of(blocks: Sequence[Block], what: str) -> Any:
    return progress(sum(len(b.rows) for b in blocks), what) if what else contextlib.nullcontext()


def nearest(
    scorer: Scorer, blocks: Sequence[Block], k: int, *, workers: int | None = None, what: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) and rows (Q, k) int64 of the nearest images in order; -inf and -1 where there are fewer."""
    scores = np.full((scorer.count, k), -np.inf, np.float32)
    rows = np.full((scorer.count, k), -1, np.int64)

    def best(block: Block) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for queries, products in _scored(scorer, block):
            for row, least in zip(products, scores[queries, -1], strict=True):
                # What is below the worst of the blocks that were merged so far is not among the nearest.
                near = np.flatnonzero(row >= least)
                found.append(_top(row[near], near + block.rows.start, k))
        return found

    with _bar_of(blocks, what) as bar:
        for found in _over(blocks, best, workers, bar):
            for query, (values, where) in enumerate(found):
                known = rows[query] >= 0
                both = np.concatenate([scores[query][known], values]), np.concatenate([rows[query][known], where])
                top, chosen = _top(*both, k)
                scores[query, : len(top)], rows[query, : len(top)] = top, chosen
    return scores, rows


def _top(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of `scores` with their `rows` (ascending where scores tie), in order."""
    if len(scores) > k:
        kept = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # with all that tie with the last
        scores, rows = scores[kept], rows[kept]
    order = np.argsort(-scores, kind="stable")[:k]
    order = order[scores[order] > -np.inf]
    return scores[order], rows[order]


@dataclass(frozen=True)
class Levels:
    """The wanted images of one query by ascending score: `values` and `rows` (n,); `order` leads from as given."""

    values: np.ndarray
    rows: np.ndarray
    order: np.ndarray

    def in_given_order(self, counts: np.ndarray) -> np.ndarray:
        back = np.empty_like(counts)
        back[self.order] = counts
        return back

    def count(self, scores: np.ndarray, rows: range) -> np.ndarray:
        """How many of a block's `scores` (M,) come before each level.

        A histogram decides most without a comparison: bins rise with scores, so an image in a higher bin than a
        level's is above it. Those that share a bin with a level are sorted.
        """
        if not len(self.values):
            return np.zeros(0, np.int64)
        bins = max(1, min(MOST_BINS, int(len(scores) * BINS_PER_ROW)))
        finite = self.values[self.values > -np.inf]  # a wanted image may be one that is not valid
        low, high = (finite[0], finite[-1]) if len(finite) else (scores.dtype.type(0),) * 2
        scale = scores.dtype.type(bins / max(float(high) - float(low), 1e-30))
        place = _bins(scores, low, scale, bins)
        own = _bins(self.values, low, scale, bins)
        shared = np.zeros(bins + 2, bool)
        shared[own] = True
        histogram = np.bincount(place, minlength=bins + 2)
        histogram[shared] = 0
        higher = histogram[::-1].cumsum()[::-1]
        chosen = np.flatnonzero(shared[place])
        close = scores[chosen]
        order = np.argsort(close, kind="stable")
        close = close[order]
        after = np.searchsorted(close, self.values, side="right")
        counts: np.ndarray = higher[own] + len(close) - after
        if rows.start <= self.rows.max():  # otherwise all that tie come later
            before = np.searchsorted(close, self.values, side="left")
            for level in np.flatnonzero(after > before):
                equal = chosen[order[before[level] : after[level]]]  # ascending: the sort is stable
                counts[level] += np.searchsorted(equal, self.rows[level] - rows.start)
        return counts


def _bins(scores: np.ndarray, low: Any, scale: Any, bins: int) -> np.ndarray:
    """Which bin a score falls into: 0 below `low`, `bins` + 1 at most; never falls as scores rise."""
    with np.errstate(over="ignore"):
        place = (scores - low) * scale
    place += 1
    np.clip(place, 0, bins + 1, out=place)
    return place.astype(np.intp)


def _pinned(scores: np.ndarray, levels: Sequence[Levels], block: Block) -> Iterator[np.ndarray]:
    """Rows of `scores` with the wanted images' own as first seen, should a device give other bits the second time."""
    for row, level in zip(scores, levels, strict=True):
        here = (level.rows >= block.rows.start) & (level.rows < block.rows.stop)
        row[level.rows[here] - block.rows.start] = level.values[here]
        yield row


def _scored(scorer: Scorer, block: Block) -> Iterator[tuple[slice, np.ndarray]]:
    """Some queries after others, and their scores (Q', M) with a block; -inf where an image is not valid."""
    loaded = scorer.load(block.read())
    for start in range(0, scorer.count, QUERIES_AT_ONCE):
        queries = slice(start, min(start + QUERIES_AT_ONCE, scorer.count))
        scores = scorer.scores(loaded, queries)
        if block.valid is not None and not block.valid.all():
            scores = np.where(block.valid, scores, -np.inf).astype(scores.dtype)
        yield queries, scores


def _over(blocks: Sequence[Block], work: Callable[[Block], T], workers: int | None, bar: Any) -> Iterator[T]:
    """`work` of every block in order, several at once, each with one thread for its products."""
    count = min(workers or available_cores(), MOST_WORKERS, max(1, len(blocks)))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count) as pool:
        try:
            for block, result in zip(blocks, pool.map(work, blocks), strict=True):
                if bar is not None:
                    bar.update(len(block.rows))
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
