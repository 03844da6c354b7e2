"""Binary codes against loops over bits, with ties ordered by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from cgd.retrieval import hamming
from cgd.retrieval.hamming import pack, ranked, ranks_of


def codes(count: int, bits: int, seed: int) -> np.ndarray:
    """Rows of -1 and 1."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], (count, bits))


@pytest.mark.parametrize("bits", [5, 8, 12, 64])
@pytest.mark.parametrize("memory", [1, 1 << 28])
def test_all_distances_and_ties_in_the_order_of_rows(bits: int, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "COUNTERS", memory)
    queries, gallery = codes(7, bits, 0), codes(90, bits, 1)
    found = list(ranked(pack(queries), pack(gallery)))
    assert len(found) == 7
    for query, (distances, rows) in zip(queries, found, strict=True):
        apart = [sum(a != b for a, b in zip(query, item, strict=True)) for item in gallery]
        expected = sorted(range(90), key=lambda row: (apart[row], row))
        assert rows.tolist() == expected
        assert distances.tolist() == [apart[row] for row in expected]


def test_a_bit_is_an_output_above_zero() -> None:
    outputs = np.array([[0.1, -0.1, 0.0, -0.0, 3e-40, -3, 2, 1, 5]], np.float32)
    assert pack(outputs).tolist() == [[0b10001011, 0b10000000]]


def test_ranks_however_ties_fall() -> None:
    distances, rows = np.array([0, 1, 1, 1, 1, 2]), np.array([4, 0, 1, 3, 6, 2])
    relevant = np.isin(np.arange(7), [1, 6, 2])
    kept = np.arange(7) != 3
    stable, best, worst = ranks_of(distances, rows, relevant, kept)
    assert (stable.tolist(), best.tolist(), worst.tolist()) == ([2, 3, 4], [1, 2, 4], [2, 3, 4])
    stable, best, worst = ranks_of(distances, rows, relevant & (np.arange(7) != 6), kept)
    assert (stable.tolist(), best.tolist(), worst.tolist()) == ([2, 4], [1, 4], [3, 4])
