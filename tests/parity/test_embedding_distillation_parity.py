"""Triplets, absolute and relative teacher against numbers of the released code (methods.md 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import AbsoluteTeacherConfig, RelativeTeacherConfig
from cgd.methods._metric import distances, hardest, student_distances
from cgd.methods._softmax import unit
from cgd.retrieval.vectors import l2
from cgd.types import Batch

pytestmark = pytest.mark.shared
DOUBLE = {"rtol": 0, "atol": 1e-9}
SINGLE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return np.load(shared / "reference/losses/embedding_distillation.npz")


def run(
    fixture: Any, name: str, config: Any, dtype: type = np.float64, offset: float = 0.0
) -> tuple[float, np.ndarray]:
    """Loss and its gradient (N, D); `offset` is taken from the teacher's unit vectors."""
    method = registry.find("cgd.methods", name)(config, None)
    rows = np.arange(len(fixture["labels"]))[:, None]
    batch = Batch(rows, np.zeros_like(rows), fixture["labels"][:, None])
    target = method.target([fixture["teacher_raw"].astype(dtype)[:, None]], batch, np.random.default_rng(0))
    if offset:
        target = target | {"vectors": target["vectors"] - offset}
    student = torch.tensor(fixture["student_raw"].astype(dtype)[:, None], requires_grad=True)
    loss = method.loss(student, {key: torch.from_numpy(value) for key, value in target.items()})
    loss.backward()
    assert student.grad is not None
    return loss.item(), student.grad[:, 0].numpy()


@pytest.mark.parametrize(("kind", "dtype", "exact"), [("f64", np.float64, DOUBLE), ("f32", np.float32, SINGLE)])
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
def test_triplets(fixture: Any, margin: float, kind: str, dtype: type, exact: dict[str, float]) -> None:
    key = f"triplet{f'_margin{margin}' if margin else ''}_{kind}"
    loss, gradient = run(fixture, "relative-teacher", RelativeTeacherConfig(weight=0, margin=margin), dtype)
    np.testing.assert_allclose(loss, fixture[key], **exact)
    np.testing.assert_allclose(gradient, fixture[f"grad_{key}"], **exact)
    assert run(fixture, "absolute-teacher", AbsoluteTeacherConfig(weight=0, margin=margin), dtype)[0] == loss


@pytest.mark.parametrize(("kind", "dtype", "exact"), [("f64", np.float64, DOUBLE), ("f32", np.float32, SINGLE)])
def test_relative_teacher(fixture: Any, kind: str, dtype: type, exact: dict[str, float]) -> None:
    alone = RelativeTeacherConfig(weight=1, triplet=0)
    loss, gradient = run(fixture, "relative-teacher", alone, dtype)
    np.testing.assert_allclose(loss, fixture[f"relative_{kind}"], **exact)
    np.testing.assert_allclose(gradient, fixture[f"grad_relative_{kind}"], **exact)
    total, _ = run(fixture, "relative-teacher", RelativeTeacherConfig(weight=0.3), dtype)
    np.testing.assert_allclose(total, fixture[f"total_lambda0.3_relative_{kind}"], **exact)
    means = RelativeTeacherConfig(weight=1, triplet=0, relative_reduction="mean_abs_offdiag")
    mean, _ = run(fixture, "relative-teacher", means, dtype)
    np.testing.assert_allclose(mean, fixture[f"relative_meanabs_offdiag_derived_{kind}"], **exact)


@pytest.mark.parametrize(("kind", "dtype", "exact"), [("f64", np.float64, DOUBLE), ("f32", np.float32, SINGLE)])
def test_absolute_teacher(fixture: Any, kind: str, dtype: type, exact: dict[str, float]) -> None:
    """The library routine of the release adds 1e-6 to every component of the difference; `cgd` does not."""
    alone = AbsoluteTeacherConfig(triplet=0)
    loss, gradient = run(fixture, "absolute-teacher", alone, dtype, offset=1e-6)
    np.testing.assert_allclose(loss, fixture[f"absolute_{kind}"], **exact)
    np.testing.assert_allclose(gradient, fixture[f"grad_absolute_{kind}"], **exact)
    loss, gradient = run(fixture, "absolute-teacher", alone)
    np.testing.assert_allclose(loss, fixture["absolute_f64"], rtol=0, atol=4e-7)
    np.testing.assert_allclose(gradient, fixture["grad_absolute_f64"], rtol=0, atol=5e-9)


def test_distances_and_the_hardest_pairs(fixture: Any) -> None:
    own = student_distances(unit(torch.from_numpy(fixture["student_raw"])))
    np.testing.assert_allclose(own, fixture["dist_student_f64"], **DOUBLE)
    np.testing.assert_allclose(distances(l2(fixture["teacher_raw"])), fixture["dist_teacher_f64"], **DOUBLE)
    farthest, nearest = hardest(own, torch.from_numpy(fixture["labels"]))
    np.testing.assert_allclose(farthest, fixture["dist_ap_f64"], **DOUBLE)
    np.testing.assert_allclose(nearest, fixture["dist_an_f64"], **DOUBLE)
