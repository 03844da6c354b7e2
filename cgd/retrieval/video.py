"""How alike two videos are, from their frames' descriptors (methods.md 8.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cgd.errors import InputError
from cgd.retrieval.vectors import l2

Similarity = Literal["cf", "fme", "fmx", "sme", "smx"]
FRAMES_AT_ONCE = 512  # of queries, compared with a block of candidates


@dataclass(frozen=True)
class Videos:
    """Descriptors `frames` (T, D) of V videos, one video after the other; each has `lengths` (V,) of them, int."""

    frames: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        if (self.lengths < 1).any() or self.lengths.sum() != len(self.frames):
            raise InputError(
                f"{len(self.lengths)} videos of {int(self.lengths.sum())} frames have {len(self.frames)} descriptors: "
                "every video has a frame, and every frame a descriptor."
            )

    @property
    def starts(self) -> np.ndarray:
        """Rows (V,) of the first frames."""
        begun: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return begun

    def part(self, videos: slice) -> Videos:
        """Consecutive videos."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        first, stop, _ = videos.indices(len(self.lengths))
        return Videos(self.frames[ends[first] : ends[max(first, stop)]], self.lengths[videos])


def similarities(queries: Videos, candidates: Videos, kind: Similarity = "cf") -> np.ndarray:
    """Similarities (Q, V) of query videos with candidate videos, in their frames' precision.

    `cf`, by which results are published, is the mean over the query's frames of the largest cosine with a frame of
    the candidate; `sme` and `smx` are mean and maximum of the cosines of all pairs of frames; `fme` and `fmx` are
    the cosine of the videos' mean or maximum over frames as given, not normalised. `cf` and `smx` hold every cosine
    of two frames at once: `VideoScorer` takes them in parts.
    """
    return _compare(_prepared(queries, kind), _prepared(candidates, kind), kind)


class VideoScorer:
    """A `Scorer` of query videos against blocks of candidates, each the `Videos` of one or more models.

    Scores are the mean of the models' similarities. Besides a block, memory holds the cosines of its frames with
    `FRAMES_AT_ONCE` frames of queries, or with those of one query that has more.
    """

    def __init__(self, queries: Sequence[Videos], kind: Similarity) -> None:
        self.queries = [_prepared(each, kind) for each in queries]
        self.kind = kind
        self.count = len(queries[0].lengths)

    def load(self, vectors: Sequence[Videos]) -> list[Videos]:
        return [_prepared(each, self.kind) for each in vectors]

    def scores(self, loaded: Sequence[Videos], queries: slice) -> np.ndarray:
        """Similarities (Q', V)."""
        found: list[np.ndarray] = []
        for own, others in zip(self.queries, loaded, strict=True):
            parts = [_compare(own.part(some), others, self.kind) for some in _some(own.lengths, queries)]
            found.append(np.concatenate(parts))
        total: np.ndarray = sum(found[1:], start=found[0]) / found[0].dtype.type(len(found))
        return total


def _some(lengths: np.ndarray, videos: slice) -> Iterator[slice]:
    """`videos` in parts of at most `FRAMES_AT_ONCE` frames."""
    first = videos.start
    for place in range(videos.start + 1, videos.stop + 1):
        if place == videos.stop or lengths[first : place + 1].sum() > FRAMES_AT_ONCE:
            yield slice(first, place)
            first = place


def _prepared(videos: Videos, kind: Similarity) -> Videos:
    """What is multiplied: unit vectors of frames, or one vector of a video.

    The mean of all cosines of two videos is the product of the means of their unit vectors.
    """
    if kind in ("cf", "smx"):
        return Videos(l2(videos.frames), videos.lengths)
    if kind == "sme":
        pooled = _mean(l2(videos.frames), videos, 0)
    else:
        pooled = l2((_mean if kind == "fme" else _largest)(videos.frames, videos, 0))
    return Videos(pooled, np.ones_like(videos.lengths))


def _compare(queries: Videos, candidates: Videos, kind: Similarity) -> np.ndarray:
    """Similarities (Q, V) of what `_prepared` gave."""
    products: np.ndarray = queries.frames @ candidates.frames.T
    if kind not in ("cf", "smx"):
        return products
    over_query = _mean if kind == "cf" else _largest
    return over_query(_largest(products, candidates, 1), queries, 0)


def _mean(values: np.ndarray, videos: Videos, axis: int) -> np.ndarray:
    """Over the frames of each video along `axis`."""
    lengths = np.expand_dims(videos.lengths, 1 - axis).astype(values.dtype)
    mean: np.ndarray = np.add.reduceat(values, videos.starts, axis) / lengths
    return mean


def _largest(values: np.ndarray, videos: Videos, axis: int) -> np.ndarray:
    largest: np.ndarray = np.maximum.reduceat(values, videos.starts, axis)
    return largest
