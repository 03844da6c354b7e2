"""Videos scored from stored frames: a naive loop, damaged frames, several models, and what is for images only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from made import embeddings

from cgd.config import EvaluateConfig
from cgd.errors import InputError
from cgd.retrieval.metrics import average_precision_at
from cgd.retrieval.video import Similarity, Videos, similarities
from cgd.stages import videos
from cgd.stages.descriptors import Member, RandomDistractors
from cgd.stages.evaluate import evaluate
from cgd.stages.videos import video_vectors
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, GroundTruth, ImageList

DIM, VIDEOS, QUERIES = 16, 40, 6
KINDS = get_args(Similarity)


def frames(split: str, lengths: np.ndarray, labels: bool = False) -> ImageList:
    groups = tuple(f"{split}-{v:03d}" for v, n in enumerate(lengths) for _ in range(n))
    ids = tuple(f"{group}/{row}" for row, group in enumerate(groups))
    named = tuple(str(int(g[-3:]) % 3) for g in groups) if labels else None
    return ImageList("clips", split, ids, ids, labels=named, groups=groups)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Queries with two near-duplicates of theirs, one of them tied with its twin; the last query has none."""
    store = FeatureStore.open(tmp_path_factory.mktemp("clips") / "s.zarr", write=True)
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 7, VIDEOS), generator.integers(1, 5, QUERIES)
    gallery, queries = (generator.standard_normal((n.sum(), DIM)) for n in lengths)
    starts = [np.cumsum(n) - n for n in lengths]
    easy, junk = [], []
    for q in range(QUERIES):
        own = np.arange(2 * q, 2 * q + 2) if q < QUERIES - 1 else np.zeros(0, np.int64)
        for v in own:
            rows = slice(starts[0][v], starts[0][v] + lengths[0][v])
            gallery[rows] += 0.6 * queries[starts[1][q]]
        easy.append(own)
        junk.append(np.setdiff1d(np.arange(20), [*own, q]))
    truth = GroundTruth(tuple(easy), (np.zeros(0, np.int64),) * QUERIES, tuple(junk))
    benchmark = Benchmark("clips", frames("gallery", lengths[0]), frames("query", lengths[1]), truth)
    member = Member("net", embeddings(store, benchmark.gallery, gallery, shard_rows=50),
                    embeddings(store, benchmark.queries, queries))  # fmt: skip
    return {"store": store, "benchmark": benchmark, "member": member, "lengths": lengths,
            "frames": (gallery.astype(np.float32), queries.astype(np.float32))}  # fmt: skip


def scored(place: dict[str, Any], **changes: Any) -> dict[str, Any]:
    arguments = {"store": place["store"], "benchmark": place["benchmark"], "model": "net",
                 "members": [place["member"]], "queries_cropped": None, "config": EvaluateConfig()}  # fmt: skip
    return evaluate(**(arguments | changes))


def naive(scores: np.ndarray, truth: GroundTruth, k: int | None) -> list[float]:
    """AP of every query by sorting its whole list."""
    found = []
    for row, positives, ignored in zip(scores, truth.easy, truth.junk, strict=True):
        order = np.argsort(-row, kind="stable")
        found.append(average_precision_at(np.flatnonzero(np.isin(order[~np.isin(order, ignored)], positives)), k))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_naive_loop_in_blocks_of_any_size(
    place: dict[str, Any], kind: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "FRAMES_IN_BLOCK", 12)
    monkeypatch.setattr("cgd.retrieval.video.FRAMES_AT_ONCE", 5)
    lengths, (gallery, queries) = place["lengths"], place["frames"]
    expected = naive(
        similarities(Videos(queries, lengths[1]), Videos(gallery, lengths[0]), kind), place["benchmark"].truth, None
    )
    result = scored(place, config=EvaluateConfig(video=kind))
    stored = place["store"].get(place["store"].resolve(result["key"], ("scores",)))
    assert list(result["protocols"]) == ["top-100", "all"]
    np.testing.assert_allclose(stored.read("average_precision")[1], expected, atol=1e-9)
    assert result["protocols"]["all"]["mAP"] == pytest.approx(100 * np.mean(expected))
    assert (result["queries"], result["gallery"], result["protocols"]["all"]["queries"]) == (QUERIES, VIDEOS, QUERIES)
    assert expected[-1] == 0  # without a near-duplicate, and still among the queries
    assert stored.read("queries").tolist()[0] == "query-000"
    assert f"({kind})" in result["card"]["similarity"]
    assert result["card"]["frames"] == "first 60"
    assert result["card"]["descriptors"] == "float32"


def test_equal_videos_rank_in_their_order(place: dict[str, Any]) -> None:
    """A copy of a near-duplicate further on in the gallery comes after it, one before it comes before."""
    store, gallery = place["store"], place["frames"][0]
    lengths = place["lengths"][0]
    twice = np.concatenate([lengths, lengths[:2]])
    rows = np.concatenate([gallery, gallery[: lengths[:2].sum()]])
    benchmark = dataclasses.replace(place["benchmark"], gallery=frames("twice", twice))
    member = dataclasses.replace(place["member"], gallery=embeddings(store, benchmark.gallery, rows))
    none = np.zeros(0, np.int64)
    found = []
    for wanted in (np.array([0, 1]), np.array([VIDEOS, VIDEOS + 1])):
        truth = GroundTruth((wanted,) * QUERIES, (none,) * QUERIES, (none,) * QUERIES)
        result = scored(place, benchmark=dataclasses.replace(benchmark, truth=truth), members=[member])
        found.append(result["protocols"]["all"]["mAP"])
    assert found[0] > found[1]


def test_frames_that_could_not_be_read_are_left_out_of_their_videos(place: dict[str, Any]) -> None:
    store, (gallery, _), lengths = place["store"], place["frames"], place["lengths"][0]
    starts = np.cumsum(lengths) - lengths
    broken = int(np.flatnonzero((lengths > 1) & (np.arange(VIDEOS) > 22))[0])
    gone = int(np.flatnonzero((lengths > 1) & (np.arange(VIDEOS) > broken))[0])
    valid = np.ones(len(gallery), bool)
    valid[starts[broken]] = False
    valid[starts[gone] : starts[gone] + lengths[gone]] = False
    key = embeddings(store, place["benchmark"].gallery, gallery, valid, encoder="other")
    member = Member("other", key, embeddings(store, place["benchmark"].queries, place["frames"][1], encoder="other"))
    vectors = video_vectors(store, place["benchmark"].gallery, [member], lambda m: m.gallery)
    assert np.flatnonzero(~vectors.valid).tolist() == [gone]
    (read,) = vectors.read(range(broken, gone + 1))
    assert read.lengths[0] == lengths[broken] - 1
    np.testing.assert_allclose(
        read.frames[: read.lengths[0]], gallery[valid][: valid[: starts[broken + 1]].sum()][-read.lengths[0] :]
    )
    assert read.lengths[-1] == 1
    assert not read.frames[-1].any()
    result = scored(place, members=[member], model="other")
    assert result["invalid_gallery"] == 1
    assert result["invalid_frames"] == 1 + lengths[gone]
    valid[: lengths[0]] = False
    lost = dataclasses.replace(member, gallery=embeddings(store, place["benchmark"].gallery, gallery, valid, "third"))
    with pytest.raises(InputError, match="another model"):
        scored(place, members=[lost])
    lost = dataclasses.replace(
        lost, queries=embeddings(store, place["benchmark"].queries, place["frames"][1], None, "third")
    )
    with pytest.raises(InputError, match="the positive 'gallery-000' of clips cannot be decoded"):
        scored(place, members=[lost])


def test_an_ensemble_is_the_mean_of_similarities(place: dict[str, Any]) -> None:
    generator, store = np.random.default_rng(5), place["store"]
    lengths = place["lengths"]
    vectors = [generator.standard_normal((n.sum(), 5)).astype(np.float32) for n in lengths]
    benchmark = place["benchmark"]
    second = Member("second", embeddings(store, benchmark.gallery, vectors[0], encoder="second"),
                    embeddings(store, benchmark.queries, vectors[1], encoder="second"))  # fmt: skip
    pairs = [(place["frames"][1], place["frames"][0]), (vectors[1], vectors[0])]
    mean = sum(similarities(Videos(q, lengths[1]), Videos(c, lengths[0])) for q, c in pairs) / 2
    result = scored(place, members=[place["member"], second], model="both")
    assert result["protocols"]["all"]["mAP"] == pytest.approx(100 * np.mean(naive(mean, benchmark.truth, None)))
    assert result["card"]["similarity"].startswith("mean of the members' similarities, each Chamfer of frames (cf)")


def test_without_a_ground_truth_labels_of_videos_count_and_a_video_is_not_its_own_match(place: dict[str, Any]) -> None:
    lengths, (gallery, _) = place["lengths"][0], place["frames"]
    images = frames("gallery", lengths, labels=True)
    benchmark = Benchmark("clips", images, images, None)
    key = place["member"].gallery
    result = scored(place, benchmark=benchmark, members=[Member("net", key, key)])
    own = Videos(gallery, lengths)
    label = np.arange(VIDEOS) % 3
    easy = tuple(np.setdiff1d(np.flatnonzero(label == label[q]), [q]) for q in range(VIDEOS))
    truth = GroundTruth(easy, easy, tuple(np.array([q]) for q in range(VIDEOS)))
    assert result["protocols"]["all"]["mAP"] == pytest.approx(100 * np.mean(naive(similarities(own, own), truth, None)))
    assert result["card"]["relevance"] == "label of the video, leave-one-out"


def test_what_is_for_images_only_is_refused(place: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="videos are searched exactly"):
        scored(place, config=EvaluateConfig(index="flat"))
    with pytest.raises(InputError, match="leave out --distractors"):
        scored(place, random=RandomDistractors(5))


@pytest.mark.shared
def test_published_scores_from_stored_frames(shared: Path, tmp_path: Path) -> None:
    """Similarities of svd_eval.npz as cosines of one-frame videos: unit vectors that begin with them."""
    svd = np.load(shared / "reference/losses/svd_eval.npz")
    sims, labels = svd["sims"], svd["gt_labelled"]
    scale = 0.9 / np.linalg.norm(sims, axis=0).max()
    rest = np.sqrt(1 - (scale**2 * sims**2).sum(axis=0))
    candidates, queries = np.vstack([scale * sims, rest]).T, np.eye(9)[:8]
    gallery, asked = frames("gallery", np.ones(sims.shape[1], int)), frames("query", np.ones(8, int))
    store = FeatureStore.open(tmp_path / "svd.zarr", write=True)
    truth = GroundTruth(*(tuple(np.flatnonzero(row == v) for row in labels) for v in (1, 2, -1)))
    benchmark = Benchmark("svd", gallery, asked, truth)
    member = Member("net", embeddings(store, gallery, candidates), embeddings(store, asked, queries))
    result = evaluate(store=store, benchmark=benchmark, model="net", members=[member], queries_cropped=None,
                      config=EvaluateConfig())  # fmt: skip
    stored = store.get(store.resolve(result["key"], ("scores",))).read("average_precision")
    np.testing.assert_allclose(stored.T, svd["plain_aps"][:, 1:], rtol=0, atol=1e-9)
    found = [result["protocols"][p]["mAP"] / 100 for p in ("top-100", "all")]
    np.testing.assert_allclose(found, svd["plain_map_top10_top100_inf"][1:], rtol=0, atol=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_published_similarities_from_stored_frames(shared: Path, tmp_path: Path, kind: Similarity) -> None:
    svd = np.load(shared / "reference/losses/svd_eval.npz")
    store = FeatureStore.open(tmp_path / "svd.zarr", write=True)
    found = []
    for split in ("query", "candidate"):
        vectors, lengths = svd[f"{split[0]}_frames"], svd[f"{split[0]}_lens"]
        images = frames(split, lengths)
        member = Member("net", embeddings(store, images, vectors), embeddings(store, images, vectors))
        read = video_vectors(store, images, [member], lambda m: m.gallery)
        found.append(read.read(range(len(lengths)))[0])
    np.testing.assert_allclose(similarities(*found, kind), svd[f"sim_{kind}"], rtol=0, atol=1e-6)
