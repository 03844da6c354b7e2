"""What every registered fusion must do."""

from __future__ import annotations

import numpy as np
import pytest

from cgd import registry

NAMES = registry.names("cgd.fusion")


@pytest.fixture
def similarities() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 5, 5))


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_range(name: str, similarities: np.ndarray) -> None:
    before = similarities.copy()
    fused = registry.find("cgd.fusion", name)(similarities, np.random.default_rng(0))
    assert fused.shape == (5, 5)
    assert (fused >= similarities.min(axis=0) - 1e-12).all()
    assert (fused <= similarities.max(axis=0) + 1e-12).all()
    np.testing.assert_array_equal(similarities, before)


@pytest.mark.parametrize("name", NAMES)
def test_one_teacher_is_left_as_it_is(name: str, similarities: np.ndarray) -> None:
    fused = registry.find("cgd.fusion", name)(similarities[:1], np.random.default_rng(0))
    np.testing.assert_array_equal(fused, similarities[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_teachers_does_not_matter(name: str, similarities: np.ndarray) -> None:
    fuse = registry.find("cgd.fusion", name)
    one = fuse(similarities, np.random.default_rng(0))
    np.testing.assert_allclose(one, fuse(similarities[::-1].copy(), np.random.default_rng(0)), atol=1e-12)


def test_max_min_by_a_naive_loop(similarities: np.ndarray) -> None:
    fused = registry.find("cgd.fusion", "max-min")(similarities, np.random.default_rng(0))
    for i in range(5):
        for j in range(5):
            said = [similarities[k, i, j] for k in range(3)]
            assert fused[i, j] == (max(said) if i == j else min(said))
