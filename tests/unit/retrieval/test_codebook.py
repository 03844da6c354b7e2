"""Spherical k-means: laws, empty anchors, zero sub-vectors, and the other ways to a codebook."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cgd.errors import InputError
from cgd.retrieval.codebook import assign_and_sum, draw_initial, euclidean, procrustes, spherical_kmeans, split
from cgd.retrieval.vectors import l2


def rows(count: int = 400, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def test_the_mean_cosine_never_falls_and_anchors_stay_unit() -> None:
    initial = draw_initial(rows(), 3, 8, np.random.default_rng(1))
    centroids, history = spherical_kmeans(lambda: [rows()], initial, 15)
    assert all(b >= a - 1e-12 for a, b in pairwise(history))
    assert history[-1] > history[0]
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=2), 1)


def test_blocks_do_not_matter() -> None:
    initial = draw_initial(rows(), 3, 8, np.random.default_rng(1))
    whole, _ = spherical_kmeans(lambda: [rows()], initial, 5)
    parts, _ = spherical_kmeans(lambda: np.array_split(rows(), 7), initial, 5)
    np.testing.assert_allclose(whole, parts, atol=1e-12)


def test_clusters_that_are_there_are_found() -> None:
    draw = np.random.default_rng(0)
    truth = l2(draw.standard_normal((2, 4, 6)))
    members = draw.integers(0, 4, (500, 2))
    given = np.concatenate([truth[m][members[:, m]] for m in range(2)], axis=1) + 0.02 * draw.standard_normal((500, 12))
    best = max(
        (spherical_kmeans(lambda: [given], draw_initial(given, 2, 4, np.random.default_rng(s)), 20) for s in range(8)),
        key=lambda found: found[1][-1],
    )[0]
    for position in range(2):
        assert (np.abs(best[position] @ truth[position].T).max(axis=0) > 0.999).all()


def test_an_anchor_without_members_keeps_its_place() -> None:
    initial = np.zeros((1, 2, 3))
    initial[0, 0], initial[0, 1] = [1, 0, 0], [-1, 0, 0]
    given = np.abs(rows(50, 3))
    centroids, _ = spherical_kmeans(lambda: [given], initial, 3)
    np.testing.assert_array_equal(centroids[0, 1], [-1, 0, 0])


def test_a_sub_vector_of_zeros_belongs_to_nobody() -> None:
    given = rows(6, 4)
    given[2, :2] = 0
    parts = split(given, 2)
    sums, total = assign_and_sum(parts, l2(np.ones((2, 1, 2))))
    np.testing.assert_allclose(sums[0, 0], parts[0].sum(axis=0))
    assert total == pytest.approx(sum((p @ l2(np.ones((1, 2))).T).sum() for p in parts))
    with pytest.raises(InputError, match="6 anchors need as many images, there are 5"):
        draw_initial(given, 2, 6, np.random.default_rng(0))


def test_a_width_that_does_not_divide_is_refused() -> None:
    for call in (lambda: split(rows(), 5), lambda: euclidean(rows(), 5, 2, 3, 1, 0)):
        with pytest.raises(InputError, match="vectors of 12 values cannot be cut into 5 equal parts"):
            call()


def test_plain_product_quantisation_minimises_distances() -> None:
    found = euclidean(rows(), 3, 3, 10, 2, 0)
    assert found.shape == (3, 8, 4)
    np.testing.assert_array_equal(found, euclidean(rows(), 3, 3, 10, 2, 0))

    def error(centroids: np.ndarray) -> float:
        parts = rows().reshape(-1, 3, 4).transpose(1, 0, 2)
        distances = ((parts[:, :, None] - centroids[:, None]) ** 2).sum(axis=-1)
        return float(distances.min(axis=-1).mean())

    drawn = rows().reshape(-1, 3, 4).transpose(1, 0, 2)[:, :8]
    assert error(found) < 0.8 * error(drawn)


def test_procrustes_finds_the_rotation_there_was() -> None:
    turned, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((12, 12)))
    given = rows()
    found = procrustes((given @ turned.T).T @ given)
    np.testing.assert_allclose(found, turned, atol=1e-10)
    np.testing.assert_allclose(found @ found.T, np.eye(12), atol=1e-10)
