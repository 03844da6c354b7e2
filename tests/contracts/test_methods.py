"""What every registered distillation method must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import Recipe
from cgd.methods import Method
from cgd.retrieval.vectors import l2
from cgd.stages.fuse import make_method
from cgd.types import Batch, Codebook

NAMES = registry.names("cgd.methods")
PAIRS = 6
LABELS = ("a", "b", "a|b")  # of an image of two classes the third

WIDTH = 16  # of teachers and student, where a method needs them equal; hash centres want a power of two


def method(name: str) -> Method:
    needs = registry.find("cgd.methods", name).needs
    fusion = "cgd-pairwise" if needs.fusion == "vectors" else "max-min"
    anchors = l2(np.random.default_rng(9).standard_normal((4, 4, WIDTH // 4)))
    config = getattr(Recipe(), name.replace("-", "_"))
    return make_method(name, config, fusion, Codebook(anchors) if needs.codebook else None, LABELS)


def teachers(name: str, seed: int = 0) -> list[np.ndarray]:
    """Three teachers, of different widths where the method allows it."""
    needs = registry.find("cgd.methods", name).needs
    widths = (WIDTH,) * 3 if needs.width else (8, 12, 16)
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((PAIRS, needs.images_per_row, w)).astype(np.float32) for w in widths]


def students(name: str, seed: int, **options: Any) -> torch.Tensor:
    shape = (PAIRS, registry.find("cgd.methods", name).needs.images_per_row, WIDTH)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), requires_grad=True, **options)


def batch(name: str) -> Batch:
    shape = (PAIRS, registry.find("cgd.methods", name).needs.images_per_row)
    labels = np.arange(np.prod(shape)).reshape(shape) % len(LABELS)
    return Batch(np.arange(np.prod(shape)).reshape(shape), np.ones(shape, np.int64), labels)


def loss_of(name: str, student: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = method(name).target(teachers(name, seed), batch(name), np.random.default_rng(0))
    return method(name).loss(student, {k: torch.from_numpy(v) for k, v in target.items()})


@pytest.mark.parametrize("name", NAMES)
def test_has_a_section_of_settings(name: str) -> None:
    assert hasattr(Recipe(), name.replace("-", "_"))


@pytest.mark.parametrize("name", NAMES)
def test_target_is_repeatable_and_leaves_the_teachers_alone(name: str) -> None:
    given = teachers(name)
    first = method(name).target(given, batch(name), np.random.default_rng(0))
    again = method(name).target(given, batch(name), np.random.default_rng(0))
    for key, value in first.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[key])
    for a, b in zip(given, teachers(name), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(method(name).tells) <= set(first)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_a_scalar_that_training_lowers(name: str) -> None:
    student = students(name, 0)
    optimiser = torch.optim.Adam([student], lr=0.05)
    history = []
    for _ in range(60):
        loss = loss_of(name, student)
        assert loss.shape == ()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("name", NAMES)
def test_loss_agrees_with_finite_differences(name: str) -> None:
    student = students(name, 1, dtype=torch.float64)
    given = [t.astype(np.float64) for t in teachers(name)]
    target = method(name).target(given, batch(name), np.random.default_rng(0))
    goal = {k: torch.from_numpy(v) for k, v in target.items()}
    assert torch.autograd.gradcheck(lambda s: method(name).loss(s, goal), (student,))
