"""How well a student in training retrieves classes it does not train on, by which its best epoch is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgd.errors import InputError
from cgd.retrieval.metrics import score
from cgd.retrieval.search import exact_ranks
from cgd.retrieval.vectors import l2

MOST_IMAGES = 2000  # scored, of whole classes, however many are held out


def validation_rows(labels: Sequence[str], withheld: np.ndarray, usable: np.ndarray, seed: int) -> np.ndarray:
    """Sorted rows that are scored: readable images of classes held out, whole classes until there are enough."""
    rows = np.flatnonzero(withheld & usable)
    names, owner, counts = np.unique(np.asarray(labels, dtype=str)[rows], return_inverse=True, return_counts=True)
    chosen, images = [], 0
    for name in np.random.default_rng(np.random.SeedSequence([seed, 6])).permutation(len(names)):
        if counts[name] >= 2 and (images + counts[name] <= MOST_IMAGES or not images):
            chosen.append(name)
            images += counts[name]
    if len(chosen) < 2:
        raise InputError("the classes held out by distill.validation have too few readable images: hold out more.")
    return rows[np.isin(owner, chosen)]


def leave_one_out(descriptors: np.ndarray, labels: Sequence[str]) -> float:
    """mAP x 100 of every image (M, D) against all others, relevant where the label is the same."""
    unit, owner = l2(descriptors.astype(np.float32)), np.asarray(labels, dtype=str)
    positives = [np.flatnonzero((owner == label) & (np.arange(len(owner)) != q)) for q, label in enumerate(owner)]
    ranks = exact_ranks(unit @ unit.T, positives, [np.array([q]) for q in range(len(owner))])
    return 100 * score("labels", ranks, positives).mean_ap
