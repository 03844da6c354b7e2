"""Intervals and paired tests over queries: against SciPy, by hand, and as often right as they say."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from cgd.retrieval import bootstrap
from cgd.retrieval.bootstrap import interval, paired


def scores(queries: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(2, 1, queries)


@pytest.mark.parametrize(("queries", "level"), [(7, 0.95), (70, 0.95), (70, 0.5), (1283, 0.9)])
def test_the_interval_is_scipys(queries: int, level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = scores(queries)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, confidence_level=level, method="percentile", batch=500,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    tolerance = 0.06 * (expected.high - expected.low)  # what ten thousand resamples leave to chance
    assert interval(values, level=level) == pytest.approx((expected.low, expected.high), abs=tolerance)


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.03])
def test_p_is_that_of_scipys_permutation_test(shift: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = scores(60, 1), scores(60, 1) + np.random.default_rng(2).normal(shift, 0.1, 60)
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=10_000, batch=500,
        rng=np.random.default_rng(3),
    ).pvalue  # fmt: skip
    assert paired(a, b).p == pytest.approx(expected, abs=0.02)


def test_queries_without_a_positive_are_left_out() -> None:
    values = scores(30)
    with_gaps = np.insert(values, [0, 10, 30], np.nan)
    assert interval(with_gaps) == interval(values)


def test_two_queries_by_hand() -> None:
    """The mean of two draws from {0, 1} is 0, 1/2 or 1, with shares 1/4, 1/2, 1/4."""
    assert interval(np.array([0.0, 1.0]), level=0.95) == (0.0, 1.0)
    assert interval(np.array([0.0, 1.0]), level=0.4) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[0.3], [0.3, np.nan], [0.3] * 5])
def test_one_query_and_equal_ones_leave_no_doubt(values: list[float]) -> None:
    assert interval(np.array(values)) == pytest.approx((0.3, 0.3), abs=1e-15)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_without_any_scored_query_there_is_no_interval(values: list[float]) -> None:
    found = paired(np.array(values, float), np.array(values, float))
    assert found.queries == found.wins == found.losses == found.ties == 0
    assert all(
        map(math.isnan, (*interval(np.array(values, float)), found.difference, found.mean_a, found.low, found.p))
    )


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(5)
    ends = [interval(draw.beta(2, 3, 60), resamples=500, seed=n) for n in range(400)]
    covered = np.mean([low <= 2 / 5 <= high for low, high in ends])
    assert 0.91 <= covered <= 0.98  # 0.95, less a little for few queries, give or take three standard errors


def test_p_is_small_by_chance_as_often_as_it_says() -> None:
    draw = np.random.default_rng(6)
    found = [paired(draw.random(40), draw.random(40), resamples=300, seed=n).p for n in range(400)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09
    assert 0.42 <= np.mean(np.array(found) <= 0.5) <= 0.58


def test_a_pair_by_hand() -> None:
    a = np.array([0.5, 0.9, 0.4, np.nan, 0.7])
    b = np.array([0.5, 0.1, 0.5, 0.3, np.nan])
    found = paired(a, b)
    assert (found.wins, found.losses, found.ties, found.queries) == (1, 1, 1, 3)
    assert (found.mean_a, found.mean_b) == pytest.approx((0.6, 1.1 / 3))
    assert found.difference == pytest.approx(0.7 / 3)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.8))
    assert found.p == 1  # with any signs, 0.8 and 0.1 make 0.7 or 0.9


def test_three_wins_of_three_are_a_quarter() -> None:
    """All signs alike are 2 of 8: equal sums count however their digits were added up."""
    assert paired(np.array([0.1, 0.2, 0.3]), np.zeros(3)).p == pytest.approx(0.25, abs=0.015)


def test_swapping_the_pair_changes_signs_only() -> None:
    a, b = scores(50, 1), scores(50, 2)
    one, two = paired(a, b), paired(b, a)
    assert (one.difference, one.wins, one.losses) == (-two.difference, two.losses, two.wins)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low), abs=0.01)
    assert one.p == two.p


def test_equal_models_and_the_smallest_p() -> None:
    a = scores(40)
    alike = paired(a, a)
    assert (alike.difference, alike.low, alike.high, alike.p, alike.ties) == (0, 0, 0, 1, 40)
    assert paired(a + 1, a, resamples=999).p == 1 / 1000


def test_the_same_seed_gives_the_same_numbers_and_nothing_given_is_changed() -> None:
    a, b = scores(50, 1), scores(50, 2)
    before = a.copy(), b.copy()
    assert paired(a, b) == paired(a, b)
    assert interval(a) == interval(a) != interval(a, seed=1)
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


def test_scores_of_different_queries_are_a_bug() -> None:
    with pytest.raises(ValueError, match="of the same queries"):
        paired(np.zeros(3), np.zeros(4))


def test_resamples_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = scores(20_000)
    tracemalloc.start()
    paired(values, values[::-1], resamples=500)  # 80 MB at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    small, whole = scores(40), interval(scores(40))
    monkeypatch.setattr(bootstrap, "AT_ONCE", 64)
    assert interval(small) == whole
