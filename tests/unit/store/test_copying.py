"""Copying: only what is missing moves, an interrupted copy is continued, and what arrives is what was sealed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from servers import s3_bucket

from cgd.errors import DamageError, StoreError
from cgd.store import catalog, copying, layout
from cgd.store.copying import copy, copy_artifact, with_inputs
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.keys import identify, sha256
from cgd.store.remote import open_files
from cgd.store.seals import receipt_path, seal_path, signed


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as made:
        yield made


@pytest.fixture
def source(tmp_path, identity, embeddings, fill):
    """Ten rows in three shards, a whitening made from them, a student of two files."""
    fill(tmp_path / "source", identity, embeddings())
    store = FeatureStore.open(tmp_path / "source", write=True)
    arrays = {"mean": np.zeros(3), "projection": np.eye(2, 3), "eigenvalues": np.ones(3)}
    store.write_whole(identify("whitening", ["x"], 1, {"a": 1}, [identity.key]), arrays)
    blobs = {"model.safetensors": b"weights", "log.jsonl": b"{}\n"}
    store.write_whole(identify("students", ["x"], 1, {"a": 1}), {}, blobs=blobs)
    return FeatureStore.open(tmp_path / "source")


def copied(source, url, **wanted):
    return copy(source, FeatureStore.open(url, write=True), source.entries(**wanted))


def files_of(files):
    """The bytes of every file of a store but probes, temporary files and the catalog."""
    paths = [p for top in files.children("") for p in (files.walk(top) or [top])]
    return {p: files.read(p) for p in paths if not p.startswith(".cgd/tmp/") and p != catalog.PATH}


class Watched(LocalFiles):
    """A folder that counts what is put there, and that goes away after `last` publications."""

    def __init__(self, root: Path, last: int | None = None) -> None:
        super().__init__(root, write=True)
        self.last, self.put = last, []

    def publish(self, path, data):
        if self.last is not None and len(self.put) >= self.last:
            raise StoreError("the network is gone.")
        done = super().publish(path, data)
        if done:
            self.put.append(path)
        return done


def test_up_and_down_again_every_byte_is_the_sources(source, bucket, tmp_path):
    url = bucket.url(tmp_path.name)
    up = copied(source, url)
    assert (sorted(up.copied), up.present, up.unfinished, up.failed) == (
        [str(e.key) for e in source.entries()], [], [], {},
    )  # fmt: skip
    down = copied(FeatureStore.open(url), tmp_path / "down")
    there = files_of(FeatureStore.open(tmp_path / "down").files)
    assert there == files_of(source.files) == files_of(open_files(url))
    assert up.bytes == down.bytes == sum(source.get(e.key).size for e in source.entries())
    assert not any(problems for _, problems in FeatureStore.open(url).verify())
    assert any(path.startswith(".cgd/provenance/embeddings") for path in there)


def test_a_second_copy_moves_nothing(source, bucket, tmp_path):
    url = bucket.url(tmp_path.name)
    copied(source, url)
    before = bucket.listing()
    bucket.requests.clear()
    again = copied(source, url)
    assert (again.copied, again.bytes, len(again.present)) == ([], 0, 3)
    assert not [r for r in bucket.requests if r.startswith("PUT") and "zarr.json" not in r and "probe" not in r]
    assert bucket.listing() == before


@pytest.mark.parametrize("last", [0, 3, 5, 8, 11, 16, 20, 24])
def test_a_copy_that_is_cut_off_goes_on(source, identity, tmp_path, last):
    cut = Watched(tmp_path / "there", last)
    with pytest.raises(StoreError, match="the network is gone"):
        copy_artifact(source.files, cut, identity.key)
    assert not cut.exists(seal_path(identity.key))
    rest = Watched(tmp_path / "there")
    copy_artifact(source.files, rest, identity.key)
    assert not set(cut.put) & set(rest.put)
    whole = Watched(tmp_path / "at once")
    copy_artifact(source.files, whole, identity.key)
    assert sorted(cut.put + rest.put) == sorted(whole.put)
    assert files_of(rest) == files_of(whole)


def test_finished_shards_are_not_even_read_again(source, identity, tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "_workers", lambda *_: 1)  # one shard after the other, so that one is whole
    cut = Watched(tmp_path / "there", 16)
    with pytest.raises(StoreError):
        copy_artifact(source.files, cut, identity.key)
    done = [path for path in cut.put if path.startswith(".cgd/receipts/")]
    assert 0 < len(done) < 3
    read = []
    right = LocalFiles.read
    monkeypatch.setattr(
        LocalFiles, "read", lambda self, path: (read.append((self.root.name, path)), right(self, path))[1]
    )
    copy_artifact(source.files, LocalFiles(tmp_path / "there", write=True), identity.key)
    numbers = {int(path.split("/")[4]) for where, path in read if where == "source" and "/vectors/c/" in path}
    assert numbers == {0, 1, 2} - {int(Path(path).stem) for path in done}


def test_damage_at_the_source_stops_only_that_artifact(source, identity, tmp_path):
    path = tmp_path / f"source/{identity.key}/vectors/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    report = copied(source, tmp_path / "there")
    assert {k.split("/")[0] for k in report.copied} == {"students", "whitening"}
    assert list(report.failed) == [str(identity.key)]
    assert f"{identity.key}/vectors/c/1/0/0 (rows 4 to 7) differs from its seal" in report.failed[str(identity.key)]
    there = FeatureStore.open(tmp_path / "there")
    assert not there.is_sealed(identity.key)
    assert not any(problems for _, problems in there.verify())


def test_a_missing_file_at_the_source_stops_only_that_artifact(source, identity, tmp_path):
    entries = list(source.entries())
    (tmp_path / f"source/{seal_path(identity.key)}").unlink()
    report = copy(source, FeatureStore.open(tmp_path / "there", write=True), entries)
    assert len(report.copied) == 2
    assert list(report.failed) == [str(identity.key)]


def test_what_is_unfinished_is_named_and_left_out(source, embeddings, fill, tmp_path):
    begun = identify("embeddings", ["begun"], 1, {"dataset": "small", "view": "crop-1"})
    fill(tmp_path / "source", begun, embeddings(), seal=False)
    report = copied(source, tmp_path / "there")
    assert report.unfinished == [str(begun.key)]
    assert not (tmp_path / "there" / str(begun.key)).exists()


def test_what_arrives_otherwise_is_put_right_or_refused(source, identity, tmp_path, monkeypatch):
    """A disk or a network that flips a bit: once, then always."""
    flips = []
    right = LocalFiles._place

    def flipping(self, path, data, *, over):
        if path.endswith("vectors/c/1/0/0") and (not over or always):
            flips.append(path)
            data = data[:5] + bytes([data[5] ^ 1]) + data[6:]
        return right(self, path, data, over=over)

    monkeypatch.setattr(LocalFiles, "_place", flipping)
    for always in (False, True):
        target = FeatureStore.open(tmp_path / f"there-{always}", write=True)
        report = copy(source, target, source.entries("embeddings"))
        if always:
            assert "vectors/c/1/0/0 arrives damaged in" in report.failed[str(identity.key)]
            assert not target.is_sealed(identity.key)
        else:
            assert report.copied == [str(identity.key)]
            assert dict(target.verify()) == {identity.key: []}
        assert flips


@pytest.mark.parametrize("damage", [b"", b"torn"])
def test_a_damaged_file_without_a_receipt_is_not_sealed(source, identity, tmp_path, damage):
    """What a copy that was cut off long ago left, and a disk damaged since."""
    target = tmp_path / "there"
    (student,) = source.find("students")
    for orphan in (f"{identity.key}/vectors/c/1/0/0", f"{student}/model.safetensors"):
        (target / orphan).parent.mkdir(parents=True)
        (target / orphan).write_bytes(damage)
    for key in (identity.key, student):
        copy_artifact(source.files, LocalFiles(target, write=True), key)
        for path in source.get(key).files.walk(str(key)):
            assert (target / path).read_bytes() == source.files.read(path)
        assert LocalFiles(target).read(seal_path(key)) == source.files.read(seal_path(key))


def test_what_another_gpu_began_there_is_completed(source, identity, embeddings, fill, tmp_path):
    """Other bits of the same rows: its shards stay, the missing ones are copied, together they are sealed."""
    theirs = embeddings()
    theirs["vectors"] = theirs["vectors"] * np.float32(1 + 1e-6)
    store = FeatureStore.open(tmp_path / "there", write=True)
    writer = store.writer(identity, {n: a.shape for n, a in theirs.items()}, shard_rows=4)
    writer.write(1, {n: a[4:8] for n, a in theirs.items()})
    orphan = tmp_path / "theirs"
    fill(orphan, identity, theirs)
    lone = f"{identity.key}/vectors/c/2/0/0"  # a file whose shard has no receipt yet
    (tmp_path / "there" / lone).parent.mkdir(parents=True)
    shutil.copy(orphan / lone, tmp_path / "there" / lone)
    report = copied(source, tmp_path / "there", kind="embeddings")
    assert report.copied == [str(identity.key)]
    there = FeatureStore.open(tmp_path / "there")
    assert dict(there.verify()) == {identity.key: []}
    found, ours = there.get(identity.key).read("vectors"), embeddings()["vectors"]
    np.testing.assert_array_equal(found, np.concatenate([ours[:4], theirs["vectors"][4:]]))


def test_the_same_artifact_cut_otherwise_is_refused(source, identity, embeddings, fill, tmp_path):
    fill(tmp_path / "there", identity, embeddings(), shard_rows=5, seal=False)
    report = copied(source, tmp_path / "there", kind="embeddings")
    assert "is being written in" in report.failed[str(identity.key)]
    assert "zarr.json differs): finish it there" in report.failed[str(identity.key)]


def test_two_stores_merge(source, embeddings, fill, tmp_path, identity):
    other = identify("embeddings", ["other"], 1, {"dataset": "other", "view": "fixed"})
    for each in (identity, other):
        fill(tmp_path / "second", each, embeddings())
    second = FeatureStore.open(tmp_path / "second")
    copied(source, tmp_path / "both")
    report = copied(second, tmp_path / "both")
    assert (report.copied, report.present) == ([str(other.key)], [str(identity.key)])
    both = FeatureStore.open(tmp_path / "both")
    assert {e.key for e in both.entries()} == {e.key for s in (source, second) for e in s.entries()}
    assert not any(problems for _, problems in both.verify())


def test_a_store_of_version_1_is_copied_into_the_present_one(tmp_path):
    old = FeatureStore.open(Path(__file__).parents[2] / "golden/store_v1")
    report = copied(old, tmp_path / "there")
    assert not report.failed
    there = FeatureStore.open(tmp_path / "there")
    assert json.loads(there.files.read("zarr.json"))["attributes"]["cgd"]["schema"] == layout.SCHEMA
    assert not any(problems for _, problems in there.verify())
    for entry in old.entries():
        artifact = old.get(entry.key)
        for name in artifact.arrays:
            np.testing.assert_array_equal(there.get(entry.key).read(name), artifact.read(name))


def test_the_catalog_names_what_is_there_then(source, tmp_path):
    copied(source, tmp_path / "there", kind="students")
    files = LocalFiles(tmp_path / "there")
    assert len(catalog.read(files)) == 1
    copied(source, tmp_path / "there")
    assert set(catalog.read(files)) == {str(e.key) for e in source.entries()}


def test_an_artifact_with_its_inputs(source, identity):
    (whitening,) = source.find("whitening")
    assert with_inputs(source, [whitening, identity.key]) == [identity.key, whitening]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../../escaped", "..\\escaped"])
def test_a_hostile_seal_writes_nothing_elsewhere(source, tmp_path, name):
    (student,) = source.find("students")
    path = tmp_path / "source" / seal_path(student)
    seal = json.loads(path.read_text())
    seal.pop("sha256")
    evil = tmp_path / "source" / str(student) / name
    (tmp_path / "source" / str(student) / "a").mkdir()
    if "\\" not in name and not name.startswith("/tmp"):
        evil.write_bytes(b"evil")
    seal["files"][name] = sha256(b"evil")
    path.write_bytes(signed(seal))
    with pytest.raises(DamageError):
        copy_artifact(
            FeatureStore.open(tmp_path / "source").files, LocalFiles(tmp_path / "in/there", write=True), student
        )
    assert not list((tmp_path / "in").rglob("*escaped"))


def test_a_damaged_receipt_at_the_target_is_told(source, identity, embeddings, fill, tmp_path):
    fill(tmp_path / "there", identity, embeddings(), seal=False)
    (tmp_path / "there" / receipt_path(identity.key, 1)).write_text("{")
    report = copied(source, tmp_path / "there", kind="embeddings")
    assert f"{receipt_path(identity.key, 1)} is damaged" in report.failed[str(identity.key)]
