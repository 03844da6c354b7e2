"""A store written by format version 1 opens, verifies and holds the numbers it was made from."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from cgd.cli import cli
from cgd.store.feature_store import FeatureStore
from cgd.store.layout import LAYOUT, SCHEMA
from cgd.store.seals import read_seal

STORE = Path(__file__).with_name("store_v1")
MADE = runpy.run_path(str(STORE.with_name("make_store_v1.py")))
CONTENTS = MADE["contents"]()
LATER = {"canaries", "codebooks", "codes", "descriptors", "indexes"}  # kinds that joined the format after this store


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
        # Zarr may spell its metadata otherwise one day; receipts and seals of version 1 do not prove themselves.
        if name.name != "zarr.json" and not {"seals", "receipts"} & set(name.parts):
            assert (tmp_path / "now" / name).read_bytes() == (STORE / name).read_bytes()


def test_upgrading_gives_it_the_receipts_and_seals_of_today_and_keeps_every_array(tmp_path):
    shutil.copytree(STORE, tmp_path / "old")
    done = CliRunner().invoke(cli, ["store", "upgrade", "--store", str(tmp_path / "old"), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["upgraded"]) == len(CONTENTS)
    for path in (p for p in STORE.rglob("*") if p.is_file() and not {"seals", "receipts"} & set(p.parts)):
        if path != STORE / "zarr.json":
            assert (tmp_path / "old" / path.relative_to(STORE)).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "old/zarr.json").read_text())["attributes"] == {"cgd": {"schema": SCHEMA}}
    upgraded = FeatureStore.open(tmp_path / "old")
    assert all(problems == [] for _, problems in upgraded.verify())
    seals = [read_seal(upgraded.files, identity.key) for identity, *_ in CONTENTS.values()]
    assert {seal.schema for seal in seals} == {SCHEMA}
    again = CliRunner().invoke(cli, ["store", "upgrade", "--store", str(tmp_path / "old"), "--json"])
    assert json.loads(again.stdout)["upgraded"] == []


def test_an_upgrade_gives_no_proof_to_damage(tmp_path):
    shutil.copytree(STORE, tmp_path / "old")
    shard = next((tmp_path / "old/embeddings").glob("*/vectors/c/1/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    done = CliRunner().invoke(cli, ["store", "upgrade", "--store", str(tmp_path / "old")])
    assert done.exit_code == 1
    assert "cgd store repair" in done.stderr
    assert json.loads((tmp_path / "old/zarr.json").read_text())["attributes"] == {"cgd": {"schema": 1}}


@pytest.mark.parametrize("seal", [True, False])
def test_what_was_begun_then_is_sealed_now(tmp_path, seal):
    """Receipts of version 1 and a seal of today make one whole artifact."""
    shutil.copytree(STORE, tmp_path / "old")
    identity, arrays, attributes, _ = CONTENTS["embeddings"]
    (tmp_path / f"old/.cgd/seals/{identity.key}.json").unlink()
    (tmp_path / f"old/.cgd/receipts/{identity.key}/00000001.json").unlink()
    if not seal:
        shutil.rmtree(tmp_path / f"old/.cgd/receipts/{identity.key}")
    store = FeatureStore.open(tmp_path / "old", write=True)
    store.write_whole(identity, arrays, attributes=attributes)
    np.testing.assert_array_equal(store.get(identity.key).read("vectors"), arrays["vectors"])
    assert all(problems == [] for _, problems in store.verify())
