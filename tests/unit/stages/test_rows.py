"""How work is cut into units, and that sums of parts are those of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import embeddings, image_list

from cgd.config import WhitenConfig
from cgd.engines import engine_of
from cgd.retrieval.whitening import Moments
from cgd.stages import whiten
from cgd.stages.rows import runs
from cgd.stages.whiten import fit_whitening, read_whitening
from cgd.store.feature_store import FeatureStore


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 65, 1000])
@pytest.mark.parametrize("most", [1, 2, 64])
def test_runs_hold_everything_once_and_are_few(count: int, most: int) -> None:
    found = list(runs(count, most))
    assert [n for run in found for n in run] == list(range(count))
    assert len(found) <= most
    assert all(found)


def test_moments_of_parts_about_one_shift_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).standard_normal((90, 5)) + 3
    whole = Moments(rows[:10].mean(axis=0))
    whole.add(rows)
    total = Moments(rows[:10].mean(axis=0))
    for start in range(0, 90, 30):
        part = Moments(total.shift)
        part.add(rows[start : start + 30])
        total.merge(part)
    assert total.count == whole.count == 90
    for ours, theirs in zip(total.mean_and_covariance(), whole.mean_and_covariance(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    mean, covariance = total.mean_and_covariance()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("samples", [0, 20])
def test_a_fit_of_few_parts_and_of_many_differ_in_rounding_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    vectors = np.random.default_rng(1).standard_normal((60, 6))
    key = embeddings(store, image_list("photos", None, 60), vectors, shard_rows=5)
    fitted = []
    for most in (64, 3):
        monkeypatch.setattr(whiten, "MOST_PARTS", most)
        config = WhitenConfig(dim=3, samples=samples, floor=1e-6 * most)  # another floor is another whitening
        report = fit_whitening(store=store, embeddings=[key], config=config, engine=engine_of("local"))
        fitted.append(read_whitening(store, report.key))
    assert fitted[0].n_fit == fitted[1].n_fit == (samples or 60)
    np.testing.assert_allclose(fitted[0].mean, fitted[1].mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(fitted[0].projection, fitted[1].projection, rtol=1e-9)
