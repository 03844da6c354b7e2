"""Ranking distillation against numbers computed from methods.md 4; the paper has no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import RankingConfig
from cgd.types import Batch

pytestmark = pytest.mark.shared
KEYS = {
    "rank_mse": ("rd_loss_mse", "rd_grad_mse"),
    "rank_listkl": ("rd_loss_listkl_tau0p05", "rd_grad_listkl"),
    "rank_rkd": ("rd_loss_rkd_distance", "rd_grad_rkd_distance"),
}


class Drawn:
    """In place of a generator: the pairs and coefficients of the fixture."""

    def __init__(self, fixture: Any) -> None:
        first, second, images = fixture["rd_i"], fixture["rd_j"], len(fixture["rd_teacher"])
        self.whole, self.share = [first, (second - first) % images], fixture["rd_lambda"]

    def integers(self, low: int, high: int, count: int) -> np.ndarray:
        values: np.ndarray = self.whole.pop(0)
        assert len(values) == count
        assert low <= values.min()
        assert values.max() < high
        return values

    def beta(self, a: float, b: float, count: int) -> np.ndarray:
        assert (a, b, count) == (1, 1, len(self.share))
        return np.asarray(self.share)


@pytest.mark.parametrize("loss", KEYS)
def test_loss_and_gradient(shared: Path, loss: Any) -> None:
    derived = np.load(shared / "reference/losses/derived.npz")
    method = registry.find("cgd.methods", "ranking")(RankingConfig(loss=loss, virtual=len(derived["rd_i"])), None)
    rows = np.arange(len(derived["rd_teacher"]))[:, None]
    target = method.target([derived["rd_teacher"][:, None]], Batch(rows, np.zeros_like(rows)), Drawn(derived))
    np.testing.assert_array_equal(target["first"], derived["rd_i"])
    np.testing.assert_array_equal(target["second"], derived["rd_j"])
    np.testing.assert_array_equal(target["share"], derived["rd_lambda"])
    student = torch.tensor(derived["rd_student"][:, None], requires_grad=True)
    value = method.loss(student, {name: torch.from_numpy(array) for name, array in target.items()})
    value.backward()
    assert student.grad is not None
    expected, gradient = (derived[key] for key in KEYS[loss])
    assert value.item() == pytest.approx(float(expected), abs=1e-9)
    np.testing.assert_allclose(student.grad[:, 0], gradient, rtol=0, atol=1e-9)
