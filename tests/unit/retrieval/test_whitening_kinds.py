"""The relatives of whitening behind one interface: what each makes of the covariance, and what two of them share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cgd.errors import InputError
from cgd.retrieval.vectors import l2
from cgd.retrieval.whitening import Moments, whiten, whitening_from
from cgd.types import Whitening

KINDS = ("pca", "zca", "standardise", "phi-s", "centre")
WIDTH = 16


def rows(width: int = WIDTH, count: int = 3000) -> np.ndarray:
    """Unit rows of an uneven cloud away from zero."""
    draw = np.random.default_rng(0)
    mixed = draw.standard_normal((count, width)) * np.geomspace(1, 0.1, width) @ draw.standard_normal((width, width))
    return l2(mixed + draw.standard_normal(width))


def fitted(kind: str, given: np.ndarray, dim: int | None = None, seed: int = 0) -> Whitening:
    moments = Moments()
    for start in range(0, len(given), 700):
        moments.add(given[start : start + 700])
    return whitening_from(moments, kind, dim or given.shape[1], 1e-8, "fixed", seed)


def applied(kind: str, given: np.ndarray, **options: Any) -> np.ndarray:
    return whiten(given[:, None], fitted(kind, given, **options))


def covariance(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=0)
    return centred.T @ centred / len(x)


def cosines(x: np.ndarray) -> np.ndarray:
    unit = l2(x[:50])
    return unit @ unit.T


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_away_the_mean(kind: str) -> None:
    np.testing.assert_allclose(applied(kind, rows()).mean(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_two_of_them_leave_the_identity(kind: str) -> None:
    np.testing.assert_allclose(covariance(applied(kind, rows())), np.eye(WIDTH), atol=1e-8)


def test_zca_changes_as_little_as_it_can() -> None:
    projection = fitted("zca", rows()).projection
    np.testing.assert_allclose(projection, projection.T, atol=1e-9)
    assert (np.linalg.eigvalsh(projection) > 0).all()


def test_standardising_gives_every_component_its_own_deviation() -> None:
    white = applied("standardise", rows())
    np.testing.assert_allclose(white.std(axis=0), 1)
    np.testing.assert_allclose(white, (rows() - rows().mean(axis=0)) / rows().std(axis=0), atol=1e-9)


@pytest.mark.parametrize(("width", "low", "high"), [(16, 1 - 1e-9, 1 + 1e-9), (12, 0.05, 4)])
def test_phi_s_gives_every_component_the_same_variance_where_there_is_a_hadamard_matrix(
    width: int, low: float, high: float
) -> None:
    variance = applied("phi-s", rows(width)).var(axis=0)
    assert variance.mean() == pytest.approx(1)
    assert low <= variance.min() <= variance.max() <= high


def test_phi_s_of_another_width_depends_on_the_seed_alone() -> None:
    first, again, other = (fitted("phi-s", rows(12), seed=s).projection for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize(("one", "other"), [("zca", "pca"), ("phi-s", "centre")])
@pytest.mark.parametrize("width", [16, 12])
def test_for_cosines_only_pca_and_centring_differ(one: str, other: str, width: int) -> None:
    """methods.md 1.3: a rotation and a common factor change no cosine."""
    np.testing.assert_allclose(cosines(applied(one, rows(width))), cosines(applied(other, rows(width))), atol=1e-10)
    assert np.abs(cosines(applied("pca", rows(width))) - cosines(applied("centre", rows(width)))).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_dimensions_are_pcas_to_choose(kind: str) -> None:
    white = fitted(kind, rows(), dim=5)
    assert white.projection.shape == ((5 if kind == "pca" else WIDTH), WIDTH)
    assert len(white.eigenvalues) == WIDTH


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_direction_is_bounded_by_the_floor(kind: str) -> None:
    given = rows()
    given[:, 3] = 0
    white = fitted(kind, given)
    assert white.n_clamped == 1
    assert np.isfinite(white.projection).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_fit_on_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="cannot whiten 0 rows"):
        whitening_from(Moments(), kind, 4, 1e-5, "fixed")
    with pytest.raises(InputError, match="all alike"):
        fitted(kind, np.full((10, 4), 0.5))


def test_too_few_rows_for_pca_are_refused() -> None:
    with pytest.raises(InputError, match="at most 10"):
        fitted("pca", rows()[:10], dim=12)
    assert fitted("zca", rows()[:10]).projection.shape == (WIDTH, WIDTH)
