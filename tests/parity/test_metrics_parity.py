"""Recall at K, Hamming mAP and video retrieval against numbers of the published code (methods.md 8.5 to 8.7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranking import RANKERS, Ranker, nothing, tie_bounds

from cgd.retrieval.hamming import pack, ranked
from cgd.retrieval.metrics import (
    average_precision_at,
    mean_average_precision_at,
    precision_and_recall_at,
    recall_at,
)
from cgd.retrieval.search import DotProducts
from cgd.retrieval.video import Videos, similarities
from cgd.stages.codes import Codes, score_codes

pytestmark = pytest.mark.shared
every_ranker = pytest.mark.parametrize("ranker", RANKERS.values(), ids=RANKERS)
ORDERS = ("stable", "numpy_default", "optimistic", "pessimistic")


@pytest.fixture(scope="module")
def recall(shared: Path) -> Any:
    return np.load(shared / "reference/losses/recall_at_k.npz")


@pytest.fixture(scope="module")
def hamming(shared: Path) -> Any:
    return np.load(shared / "reference/losses/hamming_map.npz")


@pytest.fixture(scope="module")
def svd(shared: Path) -> Any:
    return np.load(shared / "reference/losses/svd_eval.npz")


def test_no_number_of_the_fixtures_is_left_out(recall: Any, hamming: Any, svd: Any) -> None:
    """What is named here is what the tests below read."""
    assert set(recall.files) == {
        "small_X", "small_y", "small_recall_1_2_4_8_16", "small_tied_recall_1_2_4_8_16",
        "sop_X", "sop_y", "sop_recall_1_10_100_1000",
    }  # fmt: skip
    assert set(hamming.files) == {
        "db_codes", "q_codes", "db_labels", "q_labels", "hamming_q0", "pr_k",
        *(f"map_top{k}_{order}" for k in (-1, 50, 300, 1000) for order in ORDERS),
        *(f"pr_{what}_{order}" for what in ("precision", "recall") for order in ("stable", "numpy_default")),
    }  # fmt: skip
    assert set(svd.files) == {
        "sims", "gt_labelled", "q_frames", "c_frames", "q_lens", "c_lens", "ap_case_labels", "ap_case_value",
        *(f"{case}_{what}" for case in ("plain", "tied") for what in ("map_top10_top100_inf", "aps")),
        *(f"sim_{kind}" for kind in ("cf", "fme", "fmx", "sme", "smx")),
    }  # fmt: skip


# recall at K


def minus_distances(vectors: np.ndarray) -> np.ndarray:
    """In double precision, clamped where duplicates would have a negative square."""
    rows = vectors.astype(np.float64)
    squares = (rows**2).sum(axis=1)
    return -np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))


def leave_one_out(ranker: Ranker, scores: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    rows = np.arange(len(labels))
    positives = [np.flatnonzero((labels == label) & (rows != query)) for query, label in enumerate(labels)]
    return ranker(scores, positives, [np.array([query]) for query in rows])


@every_ranker
@pytest.mark.parametrize(
    ("case", "data", "at"),
    [
        ("small", "small", (1, 2, 4, 8, 16)),
        ("small_tied", "small", (1, 2, 4, 8, 16)),
        ("sop", "sop", (1, 10, 100, 1000)),
    ],
)
def test_recall_at_k(recall: Any, case: str, data: str, at: Sequence[int], ranker: Ranker) -> None:
    scores, labels = minus_distances(recall[f"{data}_X"]), recall[f"{data}_y"]
    ranks = leave_one_out(ranker, np.round(scores, 1) if case == "small_tied" else scores, labels)
    known = recall[f"{case}_recall_{'_'.join(map(str, at))}"]
    assert [recall_at(ranks, k) for k in at] == pytest.approx(known, abs=1e-12)


# Hamming


def codes(hamming: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Inner products (Q, G) of the codes, which rank as Hamming distances do, and each query's relevant items."""
    scorer = DotProducts(hamming["q_codes"].astype(np.float32))
    scores = scorer.scores(scorer.load(hamming["db_codes"].astype(np.float32)), slice(None))
    shared_label = hamming["q_labels"].astype(int) @ hamming["db_labels"].T.astype(int) > 0
    return scores, [np.flatnonzero(row) for row in shared_label]


def first_of(hamming: Any, top: int) -> int:
    """The release's -1 leaves out the last item of the ranking; it is asked for by its number here."""
    return len(hamming["db_codes"]) - 1 if top == -1 else top


def test_inner_products_of_codes_are_hamming_distances(hamming: Any) -> None:
    scores, _ = codes(hamming)
    np.testing.assert_array_equal((hamming["q_codes"].shape[1] - scores[0]) / 2, hamming["hamming_q0"])


@every_ranker
@pytest.mark.parametrize("top", [-1, 50, 300, 1000])
def test_hamming_map(hamming: Any, top: int, ranker: Ranker) -> None:
    scores, positives = codes(hamming)
    found = mean_average_precision_at(ranker(scores, positives, nothing(20)), first_of(hamming, top))
    assert found == pytest.approx(float(hamming[f"map_top{top}_stable"]), abs=1e-12)


@pytest.mark.parametrize("top", [-1, 50, 300, 1000])
def test_however_ties_fall_hamming_map_lies_between_two_bounds(hamming: Any, top: int) -> None:
    scores, positives = codes(hamming)
    bounds = tie_bounds(scores, positives, nothing(20))
    optimistic, pessimistic = (mean_average_precision_at(r, first_of(hamming, top)) for r in bounds)
    assert optimistic == pytest.approx(float(hamming[f"map_top{top}_optimistic"]), abs=1e-12)
    assert pessimistic == pytest.approx(float(hamming[f"map_top{top}_pessimistic"]), abs=1e-12)
    assert pessimistic <= float(hamming[f"map_top{top}_numpy_default"]) <= optimistic


@every_ranker
def test_precision_and_recall_of_codes(hamming: Any, ranker: Ranker) -> None:
    scores, positives = codes(hamming)
    ranks = ranker(scores, positives, nothing(20))
    found = [precision_and_recall_at(ranks, positives, int(k)) for k in hamming["pr_k"]]
    known = np.stack([hamming["pr_precision_stable"], hamming["pr_recall_stable"]], axis=1)
    np.testing.assert_allclose(found, known, rtol=0, atol=1e-7)


def test_however_ties_fall_precision_and_recall_lie_between_two_bounds(hamming: Any) -> None:
    scores, positives = codes(hamming)
    known = np.stack([hamming["pr_precision_numpy_default"], hamming["pr_recall_numpy_default"]], axis=1)
    best, worst = (
        [precision_and_recall_at(ranks, positives, int(k)) for k in hamming["pr_k"]]
        for ranks in tie_bounds(scores, positives, nothing(20))
    )
    assert (known <= np.array(best) + 1e-7).all()
    assert (known >= np.array(worst) - 1e-7).all()


@pytest.mark.parametrize("top", [-1, 50, 300, 1000])
def test_codes_from_bytes_through_the_binary_index_to_map_and_its_bounds(hamming: Any, top: int) -> None:
    """The whole path of `cgd evaluate` with codes: packed, searched by FAISS, ranked, scored."""
    gallery = Codes(16, pack(hamming["db_codes"]), np.ones(300, bool))
    _, positives = codes(hamming)
    depths = hamming["pr_k"].tolist()
    wanted = {"hamming": (positives, nothing(20))}
    found = score_codes(pack(hamming["q_codes"]), [gallery], wanted, first_of(hamming, top), depths)["hamming"]
    known = [float(hamming[f"map_top{top}_{order}"]) for order in ("stable", "optimistic", "pessimistic")]
    assert found.average_precision.mean(axis=0) == pytest.approx(known, abs=1e-12)
    np.testing.assert_allclose(found.precision, hamming["pr_precision_stable"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.recall, hamming["pr_recall_stable"], rtol=0, atol=1e-7)
    distances, rows = next(ranked(pack(hamming["q_codes"]), gallery.packed))
    np.testing.assert_array_equal(distances, hamming["hamming_q0"][rows])


# video


@every_ranker
@pytest.mark.parametrize("case", ["plain", "tied"])
def test_video_map(svd: Any, case: str, ranker: Ranker) -> None:
    """Candidates are the videos labelled for a query, and all that nobody labelled: the others are ignored."""
    scores, labels = svd["sims"], svd["gt_labelled"]
    scores = np.round(scores * 4) / 4 if case == "tied" else scores
    ranks = ranker(scores, [np.flatnonzero(row == 1) for row in labels], [np.flatnonzero(row == -1) for row in labels])
    cuts = (10, 100, None)
    each = np.array([[average_precision_at(r, k) for k in cuts] for r in ranks])
    np.testing.assert_allclose(each, svd[f"{case}_aps"], rtol=0, atol=1e-9)
    means = [mean_average_precision_at(ranks, k) for k in cuts]
    np.testing.assert_allclose(means, svd[f"{case}_map_top10_top100_inf"], rtol=0, atol=1e-6)


def test_average_precision_of_one_list_of_labels(svd: Any) -> None:
    ranks = np.flatnonzero(svd["ap_case_labels"])
    assert average_precision_at(ranks) == pytest.approx(float(svd["ap_case_value"]), abs=1e-9)


@pytest.mark.parametrize("kind", ["cf", "fme", "fmx", "sme", "smx"])
def test_similarities_of_videos(svd: Any, kind: Any) -> None:
    queries, candidates = Videos(svd["q_frames"], svd["q_lens"]), Videos(svd["c_frames"], svd["c_lens"])
    np.testing.assert_allclose(similarities(queries, candidates, kind), svd[f"sim_{kind}"], rtol=0, atol=1e-9)
