"""Laws of scores that hold for any ranking, ties included, against naive loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ranking import searched_ranks, sorted_ranks

from cgd.retrieval.metrics import (
    PROTOCOLS,
    average_precision,
    average_precision_at,
    mean_average_precision_at,
    precision_and_recall_at,
    precision_at,
    recall_at,
    relevance,
    score,
)
from cgd.types import GroundTruth

laws = settings(deadline=None, database=None, max_examples=100)
NEITHER, EASY, HARD, JUNK = range(4)
KS = (1, 5, 10)
cuts = st.integers(1, 40)


@dataclass(frozen=True)
class Case:
    """Scores (Q, G) of a gallery, and what each image is to each query (Q, G): nothing, easy, hard or junk."""

    scores: np.ndarray
    roles: np.ndarray

    def of(self, *roles: int) -> list[np.ndarray]:
        return [np.flatnonzero(np.isin(row, roles)) for row in self.roles]

    @property
    def truth(self) -> GroundTruth:
        return GroundTruth(*(tuple(self.of(role)) for role in (EASY, HARD, JUNK)))

    def ranks(self) -> list[np.ndarray]:
        """Of easy and hard images, junk taken out."""
        return sorted_ranks(self.scores, self.of(EASY, HARD), self.of(JUNK))

    def reordered(self, order: np.ndarray) -> Case:
        return Case(self.scores[:, order], self.roles[:, order])

    def with_images(self, places: np.ndarray, scores: np.ndarray, role: int) -> Case:
        """One more image before each of `places`, all of one role; their scores are `scores` (Q, len(places))."""
        return Case(np.insert(self.scores, places, scores, axis=1), np.insert(self.roles, places, role, axis=1))


@st.composite
def cases(draw: st.DrawFn, *, distinct: bool = False, queries: int = 3) -> Case:
    """Scores from a small set of integers, so that many tie, or all of them `distinct`."""
    gallery = draw(st.integers(1, 30))
    row = (
        st.permutations(range(gallery))
        if distinct
        else st.lists(st.integers(-2, 2), min_size=gallery, max_size=gallery)
    )
    roles = st.lists(st.sampled_from([NEITHER, NEITHER, EASY, HARD, JUNK]), min_size=gallery, max_size=gallery)
    count = draw(st.integers(1, queries))
    return Case(
        np.array([draw(row) for _ in range(count)], dtype=np.float64), np.array([draw(roles) for _ in range(count)])
    )


def labels_in_order(case: Case, query: int) -> list[bool]:
    """Whether each image of the ranked list is a positive, by comparing every pair of images."""
    kept = [g for g in range(case.scores.shape[1]) if case.roles[query, g] != JUNK]
    above = {g: sum((case.scores[query, o], -o) > (case.scores[query, g], -g) for o in kept) for g in kept}
    return [case.roles[query, g] in (EASY, HARD) for g in sorted(kept, key=above.__getitem__)]


def trapezoid(labels: list[bool], positives: int) -> float:
    """Area under precision over recall, one step of recall for each positive."""
    hits, area, before = 0, 0.0, 1.0
    for place, relevant in enumerate(labels, 1):
        hits += relevant
        if relevant:
            area += (before + hits / place) / 2 / positives
        before = hits / place
    return area if positives else math.nan


def averages(case: Case) -> list[float]:
    """AP of every query under every protocol."""
    found: list[float] = []
    for protocol in PROTOCOLS:
        positives, ignored = relevance(case.truth, protocol)
        found += score(protocol, sorted_ranks(case.scores, positives, ignored), positives).average_precision.tolist()
    return found


# against loops


@laws
@given(case=cases())
def test_both_rankings_and_the_trapezoid_are_those_of_loops(case: Case) -> None:
    positives = case.of(EASY, HARD)
    searched = searched_ranks(case.scores, positives, case.of(JUNK))
    for query, (found, known) in enumerate(zip(searched, case.ranks(), strict=True)):
        labels = labels_in_order(case, query)
        assert found.tolist() == known.tolist() == [r for r, relevant in enumerate(labels) if relevant]
        expected = trapezoid(labels, len(positives[query]))
        assert average_precision(found, len(positives[query])) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@laws
@given(case=cases(), k=cuts)
def test_cut_off_scores_are_those_of_loops(case: Case, k: int) -> None:
    positives, ranks = case.of(EASY, HARD), case.ranks()
    each, precision, recall, found = [], [], [], []
    for query in range(len(ranks)):
        first = labels_in_order(case, query)[:k]
        precisions = [sum(first[: place + 1]) / (place + 1) for place, relevant in enumerate(first) if relevant]
        each.append(sum(precisions) / len(precisions) if precisions else 0.0)
        precision.append(sum(first) / k)
        recall.append(sum(first) / len(positives[query]) if len(positives[query]) else 0.0)
        found.append(any(first))
    count = len(ranks)
    assert [average_precision_at(r, k) for r in ranks] == pytest.approx(each, abs=1e-12)
    assert mean_average_precision_at(ranks, k) == pytest.approx(sum(each) / count, abs=1e-12)
    assert precision_and_recall_at(ranks, positives, k) == pytest.approx((sum(precision) / count, sum(recall) / count))
    assert recall_at(ranks, k) == pytest.approx(sum(found) / count)


@laws
@given(case=cases(queries=1), k=cuts)
def test_precision_with_its_shrinking_denominator_is_that_of_loops(case: Case, k: int) -> None:
    (ranks,), labels = case.ranks(), labels_in_order(case, 0)
    assume(any(labels))
    last = max(place for place, relevant in enumerate(labels, 1) if relevant)
    cut = min(k, last)
    assert precision_at(ranks, len(ranks), k) == pytest.approx(sum(labels[:cut]) / cut)


@laws
@given(case=cases(queries=1), k=cuts, lost=st.integers(1, 5))
def test_a_positive_that_was_not_found_never_raises_a_score(case: Case, k: int, lost: int) -> None:
    (ranks,) = case.ranks()
    assume(len(ranks))
    fewer, count = ranks[: max(0, len(ranks) - lost)], len(ranks)
    assert average_precision(fewer, count) <= average_precision(ranks, count)
    assert precision_at(fewer, count, k) <= precision_at(ranks, count, k)
    assert recall_at([fewer], k) <= recall_at([ranks], k)


@laws
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=12), data=st.data(), k=st.integers(1, 12))
def test_recall_leave_one_out_is_that_of_loops(labels: list[int], data: st.DataObject, k: int) -> None:
    count = len(labels)
    given_scores = st.lists(st.integers(-2, 2), min_size=count, max_size=count)
    scores = np.array([data.draw(given_scores) for _ in labels], dtype=np.float64)
    hits = 0
    for query in range(count):
        others = sorted((o for o in range(count) if o != query), key=lambda o: (-scores[query, o], o))
        hits += any(labels[o] == labels[query] for o in others[:k])
    same = np.equal.outer(labels, labels) & ~np.eye(count, dtype=bool)
    ranks = sorted_ranks(scores, [np.flatnonzero(row) for row in same], [np.array([q]) for q in range(count)])
    assert recall_at(ranks, k) == hits / count


# invariances


@laws
@given(case=cases(distinct=True), data=st.data())
def test_renumbering_a_gallery_of_distinct_scores_changes_nothing(case: Case, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(case.scores.shape[1]))))
    np.testing.assert_array_equal(averages(case.reordered(order)), averages(case))


@laws
@given(case=cases(), data=st.data())
def test_junk_added_anywhere_changes_nothing(case: Case, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, case.scores.shape[1]), max_size=5)), dtype=np.int64)
    one = st.lists(st.integers(-3, 3), min_size=len(places), max_size=len(places))
    scores = np.array([data.draw(one) for _ in case.scores], dtype=np.float64)
    np.testing.assert_array_equal(averages(case.with_images(places, scores, JUNK)), averages(case))


@laws
@given(case=cases(), data=st.data())
def test_images_below_all_positives_change_nothing(case: Case, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, case.scores.shape[1]), max_size=5)), dtype=np.int64)
    more = case.with_images(places, np.full((len(case.scores), len(places)), -9.0), NEITHER)
    np.testing.assert_array_equal(averages(more), averages(case))
    for ranks, positives, longer in zip(case.ranks(), case.of(EASY, HARD), more.ranks(), strict=True):
        found = [precision_at(r, len(positives), k) for r in (ranks, longer) for k in KS]
        np.testing.assert_array_equal(found[:3], found[3:])


@laws
@given(case=cases(), data=st.data())
def test_an_image_above_a_positive_lowers_its_score(case: Case, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, case.scores.shape[1]))
    more = case.with_images(np.array([place]), np.full((len(case.scores), 1), 99.0), NEITHER)
    for before, after in zip(averages(case), averages(more), strict=True):
        assert after < before or math.isnan(before) is math.isnan(after) is True


# bounds, and how the protocols hang together


@laws
@given(case=cases(), k=cuts)
def test_scores_are_fractions(case: Case, k: int) -> None:
    ranks, positives = case.ranks(), case.of(EASY, HARD)
    for one, wanted in zip(ranks, positives, strict=True):
        for rule in ("trapezoid", "mean-precision"):
            ap = average_precision(one, len(wanted), rule)  # type: ignore[arg-type]
            assert math.isnan(ap) if not len(wanted) else 0 < ap <= 1 + 1e-12
        assert 0 <= average_precision_at(one, k) <= 1 + 1e-12
        assert not len(wanted) or 0 <= precision_at(one, len(wanted), k) <= 1
    assert all(0 <= v <= 1 for v in (*precision_and_recall_at(ranks, positives, k), recall_at(ranks, k)))


@laws
@given(count=st.integers(1, 20), extra=st.integers(0, 20))
def test_all_positives_first_is_one_and_only_then(count: int, extra: int) -> None:
    ranks = np.arange(count)
    assert average_precision(ranks, count) == average_precision(ranks, count, "mean-precision") == 1
    assert [precision_at(ranks, count, k) for k in KS] == [1, 1, 1]
    later = np.append(ranks[:-1], count + extra)
    assert average_precision(later, count) < 1


@laws
@given(case=cases())
def test_the_trapezoid_is_never_above_mean_precision(case: Case) -> None:
    """Precision after a hit is never below that before it, but at the top of the list, where both are 1."""
    for ranks in case.ranks():
        if len(ranks):
            assert (
                average_precision(ranks, len(ranks)) <= average_precision(ranks, len(ranks), "mean-precision") + 1e-12
            )


@laws
@given(case=cases(queries=1))
def test_medium_joins_easy_and_hard(case: Case) -> None:
    """Together they are as good as apart, or better: easy images above a hard one are hits, not gone."""
    easy, medium, hard = averages(case)
    counts = [len(case.of(role)[0]) for role in (EASY, HARD)]
    assert [math.isnan(v) for v in (easy, medium, hard)] == [not counts[0], not sum(counts), not counts[1]]
    if all(counts):
        assert medium * sum(counts) >= easy * counts[0] + hard * counts[1] - 1e-12
    elif counts[0]:
        assert medium == easy
    elif counts[1]:
        assert medium == hard
