"""What a report shows of a benchmark, against naive loops over all similarities."""

from __future__ import annotations

import numpy as np
import pytest
from made import benchmark, embeddings

from cgd.config import EvaluateConfig
from cgd.retrieval.metrics import average_precision
from cgd.stages import report
from cgd.stages.descriptors import Member
from cgd.stages.report import RECALLS, choose, interpolated_precision, nearest_rows, ranking, similarities
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, GroundTruth

GALLERY, QUERIES, SINGLE = 60, 7, EvaluateConfig(descriptors="single")
INVALID = 5


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    draw = np.random.default_rng(3)
    parts = [np.sort(draw.choice(GALLERY, 12, replace=False)).reshape(3, 4) for _ in range(QUERIES)]
    split = [tuple(np.setdiff1d(rows, [INVALID]) for rows in kinds) for kinds in zip(*parts, strict=True)]
    easy, hard, junk = split
    empty = np.zeros(0, np.int64)
    return GroundTruth((*easy[:-1], empty), (*hard[:-1], empty), junk)  # the last query has no positive


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, truth: GroundTruth) -> tuple[FeatureStore, Benchmark, Member]:
    """A gallery in three shards, one image of which is not valid."""
    store = FeatureStore.open(tmp_path_factory.mktemp("report") / "s.zarr", write=True)
    made, draw = benchmark("b", GALLERY, truth), np.random.default_rng(0)
    valid = np.arange(GALLERY) != INVALID
    gallery = embeddings(store, made.gallery, draw.normal(size=(GALLERY, 8)), valid, shard_rows=25)
    return store, made, Member("net", gallery, embeddings(store, made.queries, draw.normal(size=(QUERIES, 8))))


def cosines(store: FeatureStore, member: Member) -> np.ndarray:
    """(Q, G) in double precision."""
    gallery, queries = (np.nan_to_num(store.get(k).read("vectors")[:, 0]) for k in (member.gallery, member.queries))
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (queries, gallery)]
    return np.asarray(unit[0] @ unit[1].T, np.float64)


def sets(truth: GroundTruth, query: int) -> tuple[set[int], set[int]]:
    right = {*truth.easy[query].tolist(), *truth.hard[query].tolist()}
    return right, set(truth.junk[query].tolist())


def test_few_similarities_are_all_there_without_junk_and_broken_images(
    place: tuple[FeatureStore, Benchmark, Member], truth: GroundTruth
) -> None:
    store, _, member = place
    every = cosines(store, member)
    found = similarities(store, member, truth, "single")
    others, same = [], []
    for query in range(QUERIES):
        right, junk = sets(truth, query)
        for row in set(range(GALLERY)) - junk - {INVALID}:
            (same if row in right else others).append(every[query, row])
    assert np.allclose(np.sort(found.others), np.sort(others), atol=1e-6)
    assert np.allclose(np.sort(found.same), np.sort(same), atol=1e-6)


def test_many_similarities_are_drawn_alike_for_every_model_and_never_more_than_asked(
    place: tuple[FeatureStore, Benchmark, Member], truth: GroundTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, member = place
    monkeypatch.setattr(report, "PAIRS", 40)
    monkeypatch.setattr(report, "MOST_QUERIES", 5)
    monkeypatch.setattr(report, "PAIRS_AT_ONCE", 3)
    one, again = (similarities(store, member, truth, "single") for _ in range(2))
    assert 20 < len(one.others) <= 40
    assert 20 < len(one.same) <= 40
    assert np.array_equal(one.others, again.others)
    every = cosines(store, member)
    allowed = [every[q, r] for q in range(QUERIES) for r in range(GALLERY) if r not in set.union(*sets(truth, q))]
    assert all(np.abs(np.array(allowed) - value).min() < 1e-6 for value in one.others)


def test_a_ranking_is_that_of_a_sorted_list_without_junk(
    place: tuple[FeatureStore, Benchmark, Member], truth: GroundTruth
) -> None:
    store, _, member = place
    every = cosines(store, member)
    found = ranking(store, [member], truth, SINGLE)
    curves = []
    for query in range(QUERIES - 1):
        right, junk = sets(truth, query)
        order = [r for r in np.argsort(-every[query], kind="stable") if r not in junk | {INVALID}]
        ranks = np.array([n for n, row in enumerate(order) if row in right])
        assert found.average_precision[query] == pytest.approx(average_precision(ranks, len(right)))
        precision = [len(right & set(order[: n + 1])) / (n + 1) for n in range(len(order))]
        recall = [len(right & set(order[: n + 1])) / len(right) for n in range(len(order))]
        curves.append(
            [max(p for p, r in zip(precision, recall, strict=True) if r >= level - 1e-9) for level in RECALLS]
        )
    assert np.isnan(found.average_precision[-1])
    assert np.allclose(found.precision, np.mean(curves, axis=0))


def test_an_ensemble_ranks_by_the_mean_of_cosines(place: tuple[FeatureStore, Benchmark, Member]) -> None:
    store, made, member = place
    draw = np.random.default_rng(9)
    other = Member(
        "other",
        embeddings(store, made.gallery, draw.normal(size=(GALLERY, 5)), encoder="other", shard_rows=25),
        embeddings(store, made.queries, draw.normal(size=(QUERIES, 5)), encoder="other"),
    )
    mean = (cosines(store, member) + cosines(store, other)) / 2
    mean[:, INVALID] = -np.inf
    rows = nearest_rows(store, [member, other], [4, 1], 6, SINGLE)
    assert rows.tolist() == [np.argsort(-mean[q], kind="stable")[:6].tolist() for q in (4, 1)]


@pytest.mark.parametrize(
    ("ranks", "at", "precision"),
    [([0], 1.0, 1.0), ([3], 0.0, 0.25), ([0, 3], 0.5, 1.0), ([0, 3], 0.51, 0.5), ([4, 5, 6], 0.1, 3 / 7)],
)
def test_interpolated_precision_by_hand(ranks: list[int], at: float, precision: float) -> None:
    assert interpolated_precision(np.array(ranks))[round(100 * at)] == pytest.approx(precision)


def test_queries_are_chosen_by_their_gain_and_each_once() -> None:
    before = np.array([0.5, 0.1, 0.9, np.nan, 0.3, 0.2])
    after = np.array([0.6, 0.9, 0.4, np.nan, 0.3, 0.25])  # gains 0.1, 0.8, -0.5, none, 0, 0.05
    rules = {choice.rule: choice.query for choice in choose(before, after)}
    assert rules == {
        "the largest gain in AP": 1,
        "the median gain": 5,
        "the smallest gain": 2,
        "the lowest AP after training": 4,  # the lowest, 5, is taken
    }
    assert [c.query for c in choose(None, after)] == [1, 2, 5]
    assert [c.query for c in choose(before[:1], after[:1])] == [0]
    assert choose(np.array([np.nan]), np.array([np.nan])) == ()
