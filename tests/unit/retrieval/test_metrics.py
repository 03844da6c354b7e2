"""Scores of ranked lists on cases worked out by hand (methods.md 8.3 to 8.7)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cgd.retrieval.metrics import (
    average_precision,
    average_precision_at,
    mean_average_precision_at,
    precision_and_recall_at,
    precision_at,
    random_queries,
    recall_at,
    relevance,
    score,
)
from cgd.types import GroundTruth


def at(*ranks: int) -> np.ndarray:
    return np.array(ranks, dtype=np.int64)


def test_the_trapezoid_averages_the_precision_before_and_after_each_positive() -> None:
    assert average_precision(at(0, 2, 5), 3) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3)
    assert average_precision(at(0, 2, 5), 3, "mean-precision") == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)


def test_positives_that_were_not_found_count() -> None:
    assert average_precision(at(0), 4) == 0.25
    assert average_precision(at(), 4) == 0
    assert math.isnan(average_precision(at(), 0))


def test_the_cut_off_divides_by_the_hits_inside() -> None:
    ranks = at(1, 2, 5)
    assert average_precision_at(ranks) == pytest.approx((1 / 2 + 2 / 3 + 3 / 6) / 3)
    assert average_precision_at(ranks, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision_at(ranks, 1) == 0
    assert average_precision_at(at()) == 0


def test_queries_without_a_hit_lower_the_mean() -> None:
    assert mean_average_precision_at([at(0), at(7), at()], 5) == pytest.approx(1 / 3)
    assert mean_average_precision_at([at(0), at(1), at()]) == pytest.approx(0.5)


def test_asking_for_all_but_the_last_loses_a_hit_there() -> None:
    """What released hashing code does when it is told to look at all."""
    ranks, gallery = at(0, 3), 4
    assert average_precision_at(ranks, gallery) == pytest.approx((1 + 2 / 4) / 2)
    assert average_precision_at(ranks, gallery - 1) == 1


def test_precision_shrinks_its_denominator_only_where_all_positives_were_found() -> None:
    assert precision_at(at(0, 2), 2, 10) == pytest.approx(2 / 3)
    assert precision_at(at(0, 2), 2, 2) == 0.5
    assert precision_at(at(0, 2), 5, 10) == pytest.approx(2 / 10)  # three of five are somewhere below
    assert precision_at(at(), 5, 10) == 0
    assert math.isnan(precision_at(at(), 0, 10))


def test_precision_and_recall_of_hashing_are_means_over_all_queries() -> None:
    ranks, positives = [at(0, 3), at()], [at(5, 9), at()]
    assert precision_and_recall_at(ranks, positives, 1) == pytest.approx((0.5, 0.25))
    assert precision_and_recall_at(ranks, positives, 10) == pytest.approx((0.1, 0.5))


def test_recall_counts_queries_with_a_hit_among_the_first() -> None:
    ranks = [at(0, 9), at(3), at()]
    assert [recall_at(ranks, k) for k in (1, 3, 4, 100)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_random_queries_are_distinct_and_all_where_there_are_few() -> None:
    assert random_queries(5, 10, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
    drawn = random_queries(1000, 100, np.random.default_rng(0))
    assert len(np.unique(drawn)) == 100
    assert 0 <= drawn[0] < drawn[-1] < 1000
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == random_queries(1000, 100, np.random.default_rng(0)).tolist()
    assert drawn.tolist() != random_queries(1000, 100, np.random.default_rng(1)).tolist()


TRUTH = GroundTruth(easy=(at(1), at()), hard=(at(2, 3), at(0)), junk=(at(4), at()))


@pytest.mark.parametrize(
    ("protocol", "positives", "ignored"),
    [
        ("easy", [[1], []], [[2, 3, 4], [0]]),
        ("medium", [[1, 2, 3], [0]], [[4], []]),
        ("hard", [[2, 3], [0]], [[1, 4], []]),
    ],
)
def test_what_is_relevant(protocol: str, positives: list[list[int]], ignored: list[list[int]]) -> None:
    found = relevance(TRUTH, protocol)
    assert [sorted(p.tolist()) for p in found[0]] == positives
    assert [sorted(i.tolist()) for i in found[1]] == ignored


def test_an_unknown_protocol_is_a_bug() -> None:
    with pytest.raises(ValueError, match="harder"):
        relevance(TRUTH, "harder")


def test_a_score_leaves_queries_without_a_positive_out_of_its_means_but_not_out_of_recall() -> None:
    result = score("hard", [at(0), at(1), at()], [at(7), at(8), at()])
    assert (result.protocol, result.queries) == ("hard", 2)
    assert result.mean_ap == pytest.approx((1 + 0.25) / 2)
    np.testing.assert_array_equal(result.average_precision, [1, 0.25, np.nan])
    assert result.precision_at == pytest.approx({1: 0.5, 5: 0.75, 10: 0.75})
    assert result.recall_at == pytest.approx({1: 1 / 3, 5: 2 / 3, 10: 2 / 3})


def test_a_score_of_positives_that_an_index_did_not_find() -> None:
    result = score("medium", [at(0), at()], [at(3, 4), at(5)])
    assert result.mean_ap == pytest.approx(0.25)
    assert result.precision_at == pytest.approx({1: 0.5, 5: 0.1, 10: 0.05})
    assert result.recall_at == {1: 0.5, 5: 0.5, 10: 0.5}


def test_a_score_without_any_positive_has_no_means() -> None:
    result = score("easy", [at()], [at()])
    assert (result.queries, result.recall_at) == (0, {1: 0.0, 5: 0.0, 10: 0.0})
    assert math.isnan(result.mean_ap)
    assert all(math.isnan(v) for v in result.precision_at.values())
