"""What every registered distillation method must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import Recipe
from cgd.methods import Method
from cgd.stages.fuse import make_method
from cgd.types import Batch

NAMES = registry.names("cgd.methods")
PAIRS = 6


def method(name: str) -> Method:
    return make_method(name, getattr(Recipe(), name.replace("-", "_")), "max-min")


def teachers(seed: int = 0) -> list[np.ndarray]:
    """Three teachers of different widths."""
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((PAIRS, 2, width)).astype(np.float32) for width in (8, 12, 16)]


def batch() -> Batch:
    return Batch(np.arange(2 * PAIRS).reshape(PAIRS, 2), np.ones((PAIRS, 2), np.int64))


def loss_of(name: str, student: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = method(name).target(teachers(seed), batch(), np.random.default_rng(0))
    return method(name).loss(student, {k: torch.from_numpy(v) for k, v in target.items()})


@pytest.mark.parametrize("name", NAMES)
def test_has_a_section_of_settings(name: str) -> None:
    assert hasattr(Recipe(), name.replace("-", "_"))


@pytest.mark.parametrize("name", NAMES)
def test_target_is_repeatable_and_leaves_the_teachers_alone(name: str) -> None:
    given = teachers()
    first = method(name).target(given, batch(), np.random.default_rng(0))
    again = method(name).target(given, batch(), np.random.default_rng(0))
    for key, value in first.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[key])
    for a, b in zip(given, teachers(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_a_scalar_that_training_lowers(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(PAIRS, 2, 10, generator=generator, requires_grad=True)
    optimiser = torch.optim.Adam([student], lr=0.05)
    history = []
    for _ in range(60):
        loss = loss_of(name, student)
        assert loss.shape == ()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("name", NAMES)
def test_loss_agrees_with_finite_differences(name: str) -> None:
    student = torch.randn(
        PAIRS, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    target = method(name).target([t.astype(np.float64) for t in teachers()], batch(), np.random.default_rng(0))
    goal = {k: torch.from_numpy(v) for k, v in target.items()}
    assert torch.autograd.gradcheck(lambda s: method(name).loss(s, goal), (student,))
