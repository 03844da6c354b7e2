"""Joining the descriptors of several scales, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from cgd.retrieval.vectors import combine_scales, l2


def vectors(scales: int) -> np.ndarray:
    return np.random.default_rng(scales).standard_normal((3, scales, 40)) * 5


def signed_power(x: float, power: float) -> float:
    return float(np.sign(x)) * max(abs(x), 1e-6) ** power


@pytest.mark.parametrize("scales", [1, 2, 5])
def test_the_mean_is_that_of_unit_vectors(scales: int) -> None:
    found = combine_scales(vectors(scales), "mean")
    for row, given in zip(found, vectors(scales), strict=True):
        np.testing.assert_allclose(row, sum(v / np.linalg.norm(v) for v in given) / scales)


@pytest.mark.parametrize("scales", [2, 5])
def test_the_power_mean_keeps_signs_and_raises_what_is_tiny(scales: int) -> None:
    given = vectors(scales)
    given[0, :, 0] = 1e-9  # its third power is far below 1e-6, whose root is 0.01
    found = combine_scales(given, "gem3")
    for row, unit in zip(found, l2(given), strict=True):
        for place in range(40):
            mean = sum(signed_power(v, 3) for v in unit[:, place]) / scales
            assert row[place] == pytest.approx(signed_power(mean, 1 / 3))
    assert found[0, 0] == pytest.approx(0.01)


def test_one_scale_stays_as_it_is() -> None:
    np.testing.assert_array_equal(combine_scales(vectors(1), "gem3"), l2(vectors(1)[:, 0]))


def test_what_is_given_is_not_changed() -> None:
    given = vectors(2)
    combine_scales(given, "gem3")
    np.testing.assert_array_equal(given, vectors(2))
