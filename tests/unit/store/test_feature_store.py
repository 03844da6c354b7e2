"""Opening, listing, finding and checking a store; and whatever is none is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import zarr

from cgd.errors import InputError, MissingError, StoreError
from cgd.store import layout
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.keys import identify
from cgd.types import Key

FITTED = {"mean": np.zeros(2), "projection": np.zeros((1, 2)), "eigenvalues": np.ones(2)}


@pytest.fixture
def store(tmp_path):
    return FeatureStore.open(tmp_path / "features.zarr", write=True)


def whitening(store, label, **settings):
    return store.write_whole(identify("whitening", [label], 1, {"encoder": label, **settings}), FITTED)


def set_schema(store, value):
    path = store.files.root / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["cgd"]["schema"] = value
    path.write_text(json.dumps(content))


def test_a_store_opened_for_reading_refuses_to_write(store):
    whitening(store, "a")
    before = sorted(store.files.root.rglob("*"))
    with pytest.raises(StoreError, match="reading only"):
        whitening(FeatureStore.open(store.files.root), "b")
    assert sorted(store.files.root.rglob("*")) == before


def test_opening_writes_nothing(tmp_path):
    FeatureStore.open(tmp_path / "new", write=True)
    assert not (tmp_path / "new").exists()


def test_an_absent_store_is_not_opened_for_reading(tmp_path):
    with pytest.raises(MissingError, match=r"no feature store at .*absent; `cgd extract-teachers` makes one"):
        FeatureStore.open(tmp_path / "absent")


def test_a_newer_format_is_refused_with_both_numbers(store):
    whitening(store, "a")
    set_schema(store, layout.SCHEMA + 41)
    for write in (False, True):
        with pytest.raises(StoreError, match=f"format version {layout.SCHEMA + 41}, .* up to {layout.SCHEMA}: upgrade"):
            FeatureStore.open(store.files.root, write=write)


@pytest.mark.parametrize("value", ["one", None])
def test_a_format_version_that_is_no_number_is_refused(store, value):
    whitening(store, "a")
    set_schema(store, value)
    with pytest.raises(StoreError):
        FeatureStore.open(store.files.root)


def test_another_zarr_group_is_refused(tmp_path):
    zarr.create_group(tmp_path / "other.zarr", attributes={"made": "elsewhere"})
    for write in (False, True):
        with pytest.raises(StoreError, match="no feature store of cgd"):
            FeatureStore.open(tmp_path / "other.zarr", write=write)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match="holds other files and is no feature store"):
        FeatureStore.open(tmp_path, write=True)
    with pytest.raises(MissingError, match="no feature store"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize("write", [False, True])
def test_a_store_that_another_process_makes_while_it_is_opened_is_opened(tmp_path, monkeypatch, write):
    url = tmp_path / "features.zarr"
    exists = LocalFiles.exists

    def made_after_the_first_look(files, path):
        found = exists(files, path)
        if not found:
            monkeypatch.undo()
            whitening(FeatureStore.open(url, write=True), "a")
        return found

    monkeypatch.setattr(LocalFiles, "exists", made_after_the_first_look)
    assert [entry.sealed for entry in FeatureStore.open(url, write=write).entries()] == [True]


def test_a_working_directory_is_refused_although_it_remembers_where_images_are(tmp_path):
    (tmp_path / ".cgd").mkdir()
    (tmp_path / ".cgd/roots.yaml").write_text("{}")
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match="holds other files and is no feature store"):
        FeatureStore.open(tmp_path, write=True)


@pytest.mark.parametrize("write", [False, True])
def test_a_file_is_refused(tmp_path, write):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StoreError, MissingError), match="file"):
        FeatureStore.open(tmp_path / "file", write=write)


def test_an_empty_folder_and_a_store_that_was_hardly_begun_are_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun/.cgd/tmp").mkdir(parents=True)
    (tmp_path / "begun/.cgd/tmp/host-1-00c0ffee").write_bytes(b"half a file")
    for name in ("empty", "begun"):
        store = FeatureStore.open(tmp_path / name, write=True)
        assert store.is_sealed(whitening(store, "a"))


def test_a_url_nobody_knows_is_refused():
    with pytest.raises(InputError, match="Protocol not known: foo; name a folder, s3://"):
        FeatureStore.open("foo://bucket/features.zarr")


def test_a_web_server_is_only_read():
    with pytest.raises(StoreError, match="can only be read: write to a folder"):
        FeatureStore.open("https://example.org/features.zarr", write=True)


def test_a_file_url_and_a_path_are_the_same_store(store):
    key = whitening(store, "a")
    assert FeatureStore.open(f"file://{store.files.root}").is_sealed(key)


def test_entries_tell_sealed_from_begun(store, identity, embeddings, fill):
    sealed = whitening(store, "a")
    writer = fill(store.files.root, identity, embeddings(), seal=False)
    listed = [(e.key, e.sealed, e.shards_done) for e in store.entries()]
    assert listed == [(writer.key, False, 3), (sealed, True, 1)]
    assert [e.key for e in store.entries("whitening")] == [sealed]
    assert next(store.entries("embeddings")).attributes["settings"] == identity.settings


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000000001", "notes.txt"])
def test_files_of_others_among_the_artifacts_do_not_stop_a_listing(store, name):
    key = whitening(store, "a")
    (store.files.root / "whitening" / name).write_bytes(b"")
    assert [e.key for e in store.entries()] == [key]


def test_what_is_written_twice_is_written_once(store):
    key = whitening(store, "a")
    before = {p: p.stat().st_mtime_ns for p in store.files.root.rglob("*")}
    assert whitening(store, "a") == key
    assert {p: p.stat().st_mtime_ns for p in store.files.root.rglob("*")} == before


def test_find_compares_every_setting_given(store):
    a = whitening(store, "a", dim=1, view="fixed")
    b = whitening(store, "b", dim=2, view="fixed")
    assert store.find("whitening", view="fixed") == sorted([a, b])
    assert store.find("whitening", view="fixed", dim=2) == [b]
    assert store.find("whitening", view="crop") == store.find("scores") == []


def test_part_of_a_key_means_the_one_artifact_it_fits(store):
    key = whitening(store, "paris.gem")
    whitening(store, "oxford.gem")
    for text in (str(key), "paris", key.mark, key.name):
        assert store.resolve(text, ("scores", "whitening")) == key


def test_an_ambiguous_part_of_a_key_lists_the_candidates(store):
    keys = [whitening(store, "paris.gem"), whitening(store, "paris.vgg")]
    with pytest.raises(MissingError, match="'paris' fits 2 artifacts") as caught:
        store.resolve("paris", ("whitening",))
    assert all(str(key) in str(caught.value) for key in keys)


def test_a_key_is_looked_for_among_the_kinds_wanted_and_the_sealed(store, identity, embeddings, fill):
    whitening(store, "paris.gem")
    fill(store.files.root, identity, embeddings(), seal=False)
    with pytest.raises(MissingError, match="no scores or students artifact fits 'paris'"):
        store.resolve("paris", ("scores", "students"))
    with pytest.raises(MissingError, match="is not whole yet: repeat the command"):
        store.resolve("small", ("embeddings",))


def test_verify_reads_everything_or_one(store, identity, embeddings, fill):
    a, b = whitening(store, "a"), whitening(store, "b")
    writer = fill(store.files.root, identity, embeddings(), seal=False)
    unsealed = (
        f".cgd/seals/{writer.key}.json: is missing, although every shard is there: repeat the command that makes it"
    )
    assert dict(store.verify()) == {a: [], b: [], writer.key: [f"{unsealed}, or repair"]}
    assert list(store.verify(b)) == [(b, [])]
    absent = Key("whitening", "c", "0" * 16)
    assert list(store.verify(absent)) == [(absent, [f"{absent}/zarr.json: is missing"])]


def test_listing_a_store_imports_neither_zarr_nor_numpy_nor_torch(store):
    whitening(store, "a")
    code = (
        "import sys; from cgd.store.feature_store import FeatureStore as F; "
        "print(len(list(F.open(sys.argv[1]).entries())), *{'zarr', 'numpy', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(store.files.root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["1"]
