"""FAISS indexes: what they find against exact search, saved and read back, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cgd.config import IndexConfig
from cgd.errors import InputError
from cgd.retrieval import approximate
from cgd.retrieval.search import Block, DotProducts, nearest
from cgd.retrieval.vectors import l2

CONFIG = IndexConfig(code_bytes=8, probes=8, lists=16)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Clusters, as descriptors have them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((60, 32), np.float32)
    return l2(centres[np.arange(1500) % 60] + 0.3 * generator.standard_normal((1500, 32), np.float32))


def built(kind: str, vectors: np.ndarray) -> object:
    training = vectors[: approximate.training_rows(kind, len(vectors), CONFIG)]
    index = approximate.make(kind, vectors.shape[1], len(vectors), CONFIG, training)
    approximate.extend(index, [vectors[:700].astype(np.float16), vectors[700:]])
    return index


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.98), ("ivf-pq", 0.6)])
def test_it_finds_most_of_what_is_near_before_and_after_it_was_saved(vectors, kind, least):
    _, exact = nearest(DotProducts(vectors[::50]), [Block(range(1500), lambda: vectors)], 10)
    index = built(kind, vectors)
    again = approximate.from_bytes(approximate.to_bytes(index))
    for each in (approximate.ready(index, CONFIG), approximate.ready(again, CONFIG)):
        scores, found = approximate.search(each, vectors[::50], 10, CONFIG)
        assert np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]) >= least
        assert (np.diff(scores, axis=1) <= 0).all()


def test_more_than_there_is_comes_short(vectors):
    index = built("flat", vectors[:701])
    scores, found = approximate.search(index, vectors[:2], 5000, CONFIG)
    assert scores.shape == found.shape == (2, 701)


@pytest.mark.parametrize(
    ("rows", "config", "lists"),
    [
        (1_000_000, IndexConfig(), 1024),
        (10_000_000, IndexConfig(), 4096),
        (1000, IndexConfig(), 25),
        (30, IndexConfig(), 1),
        (1_000_000, IndexConfig(lists=7), 7),
    ],
)
def test_cells_are_about_the_square_root_of_the_images_and_have_enough_of_them(rows, config, lists):
    assert approximate.lists_for(rows, config) == lists


def test_codes_that_do_not_divide_a_descriptor_and_galleries_too_small_are_refused(vectors):
    with pytest.raises(InputError, match=r"index.code_bytes is 7, which does not divide the 32 dimensions"):
        approximate.make("ivf-pq", 32, 1500, IndexConfig(code_bytes=7), vectors)
    with pytest.raises(InputError, match="learns 256 codes, but the gallery has 255 images: use exact search"):
        approximate.make("ivf-pq", 32, 255, CONFIG, vectors[:255])


def test_the_cells_looked_into_are_those_asked_for(vectors):
    shares = []
    for probes in (1, 16):
        config = dataclasses.replace(CONFIG, probes=probes)
        index = approximate.ready(built("ivf-pq", vectors), config)
        shares.append((approximate.search(index, vectors[:200], 300, config)[1] >= 0).mean())
    assert shares[0] < 0.5 < shares[1] == 1


def test_a_fitted_rotation_is_an_option(vectors):
    config = dataclasses.replace(CONFIG, rotation="opq")
    index = approximate.make("ivf-pq", 32, 1500, config, vectors)
    approximate.extend(index, [vectors])
    assert (approximate.search(index, vectors[:20], 1, config)[1][:, 0] == np.arange(20)).mean() > 0.5
