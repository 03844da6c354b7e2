"""Scores from stored descriptors: the protocol of a naive loop, indexes beside exact search, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import benchmark, embeddings, image_list

from cgd.config import EvaluateConfig, IndexConfig
from cgd.errors import InputError
from cgd.retrieval.metrics import PROTOCOLS, average_precision, relevance
from cgd.retrieval.vectors import l2
from cgd.stages.descriptors import Fused, Member, RandomDistractors
from cgd.stages.evaluate import evaluate
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, GroundTruth, Key

DIM, GALLERY, QUERIES, OTHERS = 24, 400, 12, 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A benchmark whose last query has no easy image, and distractors, one of them unreadable."""
    store = FeatureStore.open(tmp_path_factory.mktemp("made") / "s.zarr", write=True)
    generator = np.random.default_rng(0)
    queries = l2(generator.standard_normal((QUERIES, DIM)))
    gallery = generator.standard_normal((GALLERY, DIM)) / np.sqrt(DIM)
    easy, hard, junk = [], [], []
    for q in range(QUERIES):
        chosen = generator.permutation(GALLERY)[:30]
        easy.append(chosen[:8] if q < QUERIES - 1 else chosen[:0])
        hard.append(chosen[8:20])
        junk.append(chosen[20:])
        for rows, lift in ((easy[-1], 0.5), (hard[-1], 0.3), (junk[-1], 0.4)):
            gallery[rows] += lift * queries[q]
    made = benchmark("made", GALLERY, GroundTruth(tuple(easy), tuple(hard), tuple(junk)))
    others = image_list("others", None, OTHERS)
    distractors = generator.standard_normal((OTHERS, DIM))
    keys = {
        "gallery": embeddings(store, made.gallery, gallery),
        "queries": embeddings(store, made.queries, queries),
        "others": embeddings(store, others, distractors, np.arange(OTHERS) != 5),
    }
    member = Member("net", keys["gallery"], keys["queries"], None, (keys["others"],))
    return {"store": store, "benchmark": made, "member": member, "vectors": (queries, gallery, distractors)}


def scored(place: dict[str, Any], member: Member | None = None, **changes: Any) -> dict[str, Any]:
    arguments = {
        "store": place["store"], "benchmark": place["benchmark"], "model": "net",
        "members": [member or place["member"]], "queries_cropped": None, "config": EvaluateConfig(),
    }  # fmt: skip
    return evaluate(**(arguments | changes))


def naive(place: dict[str, Any], gallery: np.ndarray) -> dict[str, float]:
    """mAP x 100 by sorting the whole list in double precision."""
    queries, truth = place["vectors"][0], place["benchmark"].truth
    found = {}
    for protocol in PROTOCOLS:
        values = []
        for q, (positives, ignored) in enumerate(zip(*relevance(truth, protocol), strict=True)):
            order = np.argsort(-(l2(gallery) @ l2(queries[q])), kind="stable")
            ranks = np.flatnonzero(np.isin(order[~np.isin(order, ignored)], positives))
            values.append(average_precision(ranks, len(positives)))
        found[protocol] = 100 * float(np.nanmean(values))
    return found


def test_single_precision_is_the_naive_loop_and_half_is_near_it(place: dict[str, Any]) -> None:
    _, gallery, others = place["vectors"]
    expected = naive(place, np.concatenate([gallery, np.delete(others, 5, axis=0)]))
    single = scored(place, config=EvaluateConfig(descriptors="single"))
    half = scored(place)
    for protocol in PROTOCOLS:
        assert single["protocols"][protocol]["mAP"] == pytest.approx(expected[protocol], abs=1e-9)
        assert half["protocols"][protocol]["mAP"] == pytest.approx(expected[protocol], abs=0.2)
    assert (half["distractors"], half["invalid_distractors"]) == (OTHERS - 1, 1)
    assert half["invalid_gallery"] == 0
    assert (half["card"]["descriptors"], single["card"]["descriptors"]) == ("float16", "float32")
    assert half["key"] != single["key"]
    assert [half["protocols"][p]["queries"] for p in PROTOCOLS] == [QUERIES - 1, QUERIES, QUERIES]


def test_a_query_without_positives_is_left_out_and_said(
    place: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # the stored score says it too
        caplog.clear()
        with caplog.at_level("INFO", "cgd"):
            scored(place)
        assert f"made, easy: 1 of {QUERIES} queries have no positive and are left out" in caplog.text


def test_flat_scores_as_exact_search_and_the_others_tell_what_they_miss(place: dict[str, Any]) -> None:
    exact = scored(place)
    everything = EvaluateConfig(index="flat", k=10_000)
    flat = scored(place, config=everything)
    for protocol in PROTOCOLS:
        assert flat["protocols"][protocol]["mAP"] == pytest.approx(exact["protocols"][protocol]["mAP"], abs=1e-6)
    assert flat["card"]["index"] == {"kind": "flat", "k": 10_000}
    assert (flat["index"]["recall@1"], flat["index"]["recall@10"]) == (1, 1)
    config = IndexConfig(code_bytes=8, lists=4, probes=2)
    for kind in ("hnsw", "ivf-pq"):
        found = scored(place, config=EvaluateConfig(index=kind, k=50), index=config)
        assert found["card"]["index"] == {"kind": kind, "k": 50, **config.of(kind)}
        assert 0 < found["index"]["recall@10"] <= 1
        assert found["index"]["bytes_per_vector"] > 8
        assert found["index"]["queries_per_second"] > 0
        assert found["index"]["key"].startswith("indexes/made.net.")
        assert found["protocols"]["medium"]["mAP"] <= exact["protocols"]["medium"]["mAP"] + 1


def test_positives_beyond_the_k_nearest_are_missed(place: dict[str, Any]) -> None:
    some = scored(place, config=EvaluateConfig(index="flat", k=5))
    queries, gallery, _ = place["vectors"]
    truth = place["benchmark"].truth
    positives, ignored = relevance(truth, "medium")
    expected = []
    everything = np.concatenate([gallery, np.delete(place["vectors"][2], 5, axis=0)])
    for q in range(QUERIES):
        order = np.argsort(-(l2(everything) @ queries[q]), kind="stable")[:5]
        ranks = np.flatnonzero(np.isin(order[~np.isin(order, ignored[q])], positives[q]))
        expected.append(average_precision(ranks, len(positives[q])))
    assert some["protocols"]["medium"]["mAP"] == pytest.approx(100 * np.mean(expected), abs=0.5)


def test_settings_of_an_index_that_is_not_used_change_no_score(place: dict[str, Any]) -> None:
    assert scored(place, index=IndexConfig(lists=9))["key"] == scored(place)["key"]
    hnsw = EvaluateConfig(index="hnsw", k=50)
    keys = {
        scored(place, config=hnsw, index=IndexConfig(breadth=b, lists=n))["key"] for b, n in ((60, 3), (60, 4), (70, 3))
    }
    assert len(keys) == 2


def test_renumbering_the_gallery_changes_nothing(place: dict[str, Any], tmp_path: Path) -> None:
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    order = np.random.default_rng(1).permutation(GALLERY)
    back = np.argsort(order)
    queries, gallery, _ = place["vectors"]
    truth = place["benchmark"].truth
    parts = [tuple(back[rows] for rows in part) for part in (truth.easy, truth.hard, truth.junk)]
    renumbered = benchmark("made", GALLERY, GroundTruth(*parts))
    member = Member(
        "net", embeddings(store, renumbered.gallery, gallery[order]), embeddings(store, renumbered.queries, queries)
    )
    found = scored({**place, "store": store}, member, benchmark=renumbered)
    before = scored(place, Member("net", place["member"].gallery, place["member"].queries))
    for protocol in PROTOCOLS:
        assert found["protocols"][protocol]["mAP"] == pytest.approx(before["protocols"][protocol]["mAP"], abs=1e-9)


def test_drawn_distractors_say_that_they_are_no_protocol(place: dict[str, Any]) -> None:
    few, many = (scored(place, random=RandomDistractors(count)) for count in (10, 5000))
    assert (few["distractors"], many["distractors"]) == (OTHERS + 9, OTHERS + 4999)
    assert "not a published protocol" in many["card"]["distractors"][-1]["note"]
    assert many["protocols"]["hard"]["mAP"] < few["protocols"]["hard"]["mAP"]


# what is refused


def test_a_fused_gallery_of_other_images_is_refused(place: dict[str, Any]) -> None:
    member = place["member"]
    fused = Fused((member.distractors[0],), (), "mean", member.gallery)
    with pytest.raises(InputError, match=f"{member.distractors[0]} holds other images than made@gallery"):
        scored(place, Member("net", fused, member.queries))


def other(place: dict[str, Any], name: str, vectors: np.ndarray, encoder: str = "net", split: str | None = None) -> Key:
    return embeddings(place["store"], image_list(name, split, len(vectors)), vectors, encoder=encoder)


def test_vectors_of_another_model_or_of_other_images_are_refused(place: dict[str, Any]) -> None:
    member = place["member"]
    foreign = other(place, "foreign", np.ones((5, DIM)), encoder="another")
    with pytest.raises(InputError, match=f"{foreign} is of another model than the gallery"):
        scored(place, Member("net", member.gallery, member.queries, None, (foreign,)))
    with pytest.raises(InputError, match=f"{member.distractors[0]} holds other images than made@query"):
        scored(place, Member("net", member.gallery, member.distractors[0]))


def test_distractors_of_another_dimension_are_refused(place: dict[str, Any]) -> None:
    member, wide = place["member"], other(place, "wide", np.ones((5, DIM + 1)))
    with pytest.raises(InputError, match=rf"distractor set 1 have {DIM + 1} dimensions, those of the queries {DIM}"):
        scored(place, Member("net", member.gallery, member.queries, None, (wide,)))


def test_an_empty_gallery_is_refused(place: dict[str, Any]) -> None:
    empty = Benchmark("void", image_list("void", "gallery", 0), place["benchmark"].queries, None)
    with pytest.raises(InputError, match="void@gallery of void holds no image"):
        scored(place, benchmark=empty)


@pytest.mark.parametrize("which", ["gallery", "queries", "others"])
def test_a_number_that_is_none_is_refused_with_its_image(place: dict[str, Any], which: str, tmp_path: Path) -> None:
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    made = place["benchmark"]
    lists = {"gallery": made.gallery, "queries": made.queries, "others": image_list("others", None, OTHERS)}
    keys = {}
    for (name, images), vectors in zip(
        lists.items(), (place["vectors"][1], place["vectors"][0], place["vectors"][2]), strict=True
    ):
        broken = vectors.copy()
        broken[3, 0] = np.nan if name == which else 0
        keys[name] = embeddings(store, images, broken)
    with pytest.raises(InputError, match=rf"NaN or infinite\) for the image '{lists[which].ids[3]}'"):
        scored(
            {**place, "store": store},
            Member("net", keys["gallery"], keys["queries"], None, (keys["others"],)),
            benchmark=made,
        )
    assert not store.find("scores")


def test_an_index_over_vectors_that_are_not_stored_is_refused(place: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"leave evaluate\.descriptors at half"):
        scored(place, config=EvaluateConfig(index="hnsw", descriptors="single"))


# scored by label


def labelled(folder: Path, vectors: np.ndarray, labels: np.ndarray, recall_at: tuple[int, ...] = (1, 5, 10)) -> Any:
    """A store with a benchmark of `vectors` (N, D), each searched for among the others."""
    store = FeatureStore.open(folder / "s.zarr", write=True)
    images = image_list("labelled", "test", len(vectors), tuple(map(str, labels)))
    key = embeddings(store, images, vectors)
    found = Benchmark("labelled", images, images, None, recall_at)
    return {"store": store, "benchmark": found, "member": Member("net", key, key, None), "vectors": (vectors,)}


SINGLE = EvaluateConfig(descriptors="single")


def drawn_labels(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Classes of a few images around their means, the last two of one image each."""
    draw = np.random.default_rng(1)
    labels = np.concatenate([np.arange(count - 2) // 5, [90, 91]])
    return draw.standard_normal((count, 8)) + draw.standard_normal((100, 8))[labels], labels


def naive_recall(vectors: np.ndarray, labels: np.ndarray, k: int, rows: np.ndarray | None = None) -> float:
    hits = []
    for q in range(len(labels)) if rows is None else rows:
        order = [i for i in np.argsort(-(l2(vectors) @ l2(vectors[q])), kind="stable") if i != q]
        hits.append(any(labels[i] == labels[q] for i in order[:k]))
    return 100 * float(np.mean(hits))


def test_classes_of_one_image_can_never_hit_and_still_count(tmp_path: Path) -> None:
    vectors, labels = drawn_labels()
    found = scored(labelled(tmp_path, vectors, labels), config=SINGLE)["protocols"]["labels"]
    assert [found[f"recall@{k}"] for k in (1, 5, 10)] == [naive_recall(vectors, labels, k) for k in (1, 5, 10)]
    assert found["queries"] == 58  # of the mAP
    everything = EvaluateConfig(descriptors="single", recall_at=(59,))
    assert scored(labelled(tmp_path, vectors, labels), config=everything)["protocols"]["labels"]["recall@59"] == (
        100 * 58 / 60
    )


def test_recall_is_told_where_the_benchmark_has_it_published_or_where_it_is_wanted(tmp_path: Path) -> None:
    vectors, labels = drawn_labels()
    plain, published = (labelled(tmp_path / n, vectors, labels, at) for n, at in (("a", (1, 5, 10)), ("b", (2, 4))))
    assert "recall_at" not in scored(plain)["card"]  # keys of scores made before this stay
    found = scored(published, config=SINGLE)
    assert found["card"]["recall_at"] == [2, 4]
    assert [n for n in found["protocols"]["labels"] if n.startswith("recall")] == ["recall@2", "recall@4"]
    wanted = scored(published, config=EvaluateConfig(recall_at=(3,)))
    assert wanted["card"]["recall_at"] == [3]
    assert wanted["key"] != found["key"]


def test_queries_drawn_at_random_are_told_and_searched_in_the_whole_gallery(tmp_path: Path) -> None:
    vectors, labels = drawn_labels()
    place = labelled(tmp_path, vectors, labels)
    for seed in (0, 1):
        found = scored(place, config=EvaluateConfig(descriptors="single", random_queries=20, seed=seed))
        rows = np.sort(np.random.default_rng(seed).choice(60, 20, replace=False))
        assert found["card"]["random_queries"] == {"drawn": 20, "of": 60, "seed": seed}
        assert (found["queries"], found["gallery"]) == (20, 60)
        assert found["protocols"]["labels"]["recall@1"] == naive_recall(vectors, labels, 1, rows)
        ids = place["store"].get(Key.parse(found["key"])).read("queries").tolist()
        assert ids == [place["benchmark"].queries.ids[r] for r in rows]
    every = scored(place, config=EvaluateConfig(random_queries=60, seed=5))
    assert every["key"] == scored(place)["key"]


def test_an_index_that_looks_at_too_few_for_the_recall_wanted_is_refused(tmp_path: Path) -> None:
    place = labelled(tmp_path, *drawn_labels())
    with pytest.raises(InputError, match=r"evaluate\.k=20 nearest images are too few .* set it to 21"):
        scored(place, config=EvaluateConfig(index="flat", k=20, recall_at=(20,)))
    flat = scored(place, config=EvaluateConfig(index="flat", k=21, recall_at=(20,)))
    exact = scored(place, config=EvaluateConfig(recall_at=(20,)))
    assert flat["protocols"]["labels"]["recall@20"] == exact["protocols"]["labels"]["recall@20"]


@pytest.mark.shared
@pytest.mark.parametrize(("data", "at"), [("small", (1, 2, 4, 8, 16)), ("sop", (1, 10, 100, 1000))])
def test_recalls_of_the_published_code_come_out_of_the_whole_path(
    tmp_path: Path, shared: Path, data: str, at: tuple[int, ...]
) -> None:
    """From embeddings in the store to percentages (methods.md 8.7); what is tied is in tests/parity."""
    known = np.load(shared / "reference/losses/recall_at_k.npz")
    found = scored(labelled(tmp_path, known[f"{data}_X"], known[f"{data}_y"], at), config=SINGLE)
    expected = 100 * known[f"{data}_recall_{'_'.join(map(str, at))}"]
    assert [found["protocols"]["labels"][f"recall@{k}"] for k in at] == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("setting", [{"recall_at": (0,)}, {"recall_at": (1, 1)}, {"random_queries": -1}, {"seed": -1}])
def test_settings_of_recall_that_mean_nothing_are_refused(setting: Any) -> None:
    with pytest.raises(InputError, match=r"evaluate\."):
        EvaluateConfig(**setting)
