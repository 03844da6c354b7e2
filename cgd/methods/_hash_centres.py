"""Hash centres: one far-apart binary code per class, which CSQ pulls the codes of its images to."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cgd.errors import InputError

DRAWS = 20  # of random centres, where Hadamard's do not suffice


@lru_cache(maxsize=4)
def hash_centres(bits: int, classes: int, seed: int) -> np.ndarray:
    """Centres (classes, bits) of -1 and 1, int8 (methods.md 5.3).

    Rows of Sylvester's Hadamard matrix, then their negatives: half of the bits apart, or all. More classes than these
    get balanced random codes, drawn until all centres are more than a quarter of the bits apart and half of them on
    average; where that is not reached, the draw with the largest smallest distance is kept (the released code keeps
    the last one). Raises `InputError` where `bits` is no power of two.
    """
    if bits < 2 or bits & (bits - 1):
        below = 1 << max(bits, 2).bit_length() - 1
        raise InputError(
            f"hash centres exist for a power of two of bits, and the student has {bits}: give it ?dim={below} or "
            f"?dim={2 * below}, or use the method dch, which takes any number."
        )
    hadamard = np.ones((1, 1), np.int8)
    while len(hadamard) < bits:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    fixed = np.concatenate([hadamard, -hadamard])[:classes]
    if classes <= 2 * bits:
        return fixed
    generator, best, best_least = np.random.default_rng(seed), fixed, -1
    for _ in range(DRAWS):
        drawn = generator.permuted(np.tile(hadamard[1], (classes - 2 * bits, 1)), axis=1)  # as many of -1 as of 1
        centres = np.concatenate([fixed, drawn])
        least, mean = distances(centres)[:2]
        if least > best_least:
            best, best_least = centres, least
        if least > bits / 4 and mean >= bits / 2:
            break
    return best


def distances(centres: np.ndarray) -> tuple[int, float, int]:
    """Smallest, mean and largest Hamming distance between two of some codes (C, bits) of -1 and 1."""
    wide = centres.astype(np.int64)
    apart = ((wide.shape[1] - wide @ wide.T) // 2)[np.triu_indices(len(wide), 1)]
    return int(apart.min()), float(apart.mean()), int(apart.max())


def centres_of(members: np.ndarray, centres: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """The code (B, bits) of -1 and 1 that each image is pulled to: the sign of the sum of its classes' centres.

    `members` (B, C) tells the classes of each image; where as many centres say 1 as -1, `ties` (bits,) decides.
    """
    summed = members.astype(np.int64) @ centres.astype(np.int64)
    return np.where(summed == 0, ties, np.sign(summed))
