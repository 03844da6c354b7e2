"""Which images meet in a batch: an epoch's plan from labels, seed and epoch, never from the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cgd.errors import InputError
from cgd.types import Batch


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch's plan and random targets."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch]))


def label_pairs(
    labels: Sequence[str], usable: np.ndarray, views: Sequence[int], batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Every label once, two distinct images of each, an independent view of either (methods.md 1.10).

    `usable` (N,) bool are the images all teachers could read; `views` are the stored view numbers. All labels
    of a batch are distinct, so everything off the diagonal is a true negative. The last batch may be smaller;
    a single pair has no negatives and is left out.
    """
    rows = np.flatnonzero(usable)
    names, owner = np.unique(np.asarray(labels, dtype=str)[rows], return_inverse=True)
    members = np.split(rows[np.argsort(owner, kind="stable")], np.cumsum(np.bincount(owner, minlength=len(names)))[:-1])
    members = [m for m in members if len(m) >= 2]
    if len(members) < 2:
        raise InputError(
            "pairs by label need at least two labels with two images each; try --set distill.positives=image."
        )
    order = generator.permutation(len(members))
    for chosen in _cut(order, batch):
        pairs = np.stack([generator.choice(members[i], 2, replace=False) for i in chosen])
        yield Batch(pairs.astype(np.int64), generator.choice(np.asarray(views, np.int64), pairs.shape))


def image_pairs(
    usable: np.ndarray, views: Sequence[int], batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Every image once, paired with itself under two different views (the self-supervised form of methods.md 1.11).

    Where there is one view only, both are that one: what is between different images still teaches.
    """
    drawn = min(len(views), 2)
    order = generator.permutation(np.flatnonzero(usable))
    if len(order) < 2:
        raise InputError("pairs of two views need at least two readable images.")
    for chosen in _cut(order, batch):
        seen = np.stack([generator.choice(np.asarray(views, np.int64), drawn, replace=False) for _ in chosen])
        seen = np.broadcast_to(seen, (len(chosen), 2))
        yield Batch(np.stack([chosen, chosen], axis=1).astype(np.int64), seen)


def single_images(
    usable: np.ndarray, views: Sequence[int], batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Every image once, alone, under a view drawn for it; the last batch may be smaller."""
    order = generator.permutation(np.flatnonzero(usable))
    if len(order) < 2:
        raise InputError("training needs at least two readable images.")
    for chosen in _cut(order, batch):
        rows = chosen[:, None].astype(np.int64)
        yield Batch(rows, generator.choice(np.asarray(views, np.int64), rows.shape))


def _cut(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        if len(part) > 1:
            yield part
