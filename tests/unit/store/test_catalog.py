"""The catalog: what is sealed, in one file that proves itself and leads nowhere else."""

from __future__ import annotations

import pytest

from cgd.errors import DamageError, StoreError
from cgd.store import catalog, layout
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.seals import signed

KEY = f"embeddings/x-{'0' * 16}"


@pytest.fixture
def store(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings())
    return FeatureStore.open(tmp_path, write=True)


def test_it_names_what_is_sealed_and_nothing_else(store, identity, tmp_path):
    assert catalog.publish(store.files) == 1
    found = catalog.read(store.files)
    assert set(found) == {str(identity.key)}
    assert found[str(identity.key)]["receipts"] == 3
    assert found[str(identity.key)]["provenance"] == store.files.children(f"{layout.PROVENANCE}/{identity.key}")
    (tmp_path / f"{layout.SEALS}/{identity.key}.json").unlink()
    assert catalog.publish(store.files) == 0
    assert catalog.read(store.files) == {}


def test_it_lists_as_the_folder_does(store, identity):
    catalog.publish(store.files)
    named = catalog.read(store.files)
    places = [layout.SEALS, layout.RECEIPTS, layout.PROVENANCE]
    folders = [*layout.LAYOUT, *(f"{p}/{k}" for p in places[:1] for k in layout.LAYOUT)]
    folders += [f"{p}/{identity.key}" for p in places[1:]]
    for folder in folders:
        assert catalog.lists(folder)
        assert catalog.children(named, folder) == [n for n in store.files.children(folder) if n != "zarr.json"]
    assert catalog.children(named, f"{layout.RECEIPTS}/{KEY}") == []
    assert not any(map(catalog.lists, ["", ".cgd", str(identity.key), layout.SEALS]))


def test_what_has_not_changed_is_not_written_again(store, tmp_path):
    catalog.publish(store.files)
    before = (tmp_path / catalog.PATH).stat().st_ino
    catalog.publish(store.files)
    assert (tmp_path / catalog.PATH).stat().st_ino == before


def test_what_joins_while_it_is_written_is_in_it(store, identity, tmp_path, monkeypatch):
    """Otherwise the slower of two copies would take the other's artifact out of the catalog for good."""
    late = (tmp_path / f"{layout.SEALS}/{identity.key}.json").read_bytes()
    (tmp_path / f"{layout.SEALS}/{identity.key}.json").unlink()
    right = LocalFiles.replace

    def replace(self, path, data):
        right(self, path, data)
        (tmp_path / f"{layout.SEALS}/{identity.key}.json").write_bytes(late)

    monkeypatch.setattr(LocalFiles, "replace", replace)
    assert catalog.publish(store.files) == 1
    assert set(catalog.read(store.files)) == {str(identity.key)}


GOOD = {"receipts": 1, "provenance": ["a.json"]}


@pytest.mark.parametrize(
    "about",
    [
        None, [], {}, {**GOOD, "receipts": -1}, {**GOOD, "receipts": "1"}, {**GOOD, "receipts": 10**12},
        {**GOOD, "provenance": None}, {**GOOD, "provenance": [1]}, {**GOOD, "provenance": ["../../../.bashrc"]},
        {**GOOD, "provenance": ["../a.json"]}, {**GOOD, "provenance": ["..\\a.json"]},
    ],
)  # fmt: skip
def test_what_no_listing_would_say_is_refused(store, tmp_path, about):
    write(tmp_path, {"schema": layout.SCHEMA, "artifacts": {KEY: about}})
    with pytest.raises(DamageError, match=r"catalog\.json is damaged: `cgd store copy` into that store"):
        catalog.read(store.files)


@pytest.mark.parametrize("artifacts", [None, [], "x"])
def test_a_catalog_of_nothing_is_damaged(store, tmp_path, artifacts):
    write(tmp_path, {"schema": layout.SCHEMA, "artifacts": artifacts})
    with pytest.raises(DamageError):
        catalog.read(store.files)


def test_names_that_are_no_keys_are_left_out(store, tmp_path):
    write(tmp_path, {"schema": layout.SCHEMA, "artifacts": {"other/x": GOOD, "embeddings/../x": GOOD, KEY: GOOD}})
    assert set(catalog.read(store.files)) == {KEY}


def test_a_newer_one_is_refused_with_both_numbers(store, tmp_path):
    write(tmp_path, {"schema": layout.SCHEMA + 1, "artifacts": {}})
    with pytest.raises(StoreError, match=f"format version {layout.SCHEMA + 1}, this cgd reads up to {layout.SCHEMA}"):
        catalog.read(store.files)


@pytest.mark.parametrize("place", [0, 30, -3])
def test_a_flipped_bit_is_seen(store, tmp_path, place):
    catalog.publish(store.files)
    data = bytearray((tmp_path / catalog.PATH).read_bytes())
    data[place] ^= 1
    (tmp_path / catalog.PATH).write_bytes(data)
    with pytest.raises(DamageError):
        catalog.read(store.files)


def write(root, value):
    (root / catalog.PATH).write_bytes(signed(value))
