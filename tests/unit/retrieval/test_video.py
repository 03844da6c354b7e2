"""Similarities of videos against loops over their frames (methods.md 8.5)."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cgd.errors import InputError
from cgd.retrieval import video
from cgd.retrieval.video import Similarity, Videos, VideoScorer, similarities

KINDS = get_args(Similarity)


def videos(*lengths: int, seed: int, dtype: type = np.float64) -> Videos:
    frames = np.random.default_rng(seed).standard_normal((sum(lengths), 7)).astype(dtype)
    return Videos(frames, np.array(lengths))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def by_loops(query: np.ndarray, candidate: np.ndarray, kind: str) -> float:
    pairs = [[cosine(q, c) for c in candidate] for q in query]
    if kind == "cf":
        return sum(max(row) for row in pairs) / len(pairs)
    if kind == "sme":
        return sum(sum(row) for row in pairs) / (len(query) * len(candidate))
    if kind == "smx":
        return max(max(row) for row in pairs)
    if kind == "fme":
        return cosine(query.mean(axis=0), candidate.mean(axis=0))
    return cosine(query.max(axis=0), candidate.max(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_similarity_is_that_of_loops(kind: Similarity) -> None:
    queries, candidates = videos(1, 3, 2, seed=0), videos(4, 1, 1, 5, seed=1)
    found = similarities(queries, candidates, kind)
    ends = np.cumsum(queries.lengths)[:-1], np.cumsum(candidates.lengths)[:-1]
    for q, query in enumerate(np.split(queries.frames, ends[0])):
        for c, candidate in enumerate(np.split(candidates.frames, ends[1])):
            assert found[q, c] == pytest.approx(by_loops(query, candidate, kind), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_candidates_give_the_same(kind: Similarity) -> None:
    queries, candidates = videos(2, 3, seed=0), videos(4, 1, 5, seed=1)
    parts = Videos(candidates.frames[:5], candidates.lengths[:2]), Videos(candidates.frames[5:], candidates.lengths[2:])
    joined = np.concatenate([similarities(queries, part, kind) for part in parts], axis=1)
    np.testing.assert_allclose(joined, similarities(queries, candidates, kind), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_precision_is_that_of_the_frames_and_they_are_not_changed(kind: Similarity) -> None:
    queries, candidates = (videos(2, 3, seed=seed, dtype=np.float32) for seed in (0, 1))
    assert similarities(queries, candidates, kind).dtype == np.float32
    np.testing.assert_array_equal(queries.frames, videos(2, 3, seed=0, dtype=np.float32).frames)


@pytest.mark.parametrize("kind", ["fme", "fmx", "sme", "smx"])
def test_all_but_one_are_symmetric(kind: Similarity) -> None:
    first, second = videos(2, 3, seed=0), videos(4, 1, seed=1)
    np.testing.assert_allclose(similarities(first, second, kind), similarities(second, first, kind).T, atol=1e-12)


def test_the_published_one_looks_from_the_query() -> None:
    """A query that is a part of a video is found whole in it, not the other way round."""
    whole = videos(6, seed=0)
    part = Videos(whole.frames[2:4], np.array([2]))
    assert similarities(part, whole)[0, 0] == pytest.approx(1)
    assert similarities(whole, part)[0, 0] < 0.9


def test_no_videos_give_no_similarities() -> None:
    none = Videos(np.zeros((0, 7)), np.zeros(0, np.int64))
    assert [similarities(none, videos(2, 3, seed=0), kind).shape for kind in KINDS] == [(0, 2)] * 5
    assert [similarities(videos(2, 3, seed=0), none, kind).shape for kind in KINDS] == [(2, 0)] * 5


@pytest.mark.parametrize("lengths", [[2, 0, 1], [2, 2], [2], [4, -1]])
def test_lengths_that_do_not_fit_the_frames_are_refused(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="every video has a frame"):
        Videos(np.zeros((3, 7)), np.array(lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_holds_few_frames_of_queries_at_once(kind: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates = videos(2, 9, 1, 3, 1, seed=0), videos(4, 1, 5, seed=1)
    seen: list[int] = []
    compare = video._compare

    def note(own: Videos, others: Videos, how: Similarity) -> np.ndarray:
        seen.append(len(own.frames))
        return compare(own, others, how)

    monkeypatch.setattr(video, "FRAMES_AT_ONCE", 4)
    monkeypatch.setattr(video, "_compare", note)
    scorer = VideoScorer([queries], kind)
    found = scorer.scores(scorer.load([candidates]), slice(1, 5))
    np.testing.assert_allclose(found, similarities(queries, candidates, kind)[1:], atol=1e-12)
    assert seen[:-1] == ([9, 4, 1] if kind in ("cf", "smx") else [4])
