"""A store written by format version 1 opens, verifies and holds the numbers it was made from."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import zarr

from cgd.store.feature_store import FeatureStore
from cgd.store.layout import LAYOUT

STORE = Path(__file__).with_name("store_v1")
MADE = runpy.run_path(str(STORE.with_name("make_store_v1.py")))
CONTENTS = MADE["contents"]()
LATER = {"canaries", "codebooks", "descriptors", "indexes"}  # kinds that joined the format after this store was written


@pytest.fixture(scope="module")
def store():
    return FeatureStore.open(STORE)


def test_it_holds_one_sealed_artifact_of_every_kind(store):
    assert LAYOUT.keys() - CONTENTS.keys() == LATER
    assert [(e.key.kind, e.sealed) for e in store.entries()] == [(kind, True) for kind in sorted(CONTENTS)]


def test_it_verifies(store):
    assert all(problems == [] for _, problems in store.verify())


@pytest.mark.parametrize("kind", CONTENTS)
def test_equal_settings_still_have_the_same_mark(store, kind):
    identity = CONTENTS[kind][0]
    stored = store.get(identity.key)
    assert stored.settings == identity.settings
    assert stored.attributes["digest"] == identity.digest
    assert [str(key) for key in stored.inputs] == list(identity.inputs)


@pytest.mark.parametrize("kind", CONTENTS)
def test_every_array_holds_the_numbers_of_the_seed(store, kind):
    identity, arrays, attributes, blobs = CONTENTS[kind]
    stored = store.get(identity.key)
    assert stored.arrays == sorted(arrays)
    assert sorted(stored.blobs) == sorted(blobs)
    assert stored.attributes.items() >= attributes.items()
    for name, expected in arrays.items():
        found = stored.read(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    for name, data in blobs.items():
        assert stored.blob(name) == data


@pytest.mark.parametrize("kind", CONTENTS)
def test_plain_zarr_reads_the_same(kind):
    identity, arrays, _, _ = CONTENTS[kind]
    root = zarr.open_group(STORE, mode="r")
    for name, expected in arrays.items():
        np.testing.assert_array_equal(np.asarray(root[f"{identity.key}/{name}"][:]).astype(expected.dtype), expected)


def test_an_interrupted_artifact_of_then_is_continued_now(tmp_path):
    """What the script writes today fits what stands there, file by file: nothing would be written twice."""
    MADE["make"](tmp_path / "now")
    names = {p.relative_to(tmp_path / "now") for p in (tmp_path / "now").rglob("*") if p.is_file()}
    assert names == {p.relative_to(STORE) for p in STORE.rglob("*") if p.is_file()}
    for name in names:
        if name.name != "zarr.json" and "seals" not in name.parts:  # Zarr may spell its metadata otherwise one day
            assert (tmp_path / "now" / name).read_bytes() == (STORE / name).read_bytes()
