"""The Whiten-MTD loss, its gradients and its fusions against numbers of the released code (methods.md 1.4, 1.5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import WhitenMtdConfig
from cgd.types import Batch

pytestmark = pytest.mark.shared
FUSIONS = {"mean": "mean", "max-min": "maxmin"}
TEMPERATURES = {"t0": (0.05, 0.05), "t1": (0.07, 0.04)}
NO_BATCH = Batch(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return np.load(shared / "reference/losses/whiten_mtd_loss.npz")


@pytest.fixture(scope="module")
def derived(shared: Path) -> Any:
    return np.load(shared / "reference/losses/derived.npz")


def run(
    fixture: Any, count: int, fusion: str, config: WhitenMtdConfig, dtype: type = np.float64
) -> tuple[float, np.ndarray, Any]:
    """Loss, gradient (N, 2, D) and target with the first `count` teachers."""
    method = registry.find("cgd.methods", "whiten-mtd")(config, registry.find("cgd.fusion", fusion))
    teachers = [np.stack([fixture[f"tch1_{k}"], fixture[f"tch2_{k}"]], axis=1).astype(dtype) for k in range(count)]
    target = method.target(teachers, NO_BATCH, np.random.default_rng(0))
    pairs = np.stack([fixture["stu1"], fixture["stu2"]], axis=1).astype(dtype)
    student = torch.tensor(pairs, requires_grad=True)
    loss = method.loss(student, {name: torch.from_numpy(value) for name, value in target.items()})
    loss.backward()
    assert student.grad is not None
    return loss.item(), student.grad.numpy(), target


@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_loss_and_gradient_in_double(fixture: Any, count: int, fusion: str, temperatures: str) -> None:
    student, teacher = TEMPERATURES[temperatures]
    config = WhitenMtdConfig(student_temperature=student, teacher_temperature=teacher)
    loss, gradient, _ = run(fixture, count, fusion, config)
    case = f"K{count}_{FUSIONS[fusion]}_{temperatures}_f64"
    assert loss == pytest.approx(float(fixture[f"{case}_loss"]), abs=1e-10)
    np.testing.assert_allclose(gradient[:, 0], fixture[f"{case}_grad_stu1"], atol=1e-10)
    np.testing.assert_allclose(gradient[:, 1], fixture[f"{case}_grad_stu2"], atol=1e-10)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_loss_and_gradient_in_single(fixture: Any, count: int, fusion: str) -> None:
    loss, gradient, _ = run(fixture, count, fusion, WhitenMtdConfig(), np.float32)
    case = f"K{count}_{FUSIONS[fusion]}_t0_f32"
    assert loss == pytest.approx(float(fixture[f"{case}_loss"]), abs=1e-5)
    np.testing.assert_allclose(gradient[:, 0], fixture[f"{case}_grad_stu1"], atol=1e-5)
    np.testing.assert_allclose(gradient[:, 1], fixture[f"{case}_grad_stu2"], atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fused_matrix(fixture: Any, count: int, fusion: str) -> None:
    _, _, target = run(fixture, count, fusion, WhitenMtdConfig())
    np.testing.assert_allclose(target["row"], fixture[f"K{count}_{FUSIONS[fusion]}_t0_f64_fused_row"], atol=1e-10)
    np.testing.assert_allclose(target["col"], target["row"].T, atol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_the_papers_forms_of_the_loss(derived: Any, fixture: Any, count: int) -> None:
    """One term instead of two, and the divergence the other way round."""
    case = f"mtd_K{count}_maxmin"
    forward = float(derived[f"{case}_forward_rows"])
    forms = {
        forward: WhitenMtdConfig(symmetric=False),
        forward + float(derived[f"{case}_forward_cols"]): WhitenMtdConfig(),
        float(derived[f"{case}_reverse_rows_only"]): WhitenMtdConfig(kl_direction="student-teacher", symmetric=False),
        float(derived[f"{case}_reverse_symmetric"]): WhitenMtdConfig(kl_direction="student-teacher"),
    }
    for expected, config in forms.items():
        assert run(fixture, count, "max-min", config)[0] == pytest.approx(expected, abs=1e-9)
