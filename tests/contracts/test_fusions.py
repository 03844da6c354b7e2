"""What every registered fusion must do, of similarities or of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cgd import registry
from cgd.fusion import SIMILARITIES, VECTORS

NAMES = registry.names("cgd.fusion")


def fusion(name: str) -> Any:
    return registry.find("cgd.fusion", name)


OF_SIMILARITIES = [n for n in NAMES if fusion(n).combines == SIMILARITIES]
OF_VECTORS = [n for n in NAMES if fusion(n).combines == VECTORS]
COUNTS = {"cgd-two": 2}  # fusions of a fixed number of teachers
ORDERED = {"cgd-two", "rand", "max-rand"}  # the order of teachers, or who draws what, matters


@pytest.fixture
def similarities() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 5, 5))


def vectors(name: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNTS.get(name, 3), 5, 8))


def test_every_fusion_says_what_it_combines() -> None:
    assert sorted(OF_SIMILARITIES + OF_VECTORS) == NAMES


@pytest.mark.parametrize("name", OF_SIMILARITIES)
def test_fused_similarities_lie_between_those_of_the_teachers(name: str, similarities: np.ndarray) -> None:
    before = similarities.copy()
    fused = fusion(name)(similarities, np.random.default_rng(0))
    assert fused.shape == (5, 5)
    assert (fused >= similarities.min(axis=0) - 1e-12).all()
    assert (fused <= similarities.max(axis=0) + 1e-12).all()
    np.testing.assert_array_equal(similarities, before)


@pytest.mark.parametrize("name", OF_SIMILARITIES)
def test_similarities_of_one_teacher_are_left_as_they_are(name: str, similarities: np.ndarray) -> None:
    np.testing.assert_array_equal(fusion(name)(similarities[:1], np.random.default_rng(0)), similarities[0])


@pytest.mark.parametrize("name", sorted(set(OF_SIMILARITIES) - ORDERED))
def test_the_order_of_teachers_does_not_matter(name: str, similarities: np.ndarray) -> None:
    one = fusion(name)(similarities, np.random.default_rng(0))
    np.testing.assert_allclose(one, fusion(name)(similarities[::-1].copy(), np.random.default_rng(0)), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_equal_draws_give_equal_results(name: str, similarities: np.ndarray) -> None:
    given = similarities if name in OF_SIMILARITIES else vectors(name)
    one, other = (fusion(name)(given, np.random.default_rng(7)) for _ in range(2))
    for a, b in zip(*((x,) if isinstance(x, np.ndarray) else x for x in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


RULES = {
    "mean": (lambda said: sum(said) / 3, lambda said: sum(said) / 3),
    "max-min": (max, min),
    "max-mean": (max, lambda said: sum(said) / 3),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_by_a_naive_loop(name: str, similarities: np.ndarray) -> None:
    fused = fusion(name)(similarities, np.random.default_rng(0))
    for i in range(5):
        for j in range(5):
            said = [similarities[k, i, j] for k in range(3)]
            assert fused[i, j] == pytest.approx(RULES[name][i != j](said))


@pytest.mark.parametrize("name", ["rand", "max-rand"])
def test_every_teacher_is_drawn_equally_often(name: str) -> None:
    said = np.broadcast_to(np.arange(3.0)[:, None, None], (3, 200, 200))
    fused = fusion(name)(said, np.random.default_rng(0))
    off = fused[~np.eye(200, dtype=bool)]
    np.testing.assert_allclose(np.bincount(off.astype(int)) / off.size, 1 / 3, atol=0.01)
    assert (np.diag(fused) == 2).all() == (name == "max-rand")


@pytest.mark.parametrize("name", OF_VECTORS)
def test_fused_vectors_are_the_weighted_sum(name: str) -> None:
    given = vectors(name)
    fused, weights = fusion(name)(given, np.random.default_rng(0))
    assert weights.shape == (5, len(given))
    assert ((weights >= 0) & (weights <= 1)).all()
    for b in range(5):
        np.testing.assert_allclose(fused[b], sum(w * v for w, v in zip(weights[b], given[:, b], strict=True)))
    np.testing.assert_array_equal(given, vectors(name))


@pytest.mark.parametrize("name", OF_VECTORS)
def test_a_constant_vector_correlates_with_nothing(name: str) -> None:
    given = vectors(name)
    given[1] = 3.0
    fused, weights = fusion(name)(given, np.random.default_rng(0))
    assert np.isfinite(fused).all()
    assert np.isfinite(weights).all()


def test_the_two_teacher_rule_is_for_two() -> None:
    with pytest.raises(ValueError, match="for two teachers, not 3: use cgd-pairwise"):
        fusion("cgd-two")(vectors("cgd-pairwise"), np.random.default_rng(0))


def test_independent_teachers_leave_nearly_all_weight_to_the_first() -> None:
    """methods.md 2.2: the mean |rho| of independent 512-d vectors is sqrt(2 / (pi 512)) = 0.0353."""
    given = np.random.default_rng(0).standard_normal((2, 4000, 512))
    _, weights = fusion("cgd-two")(given, np.random.default_rng(0))
    assert weights[:, 1].mean() == pytest.approx(0.0353, abs=0.001)
