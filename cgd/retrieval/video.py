"""How alike two videos are, from their frames' descriptors (methods.md 8.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cgd.errors import InputError
from cgd.retrieval.vectors import l2

Similarity = Literal["cf", "fme", "fmx", "sme", "smx"]


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


def similarities(queries: Videos, candidates: Videos, kind: Similarity = "cf") -> np.ndarray:
    """Similarities (Q, V) of query videos with candidate videos, in their frames' precision.

    `cf`, by which results are published, is the mean over the query's frames of the largest cosine with a frame of
    the candidate; `sme` and `smx` are mean and maximum of the cosines of all pairs of frames; `fme` and `fmx` are
    the cosine of the videos' mean or maximum over frames as given, not normalised. The first three hold every cosine
    of two frames at once: give them candidates in blocks.
    """
    if kind in ("fme", "fmx"):
        pool = _mean if kind == "fme" else _largest
        pooled: np.ndarray = l2(pool(queries.frames, queries, 0)) @ l2(pool(candidates.frames, candidates, 0)).T
        return pooled
    over_query, over_candidate = {"cf": (_mean, _largest), "sme": (_mean, _mean), "smx": (_largest, _largest)}[kind]
    cosines = l2(queries.frames) @ l2(candidates.frames).T  # frames of all queries, of all candidates
    return over_query(over_candidate(cosines, candidates, 1), queries, 0)


def _mean(values: np.ndarray, videos: Videos, axis: int) -> np.ndarray:
    """Over the frames of each video along `axis`."""
    lengths = np.expand_dims(videos.lengths, 1 - axis).astype(values.dtype)
    mean: np.ndarray = np.add.reduceat(values, videos.starts, axis) / lengths
    return mean


def _largest(values: np.ndarray, videos: Videos, axis: int) -> np.ndarray:
    largest: np.ndarray = np.maximum.reduceat(values, videos.starts, axis)
    return largest
