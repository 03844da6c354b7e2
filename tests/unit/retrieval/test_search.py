"""Exact search against naive loops: ties, junk, blocks, threads, images that are not valid."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgd import launch
from cgd.retrieval import search
from cgd.retrieval.search import Block, DotProducts, count_above, exact_ranks, nearest
from cgd.retrieval.vectors import to_single


def naive_ranks(scores: np.ndarray, positives: list[np.ndarray], ignored: list[np.ndarray]) -> list[list[int]]:
    """Every image compared with every other."""
    found = []
    for row, wanted, junk in zip(scores, positives, ignored, strict=True):
        others = [i for i in range(len(row)) if i not in junk]
        found.append(sorted(sum(row[i] > row[p] or (row[i] == row[p] and i < p) for i in others) for p in wanted))
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], int]:
    seed, queries, images = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((queries, images)).astype(draw(st.sampled_from([np.float32, np.float64])))
    scale = draw(st.sampled_from([1, 1e-38, 1e30]))
    scores = draw(st.sampled_from([scores, np.round(scores) + 0, np.zeros_like(scores)])) * scores.dtype.type(scale)
    positives, ignored = [], []
    for _ in range(queries):
        order = generator.permutation(images)
        first, second = np.sort(generator.integers(0, images + 1, 2))
        positives.append(order[:first])
        ignored.append(order[first:second])
    return scores, positives, ignored, draw(st.integers(1, 45))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_ranks_are_those_of_a_naive_loop_however_the_gallery_is_cut(case):
    scores, positives, ignored, columns = case
    expected = naive_ranks(scores, positives, ignored)
    assert [r.tolist() for r in exact_ranks(scores, positives, ignored, columns)] == expected
    assert [r.tolist() for r in exact_ranks(scores, positives, ignored)] == expected


def test_scores_given_are_left_as_they_are_and_rows_past_the_gallery_are_refused():
    scores = np.random.default_rng(0).standard_normal((2, 9))
    scores.flags.writeable = False
    positives, nothing = [np.array([1, 5])] * 2, [np.zeros(0, int)] * 2
    assert [r.tolist() for r in exact_ranks(scores, positives, nothing)] == naive_ranks(scores, positives, nothing)
    with pytest.raises(IndexError, match="rows 1 to 9 are wanted of a gallery of 9"):
        exact_ranks(scores, [np.array([1, 9])] * 2, nothing)


def blocks_of(vectors: np.ndarray, step: int, valid: np.ndarray | None = None) -> list[Block]:
    cuts = [range(a, min(a + step, len(vectors))) for a in range(0, len(vectors), step)]
    return [
        Block(r, lambda r=r: vectors[r.start : r.stop], None if valid is None else valid[r.start : r.stop])
        for r in cuts
    ]


@pytest.fixture
def drawn_vectors() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    gallery = generator.standard_normal((700, 24), np.float32).astype(np.float16)
    gallery[300:320] = gallery[10]  # duplicates tie exactly
    return generator.standard_normal((9, 24), np.float32), gallery


@pytest.mark.parametrize("step", [700, 64, 1])
@pytest.mark.parametrize("workers", [1, 3])
def test_counts_of_a_stream_are_the_places_of_a_stable_sort(drawn_vectors, step, workers, monkeypatch):
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 4)
    queries, gallery = drawn_vectors
    wanted = [np.sort(np.random.default_rng(q).choice(700, 5 * q, replace=False)) for q in range(9)]
    wanted[3] = np.array([5, 10, 300, 305, 319, 699])
    scorer, blocks = DotProducts(queries), blocks_of(gallery, step)
    scores = np.concatenate([scorer.scores(scorer.load(b.read()), slice(0, 9)) for b in blocks], axis=1)
    above = count_above(scorer, blocks, wanted, workers=workers)
    for row, rows, found in zip(scores, wanted, above, strict=True):
        place = np.empty(700, int)
        place[np.argsort(-row, kind="stable")] = np.arange(700)
        np.testing.assert_array_equal(found, place[rows])


def test_a_wanted_image_that_is_not_valid_comes_last(drawn_vectors):
    queries, gallery = drawn_vectors
    valid = np.arange(700) % 7 > 0
    wanted = [np.arange(7), np.array([0, 7, 14])] + [np.array([3])] * 7
    above = count_above(DotProducts(queries), blocks_of(gallery, 128, valid), wanted)
    assert above[0][0] >= valid.sum()
    assert (above[0][1:] < valid.sum()).all()
    assert (above[1] >= valid.sum()).all()


def test_images_that_are_not_valid_are_neither_counted_nor_found(drawn_vectors):
    queries, gallery = drawn_vectors
    valid = np.ones(700, bool)
    valid[[2, 10, 310, 500]] = False
    kept = np.flatnonzero(valid)
    wanted = [np.array([300, 305, 600])] * 9
    above = count_above(DotProducts(queries), blocks_of(gallery, 128, valid), wanted)
    without = count_above(
        DotProducts(queries), blocks_of(gallery[kept], 128), [np.searchsorted(kept, w) for w in wanted]
    )
    np.testing.assert_array_equal(above, without)
    _, rows = nearest(DotProducts(queries), blocks_of(gallery, 128, valid), 700)
    assert (rows[:, 696:] == -1).all()
    assert not np.isin(rows, [2, 10, 310, 500]).any()


@pytest.mark.parametrize(("k", "step"), [(1, 700), (7, 64), (50, 9), (800, 64)])
def test_the_nearest_are_the_first_of_a_stable_sort(drawn_vectors, k, step):
    queries, gallery = drawn_vectors
    queries[0] = gallery[10]  # all its duplicates tie at the top
    scorer, blocks = DotProducts(queries), blocks_of(gallery, step)
    scores = np.concatenate([scorer.scores(scorer.load(b.read()), slice(0, 9)) for b in blocks], axis=1)
    values, rows = nearest(scorer, blocks, k)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows[:, :700], expected)
    np.testing.assert_array_equal(values[:, :700], np.take_along_axis(scores, expected, 1))
    assert (rows[:, 700:] == -1).all()


def test_a_query_without_wanted_images_and_no_query_at_all(drawn_vectors):
    queries, gallery = drawn_vectors
    nothing = np.zeros(0, np.int64)
    found = count_above(DotProducts(queries[:2]), blocks_of(gallery, 99), [nothing, np.array([4])])
    assert [len(f) for f in found] == [0, 1]
    assert count_above(DotProducts(queries[:0]), blocks_of(gallery, 99), []) == []


def test_an_error_in_a_block_reaches_the_caller(drawn_vectors):
    queries, gallery = drawn_vectors
    blocks = [*blocks_of(gallery, 100), Block(range(700, 701), lambda: 1 // 0)]
    with pytest.raises(ZeroDivisionError):
        nearest(DotProducts(queries), blocks, 3)


def test_every_finite_half_is_the_same_in_single_precision():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].reshape(-1, 2)
    np.testing.assert_array_equal(to_single(finite).view(np.int32), finite.astype(np.float32).view(np.int32))
    np.testing.assert_array_equal(to_single(finite[::3]), finite[::3].astype(np.float32))
    single = np.ones((2, 3), np.float32)
    assert to_single(single) is single


@pytest.mark.skipif(sys.platform != "linux", reason="cores a process may use are known on Linux")
def test_workers_do_not_exceed_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert launch.available_cores() == 3


def test_products_by_torch_score_as_products_by_numpy(drawn_vectors):
    import torch

    from cgd.models.products import TorchProducts

    queries, gallery = drawn_vectors
    gallery.flags.writeable = False
    ours, theirs = (
        nearest(scorer, blocks_of(gallery, 100), 20)
        for scorer in (DotProducts(queries), TorchProducts(queries, torch.device("cpu")))
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert (ours[1] == theirs[1]).mean() > 0.99
