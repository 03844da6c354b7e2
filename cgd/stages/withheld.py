"""Which images a student is not trained on: classes held out, labels to exclude, and all beyond a budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgd.config import DistillConfig
from cgd.data.sampling import within_budget
from cgd.errors import InputError
from cgd.types import ImageList

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Withheld:
    """Images not to train on, (N,) bool each: held out to tell the best epoch, excluded, beyond the budget.

    `labels` are those to exclude.
    """

    validation: np.ndarray
    excluded: np.ndarray
    beyond: np.ndarray
    labels: tuple[str, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them, in order."""
        return tuple(np.flatnonzero(self.validation | self.excluded | self.beyond).tolist())


def withheld_of(images: ImageList, config: DistillConfig) -> Withheld:
    """What `config` withholds of `images`; refuses a file of labels that cannot be meant, and too few classes."""
    none = np.zeros(len(images), bool)
    beyond = ~within_budget(images, config.images, config.images_by, config.images_seed)
    if not (config.validation or config.exclude):
        return Withheld(none, none, beyond, ())
    if images.labels is None:
        what = "distill.validation" if config.validation else "--exclude"
        raise InputError(f"{images.title} has no labels, which {what} needs.")
    excluded = none
    labels: tuple[str, ...] = ()
    if config.exclude:
        labels = _read_labels(Path(config.exclude))
        excluded = np.isin(np.asarray(images.labels, dtype=str), labels)
        found = len(set(labels) & set(images.labels))
        if not found:
            raise InputError(f"none of the {len(labels)} labels in {config.exclude} occurs in {images.title}.")
        log.debug(
            "%d of %d labels in %s occur: %d images are not trained on",
            found, len(labels), config.exclude, int(excluded.sum()),
        )  # fmt: skip
    validation = none
    if config.validation:
        kept = np.flatnonzero(~excluded)
        validation = none.copy()
        validation[kept] = held_out([images.labels[row] for row in kept], config.validation, config.seed)
    return Withheld(validation, excluded, beyond, labels)


def _read_labels(path: Path) -> tuple[str, ...]:
    """Sorted labels of a text file, one per line; empty lines and those that begin with # do not count."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read the labels to exclude from {path}: {reason}.") from error
    return tuple(sorted({line for line in lines if line and not line.startswith("#")}))


def held_out(labels: Sequence[str], share: float, seed: int) -> np.ndarray:
    """(N,) bool: images of the classes left out of training, a `share` of all classes with at least two images."""
    _, owner, counts = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts >= 2)
    chosen = round(share * len(several))
    if chosen < 2 or len(several) - chosen < 2:
        raise InputError(
            f"distill.validation={share:g} of {len(several)} classes with two images or more holds out {chosen}: "
            "at least two must be held out and two must stay."
        )
    draw = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    return np.isin(owner, draw.permutation(several)[:chosen])
