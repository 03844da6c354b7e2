"""CGD's fusions, soft codes, loss, gradient and codebook against numbers of the released code (methods.md 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import CgdConfig
from cgd.fusion._correlation import correlation
from cgd.methods.cgd import Cgd
from cgd.retrieval.codebook import assign_and_sum, spherical_kmeans, split
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Codebook

pytestmark = pytest.mark.shared
NOBODY: Any = None


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return np.load(shared / "reference/losses/cgd.npz")


@pytest.fixture(scope="module")
def derived(shared: Path) -> Any:
    return np.load(shared / "reference/losses/derived.npz")


def fuse(name: str, *vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found: tuple[np.ndarray, np.ndarray] = registry.find("cgd.fusion", name)(np.stack(vectors), NOBODY)
    return found


def test_correlations(fixture: Any) -> None:
    for a, b in ((0, 1), (0, 2), (1, 2)):
        found = correlation(fixture[f"v{a}"], fixture[f"v{b}"])
        np.testing.assert_allclose(found, fixture[f"r{a}{b}"], atol=1e-6)


def test_the_fusion_of_two(fixture: Any) -> None:
    for one, other, expected in (("v0", "v1", "fusion2"), ("v1", "v0", "fusion2_swapped")):
        fused, weights = fuse("cgd-two", fixture[one], fixture[other])
        np.testing.assert_allclose(fused, fixture[expected], atol=1e-6 * np.abs(fixture[expected]).max())
        np.testing.assert_allclose(
            weights, np.stack([1 - np.abs(fixture["r01"]), np.abs(fixture["r01"])], 1), atol=1e-6
        )


def test_the_pairwise_fusion(fixture: Any) -> None:
    for count in (2, 3):
        expected = fixture[f"pairwise{count}"]
        fused, weights = fuse("cgd-pairwise", *(fixture[f"v{k}"] for k in range(count)))
        np.testing.assert_allclose(fused, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(weights, fixture["pairwise3_weights"], atol=1e-6)


def method(fixture: Any, fusion: str, dtype: type, **settings: Any) -> Cgd:
    anchors = l2(fixture["centroids_raw"]).astype(dtype)
    found: Cgd = registry.find("cgd.methods", "cgd")(
        CgdConfig(**settings), registry.find("cgd.fusion", fusion), Codebook(anchors)
    )
    return found


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [(np.float64, "f64", 1e-10), (np.float32, "f32", 1e-5)])
@pytest.mark.parametrize("target", ["fusion2", "pairwise3"])
def test_loss_and_gradient_given_the_stored_fusion(
    fixture: Any, target: str, dtype: type, name: str, tolerance: float
) -> None:
    student = torch.tensor(fixture["student_raw"].astype(dtype)[:, None], requires_grad=True)
    goal = {"vector": torch.from_numpy(fixture[target].astype(dtype))}
    loss = method(fixture, "cgd-two", dtype).loss(student, goal)
    loss.backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(float(fixture[f"loss_{target}_{name}"]), abs=tolerance)
    np.testing.assert_allclose(student.grad[:, 0], fixture[f"grad_student_{target}_{name}"], atol=tolerance)


@pytest.mark.parametrize(("fusion", "count", "case"), [("cgd-two", 2, "fusion2"), ("cgd-pairwise", 3, "pairwise3")])
def test_loss_from_the_teachers_vectors(fixture: Any, fusion: str, count: int, case: str) -> None:
    own = method(fixture, fusion, np.float64)
    teachers = [fixture[f"v{k}"].astype(np.float64)[:, None] for k in range(count)]
    target = own.target(teachers, Batch(np.zeros((32, 1), int), np.zeros((32, 1), int)), NOBODY)
    student = torch.from_numpy(fixture["student_raw"][:, None])
    loss = own.loss(student, {n: torch.from_numpy(v) for n, v in target.items()}).item()
    assert loss == pytest.approx(float(fixture[f"loss_{case}_f64"]), abs=1e-7)
    names = [("0", "1")] if count == 2 else [("0", "1"), ("0", "2"), ("1", "2")]
    assert target["rho"][0] == pytest.approx(np.mean([np.abs(fixture[f"r{a}{b}"]) for a, b in names]), abs=1e-6)
    assert target["weights"].sum() == pytest.approx(1)


def test_soft_codes_and_the_other_direction(fixture: Any) -> None:
    own = method(fixture, "cgd-two", np.float64)
    anchors = torch.from_numpy(own.codebook.centroids)
    teacher = own._logits(torch.from_numpy(fixture["fusion2"].astype(np.float64)), anchors)
    np.testing.assert_allclose(teacher.softmax(dim=-1), fixture["soft_code_fusion2"], atol=1e-10)
    student = own._logits(torch.from_numpy(fixture["student_raw"]), anchors)
    p, q = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    reverse = (p.exp() * (p - q)).sum().item() / (32 * 8)
    assert reverse == pytest.approx(float(fixture["reverse_kl_fusion2_derived"]), abs=1e-9)


def test_the_students_embedding(fixture: Any) -> None:
    np.testing.assert_allclose(l2(fixture["student_raw"]), fixture["student_embedding"], atol=1e-6)


# the codebook


@pytest.mark.parametrize("block", [600, 77])
def test_spherical_kmeans_in_blocks(derived: Any, block: int) -> None:
    rows = derived["pq_X"]

    def blocks() -> list[np.ndarray]:
        return [rows[start : start + block] for start in range(0, len(rows), block)]

    initial = split(rows[derived["pq_init_rows"]], 4)
    once, _ = spherical_kmeans(blocks, initial, 1)
    np.testing.assert_allclose(once, derived["pq_centroids_after_iter0"], atol=1e-9)
    found, history = spherical_kmeans(blocks, initial, 20)
    np.testing.assert_allclose(found, derived["pq_centroids_after_iter19"], atol=1e-9)
    np.testing.assert_allclose(history, derived["pq_mean_cos_history"], atol=1e-9)


@pytest.mark.parametrize("iteration", [0, 1])
def test_assignments(derived: Any, iteration: int) -> None:
    rows = derived["pq_X"]
    initial = split(rows[derived["pq_init_rows"]], 4)
    centroids = initial if iteration == 0 else derived["pq_centroids_after_iter0"]
    parts = split(rows, 4)
    sums, _ = assign_and_sum(parts, centroids)
    expected = np.zeros_like(sums)
    for position in range(4):
        for row, anchor in enumerate(derived[f"pq_assign_iter{iteration}"][:, position]):
            expected[position, anchor] += parts[position, row]
    np.testing.assert_allclose(sums, expected, atol=1e-12)
