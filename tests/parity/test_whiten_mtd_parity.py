"""Whiten-MTD's loss, gradients and fusions, and its baselines, against numbers of the released code (methods.md 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import ContrastiveConfig, EmbeddingConfig, WhitenMtdConfig
from cgd.types import Batch

pytestmark = pytest.mark.shared
FUSIONS = {"mean": "mean", "rand": "rand", "max-min": "maxmin", "max-mean": "maxmean", "max-rand": "maxrand"}
TEMPERATURES = {"t0": (0.05, 0.05), "t1": (0.07, 0.04)}
NO_BATCH = Batch(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return np.load(shared / "reference/losses/whiten_mtd_loss.npz")


@pytest.fixture(scope="module")
def derived(shared: Path) -> Any:
    return np.load(shared / "reference/losses/derived.npz")


class Masks:
    """In place of a generator: the choices that the fixture's run drew, row term first."""

    def __init__(self, fixture: Any, case: str) -> None:
        self.masks = [fixture[f"{case}_mask_{term}"] for term in ("row", "col") if f"{case}_mask_row" in fixture]

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        mask = self.masks.pop(0).astype(np.int64)
        assert (mask.shape, low) == (shape, 0)
        assert mask.max() < high
        return mask


def pairs(fixture: Any, dtype: type) -> torch.Tensor:
    views = np.stack([fixture["stu1"], fixture["stu2"]], axis=1).astype(dtype)
    return torch.tensor(views, requires_grad=True)


def run(
    fixture: Any, count: int, fusion: str, config: WhitenMtdConfig, dtype: type = np.float64, case: str = ""
) -> tuple[float, np.ndarray, Any]:
    """Loss, gradient (N, 2, D) and target with the first `count` teachers, random choices as in `case`."""
    method = registry.find("cgd.methods", "whiten-mtd")(config, registry.find("cgd.fusion", fusion))
    teachers = [np.stack([fixture[f"tch1_{k}"], fixture[f"tch2_{k}"]], axis=1).astype(dtype) for k in range(count)]
    target = method.target(teachers, NO_BATCH, Masks(fixture, case))
    student = pairs(fixture, dtype)
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
    case = f"K{count}_{FUSIONS[fusion]}_{temperatures}_f64"
    loss, gradient, _ = run(fixture, count, fusion, config, case=case)
    assert loss == pytest.approx(float(fixture[f"{case}_loss"]), abs=1e-10)
    np.testing.assert_allclose(gradient[:, 0], fixture[f"{case}_grad_stu1"], atol=1e-10)
    np.testing.assert_allclose(gradient[:, 1], fixture[f"{case}_grad_stu2"], atol=1e-10)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_loss_and_gradient_in_single(fixture: Any, count: int, fusion: str) -> None:
    double = f"K{count}_{FUSIONS[fusion]}_t0_f64"  # its random choices served the single run too
    loss, gradient, _ = run(fixture, count, fusion, WhitenMtdConfig(), np.float32, case=double)
    case = f"K{count}_{FUSIONS[fusion]}_t0_f32"
    assert loss == pytest.approx(float(fixture[f"{case}_loss"]), abs=1e-5)
    np.testing.assert_allclose(gradient[:, 0], fixture[f"{case}_grad_stu1"], atol=1e-5)
    np.testing.assert_allclose(gradient[:, 1], fixture[f"{case}_grad_stu2"], atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fused_matrices_and_the_strongest_teacher(fixture: Any, count: int, fusion: str) -> None:
    case = f"K{count}_{FUSIONS[fusion]}_t0_f64"
    _, _, target = run(fixture, count, fusion, WhitenMtdConfig(), case=case)
    np.testing.assert_allclose(target["row"], fixture[f"{case}_fused_row"], atol=1e-10)
    column = fixture[f"{case}_fused_col"] if f"{case}_fused_col" in fixture else target["row"].T
    np.testing.assert_allclose(target["col"], column, atol=1e-10)
    if f"{case}_pos_win_count" in fixture:  # the reference counts both terms
        np.testing.assert_allclose(32 * target["strongest"], fixture[f"{case}_pos_win_count"], atol=1e-9)


def test_one_draw_may_serve_both_terms(fixture: Any) -> None:
    case = "K3_rand_t0_f64"
    _, _, target = run(fixture, 3, "rand", WhitenMtdConfig(shared_mask=True), case=case)
    np.testing.assert_allclose(target["row"], fixture[f"{case}_fused_row"], atol=1e-10)
    np.testing.assert_array_equal(target["col"], target["row"].T)


def test_similarities_of_single_teachers_and_the_student(fixture: Any) -> None:
    for k in range(3):
        only = {f"tch{v}_0": fixture[f"tch{v}_{k}"] for v in (1, 2)} | {n: fixture[n] for n in ("stu1", "stu2")}
        _, _, target = run(only, 1, "mean", WhitenMtdConfig())
        np.testing.assert_allclose(target["row"], fixture[f"sim_{k}"], atol=1e-10)
    student = {f"tch{v}_0": fixture[f"stu{v}"] for v in (1, 2)} | {n: fixture[n] for n in ("stu1", "stu2")}
    np.testing.assert_allclose(run(student, 1, "mean", WhitenMtdConfig())[2]["row"], fixture["sim_student"], atol=1e-10)


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


def test_the_ensembles_mean_similarity(derived: Any, fixture: Any) -> None:
    """The baseline EM ranks by it."""
    _, _, target = run(fixture, 3, "mean", WhitenMtdConfig())
    np.testing.assert_allclose(target["row"], derived["mtd_ensemble_mean_sim_K3"], atol=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_contrastive_learning(derived: Any, fixture: Any, symmetric: bool) -> None:
    method = registry.find("cgd.methods", "contrastive")(ContrastiveConfig(symmetric=symmetric), None)
    expected = float(derived["mtd_contrastive_symmetric" if symmetric else "mtd_contrastive_rows"])
    assert method.loss(pairs(fixture, np.float64), {}).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("squared", [False, True])
def test_embedding_distillation(derived: Any, squared: bool) -> None:
    """The fixture has single images; here they are both views of a pair."""
    method = registry.find("cgd.methods", "embedding")(EmbeddingConfig(squared=squared), None)
    teachers = [np.stack([t, t], axis=1) for t in derived["ed_teachers"]]
    target = method.target(teachers, NO_BATCH, np.random.default_rng(0))
    student = torch.from_numpy(np.stack([derived["ed_student"]] * 2, axis=1))
    loss = method.loss(student, {n: torch.from_numpy(v) for n, v in target.items()})
    assert loss.item() == pytest.approx(float(derived["ed_mean_sq_l2" if squared else "ed_mean_l2"]), abs=1e-9)
