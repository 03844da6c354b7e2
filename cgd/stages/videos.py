"""Videos ranked by their frames, which are read block by block from stored embeddings; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cgd.data.frames import videos_of
from cgd.retrieval.search import Block
from cgd.retrieval.video import Videos
from cgd.stages.descriptors import Fused, Member, Vectors, computed
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList, Key

FRAMES_IN_BLOCK = 4096


@dataclass(frozen=True)
class VideoVectors:
    """Frame vectors of V videos by one or more models, as they came, not normalised.

    `starts` and `lengths` (V,) are the rows of each video in the image list; `known` (N,) the frames that every model
    could read. A video without any is not `valid` (V,).
    """

    models: Sequence[Vectors]
    starts: np.ndarray
    lengths: np.ndarray
    known: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        found: np.ndarray = np.logical_or.reduceat(self.known, self.starts)
        return found

    def read(self, videos: range) -> list[Videos]:
        """Consecutive videos by each model, without frames that could not be read; of none, one zero vector."""
        starts, last = self.starts[videos.start : videos.stop], videos.stop - 1
        rows = range(int(starts[0]), int(self.starts[last] + self.lengths[last]))
        kept = self.known[rows.start : rows.stop].copy()
        starts = starts - rows.start
        kept[starts] |= ~np.logical_or.reduceat(kept, starts)
        lengths = np.add.reduceat(kept.astype(np.int64), starts)
        return [Videos(model.read(rows)[kept], lengths) for model in self.models]

    @property
    def blocks(self) -> list[Block]:
        """All videos, cut where `FRAMES_IN_BLOCK` frames are reached; a longer video is a block of its own."""
        valid, blocks, first = self.valid, [], 0
        for place in range(1, len(self.starts) + 1):
            ends = place == len(self.starts)
            if ends or self.starts[place] + self.lengths[place] - self.starts[first] > FRAMES_IN_BLOCK:
                rows = range(first, place)
                blocks.append(Block(rows, partial(self.read, rows), valid[first:place]))
                first = place
        return blocks


def gallery_of(member: Member) -> Key | Fused:
    """The side of a member that is searched in."""
    return member.gallery


def video_vectors(
    store: FeatureStore, images: ImageList, members: Sequence[Member], side: Callable[[Member], Key | Fused]
) -> VideoVectors:
    """The videos of `images` as the members see them; `side` is a member's embeddings of these images."""
    models = [computed(store, side(member), member.whitening, unit=False) for member in members]
    _, lengths = videos_of(images)
    known = np.logical_and.reduce([model.valid for model in models])
    return VideoVectors(models, np.cumsum(lengths) - lengths, lengths, known)
