"""PCA whitening against numbers of the released code (methods.md 1.3), fitted in uneven blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd.retrieval.vectors import l2
from cgd.retrieval.whitening import Moments, whiten, whitening_from
from cgd.types import Whitening

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return np.load(shared / "reference/losses/pca_whitening.npz")


def fit(rows: np.ndarray, dim: int, block: int = 700) -> Whitening:
    moments = Moments()
    for start in range(0, len(rows), block):
        moments.add(rows[start : start + block])
    return whitening_from(moments, "pca", dim, 1e-5, "fixed")


@pytest.mark.parametrize("dim", [64, 32])
def test_double(fixture: Any, dim: int) -> None:
    rows = l2(fixture["X"].astype(np.float64))
    np.testing.assert_allclose(rows[:8].sum(axis=1), fixture["X_l2_rowsum_check"], atol=1e-12)
    fitted = fit(rows, dim)
    out = whiten(fixture["X_test"].astype(np.float64)[:, None], fitted)
    unit = l2(out)
    np.testing.assert_allclose(unit @ unit.T, fixture[f"d{dim}_f64_test_cos"], atol=1e-8)
    np.testing.assert_allclose(out, fixture[f"d{dim}_f64_test_out"], atol=1e-6)
    np.testing.assert_allclose(fitted.mean, fixture[f"d{dim}_f64_mean"][0], atol=1e-12)
    np.testing.assert_allclose(fitted.projection, fixture[f"d{dim}_f64_W_canonical"], atol=1e-7)
    assert fitted.n_clamped == int(fixture[f"d{dim}_f64_n_clamped"])
    white = (rows - fitted.mean) @ fitted.projection.T
    np.testing.assert_allclose(white.T @ white / len(white), fixture[f"d{dim}_f64_cov_white"], atol=1e-8)


@pytest.mark.parametrize(("dim", "tolerance"), [(64, 1e-3), (32, 1e-5)])
def test_close_to_the_single_precision_reference(fixture: Any, dim: int, tolerance: float) -> None:
    unit = l2(whiten(fixture["X_test"][:, None], fit(l2(fixture["X"].astype(np.float64)), dim)))
    np.testing.assert_allclose(unit @ unit.T, fixture[f"d{dim}_f32_test_cos"], atol=tolerance)


@pytest.mark.parametrize("dim", [64, 32])
def test_rank_deficient(fixture: Any, dim: int) -> None:
    """A sample of rank 40 in 64 dimensions: 24 eigenvalues are raised to the floor."""
    fitted = fit(fixture["rankdef_X"].astype(np.float64), dim, block=90)
    assert fitted.n_clamped == 24
    gram = fitted.projection.T @ fitted.projection
    expected = fixture[f"rankdef_d{dim}_WtW"]
    np.testing.assert_allclose(gram, expected, atol=1e-6 * np.abs(expected).max())
    assert fitted.n_clamped == int(fixture[f"rankdef_d{dim}_n_clamped"])
    np.testing.assert_allclose(fitted.mean, fixture[f"rankdef_d{dim}_mean"][0], atol=1e-12)
    norms = np.linalg.norm(fitted.projection, axis=1)
    np.testing.assert_allclose(np.sort(norms), fixture[f"rankdef_d{dim}_row_norms_sorted"], rtol=1e-6)
    floor = float(fixture[f"rankdef_d{dim}_eps"])
    assert norms.max() <= floor**-0.5 * (1 + 1e-6)
    if dim == 64:
        assert norms.max() == pytest.approx(floor**-0.5, rel=1e-6)


@pytest.mark.parametrize("dim", [64, 32])
def test_eigenvalues(fixture: Any, dim: int) -> None:
    """A row of the projection is as long as one over the root of its eigenvalue; the reference keeps them in single."""
    fitted = fit(l2(fixture["X"].astype(np.float64)), dim)
    found = np.linalg.norm(fitted.projection, axis=1) ** -2
    for precision, tolerance in (("f64", 1e-6), ("f32", 1e-3)):
        ascending = fixture[f"d{dim}_{precision}_eig_ascending"]
        np.testing.assert_allclose(
            found[::-1], ascending[-dim:], rtol=tolerance, atol=tolerance * ascending.max() / 100
        )


@pytest.mark.parametrize("dim", [64, 32])
def test_single_precision_statistics(fixture: Any, dim: int) -> None:
    """Where the reference's single precision resolves what it computes: not the smallest of 64 eigenvectors."""
    fitted = fit(l2(fixture["X"].astype(np.float64)), dim)
    np.testing.assert_allclose(fitted.mean, fixture[f"d{dim}_f32_mean"][0], atol=1e-6)
    assert fitted.n_clamped == int(fixture[f"d{dim}_f32_n_clamped"])
    np.testing.assert_allclose(fixture[f"d{dim}_f32_cov_white"], np.eye(dim), atol=1e-2)
    if dim == 32:
        np.testing.assert_allclose(fitted.projection, fixture["d32_f32_W_canonical"], rtol=1e-2, atol=1e-2)
        out = whiten(fixture["X_test"].astype(np.float64)[:, None], fitted)
        np.testing.assert_allclose(out, fixture["d32_f32_test_out"], atol=2e-3)


def test_the_map_of_cirtorch(fixture: Any) -> None:
    """The same map without a floor (methods.md 1.3), which these rows do not reach; its output is normalised."""
    rows = l2(fixture["X"].astype(np.float64))
    fitted = fit(rows, 64)
    assert fitted.n_clamped == 0
    np.testing.assert_allclose(fitted.mean, fixture["cirtorch_pca_m"], atol=1e-10)
    np.testing.assert_allclose(fitted.projection, fixture["cirtorch_pca_P_canonical"], rtol=1e-6, atol=1e-7)
    first = dataclasses.replace(fitted, projection=fitted.projection[:32])
    out = l2(whiten(fixture["X_test"].astype(np.float64)[:, None], first))
    np.testing.assert_allclose(out, fixture["cirtorch_pca_apply32_test"].T, atol=1e-5)
