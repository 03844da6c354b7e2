"""Repair never takes a silent network, or a file one may not read, for damage; and it survives its own interruption."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from cgd.errors import StoreError
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.keys import identify
from cgd.store.repair import remove_artifact, repair
from cgd.store.upgrade import upgrade


class Silent(LocalFiles):
    """A place whose network fails at every file whose path holds `word`."""

    word = "vectors/c/1"

    def read(self, path: str) -> bytes:
        if self.word in path:
            raise StoreError("cannot read it: the network is silent.")
        return super().read(path)


@pytest.fixture
def two(tmp_path, identity, embeddings, fill):
    """A store and a copy of it."""
    fill(tmp_path / "one", identity, embeddings())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    return tmp_path / "one", tmp_path / "two"


def shard(root, identity, number):
    return root / str(identity.key) / f"vectors/c/{number}/0/0"


def test_what_cannot_be_read_now_is_not_dropped(two, tree):
    one, _ = two
    before = tree(one)
    with pytest.raises(StoreError, match="silent"):
        repair(Silent(one, write=True), None)
    assert tree(one) == before


def test_a_silent_source_does_not_make_a_shard_lost(two, identity, tree):
    one, other = two
    shard(one, identity, 1).unlink()
    before = tree(one)
    with pytest.raises(StoreError, match="silent"):
        repair(LocalFiles(one, write=True), None, [Silent(other)])
    assert tree(one) == before
    repair(LocalFiles(one, write=True), None, [LocalFiles(other)])
    assert tree(one) == tree(other)


def test_swapped_files_survive_a_repair_that_is_interrupted_anywhere(two, identity, tree, monkeypatch):
    one, other = two
    for moment in range(6):
        first, second = shard(one, identity, 0), shard(one, identity, 1)
        mine, theirs = first.read_bytes(), second.read_bytes()
        first.write_bytes(theirs)
        second.write_bytes(mine)
        left = iter(range(moment))

        def place(files, path, data, *, over, left=left, real=LocalFiles._place):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(files, path, data, over=over)

        with monkeypatch.context() as patched:
            patched.setattr(LocalFiles, "_place", place)
            with contextlib.suppress(KeyboardInterrupt):
                repair(LocalFiles(one, write=True), None)
        repair(LocalFiles(one, write=True), None)
        assert tree(one) == tree(other)


def test_a_file_in_anothers_place_costs_nothing(two, identity, tree):
    one, other = two
    shard(one, identity, 0).write_bytes(shard(one, identity, 2).read_bytes())
    (done,) = repair(LocalFiles(one, write=True), None, [LocalFiles(other)])
    assert done.restored == [f"{identity.key}/vectors/c/0/0/0"]
    assert all(problems == [] for _, problems in FeatureStore.open(one).verify())
    assert tree(one) == tree(other)


class Failing(LocalFiles):
    """A folder in which the process dies at the n-th removal."""

    left = 0

    def remove(self, path: str) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        super().remove(path)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("moment", range(7))
def test_what_is_dropped_is_never_adopted_again_wherever_repair_died(two, identity, embeddings, moment, sealed):
    """A shard that stands in another's place has checksums that fit: without a receipt it would pass for work."""
    one, _ = two
    if not sealed:
        (one / f".cgd/seals/{identity.key}.json").unlink()
    shard(one, identity, 0).write_bytes(shard(one, identity, 1).read_bytes())
    dying = Failing(one, write=True)
    dying.left = moment
    with contextlib.suppress(KeyboardInterrupt):
        repair(dying, None)
    repair(LocalFiles(one, write=True), None)
    store = FeatureStore.open(one, write=True)
    store.write_whole(identity, embeddings())
    assert all(problems == [] for _, problems in store.verify())
    np.testing.assert_array_equal(store.get(identity.key).read("vectors"), embeddings()["vectors"])


def test_an_arrays_metadata_is_taken_from_the_artifacts_own(two, identity, tree):
    one, other = two
    (one / str(identity.key) / "vectors/zarr.json").write_text("{}")
    (done,) = repair(LocalFiles(one, write=True), None)
    assert (done.restored, done.dropped) == ([f"{identity.key}/vectors/zarr.json"], [])
    assert tree(one) == tree(other)


@pytest.mark.parametrize("sealed", [True, False])
def test_rows_outlive_the_artifacts_own_metadata(two, identity, embeddings, tree, sealed):
    one, other = two
    if not sealed:
        for root in two:
            (root / f".cgd/seals/{identity.key}.json").unlink()
    (one / str(identity.key) / "zarr.json").write_text("{}")
    (done,) = repair(LocalFiles(one, write=True), None)
    assert done.dropped == [f"{identity.key}/zarr.json"]
    store = FeatureStore.open(one, write=True)
    assert not store.is_sealed(identity.key)
    assert list(store.verify()) == [(identity.key, [])]
    arrays = embeddings()
    writer = store.writer(identity, {name: a.shape for name, a in arrays.items()}, shard_rows=1)
    assert (writer.missing(), writer.shard_count) == ([], 3)
    writer.seal()
    FeatureStore.open(other, write=True).writer(identity, {n: a.shape for n, a in arrays.items()}).seal()
    assert tree(one) == tree(other)


def test_what_is_whole_of_a_student_is_kept_aside(tmp_path):
    identity = identify("students", ["light"], 1, {})
    store = FeatureStore.open(tmp_path, write=True)
    store.write_whole(identity, {}, blobs={"model.safetensors": b"weights", "recipe.json": b"{}", "log.jsonl": b"{}"})
    (tmp_path / str(identity.key) / "log.jsonl").write_bytes(b"{} ")
    (done,) = repair(store.files, None)
    assert done.dropped == [str(identity.key)]
    assert (tmp_path / done.kept / "model.safetensors").read_bytes() == b"weights"
    assert not store.is_sealed(identity.key)
    assert all(problems == [] for _, problems in store.verify())


def test_a_seal_of_version_1_is_outvoted_by_receipts_and_files(tmp_path):
    golden = Path(__file__).parents[2] / "golden/store_v1"
    shutil.copytree(golden, tmp_path / "s")
    seal = next((tmp_path / "s/.cgd/seals/whitened").iterdir())
    text = seal.read_text()
    place = text.index('"vectors/c/1/0": "') + 20
    seal.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    (done,) = repair(LocalFiles(tmp_path / "s", write=True), None)
    assert not done.dropped
    assert str(seal.relative_to(tmp_path / "s")) in done.restored
    assert all(problems == [] for _, problems in FeatureStore.open(tmp_path / "s").verify())


def test_a_store_with_other_bits_gives_what_is_lost_and_nothing_more(two, identity, embeddings, fill, tmp_path):
    one, _ = two
    arrays = embeddings()
    arrays["vectors"] = np.nextafter(arrays["vectors"], np.float32(9))
    fill(tmp_path / "gpu", identity, arrays)
    kept = shard(one, identity, 0).read_bytes()
    shard(one, identity, 1).unlink()
    with pytest.raises(StoreError, match="silent"):
        repair(LocalFiles(one, write=True), None, [Silent(tmp_path / "gpu")])
    assert shard(one, identity, 0).read_bytes() == kept
    repair(LocalFiles(one, write=True), None, [LocalFiles(tmp_path / "gpu")])
    assert shard(one, identity, 0).read_bytes() == kept
    assert shard(one, identity, 1).read_bytes() == shard(tmp_path / "gpu", identity, 1).read_bytes()
    assert list(FeatureStore.open(one).verify()) == [(identity.key, [])]


def test_a_store_that_is_cut_otherwise_ends_no_repair(two, identity, embeddings, fill, tmp_path):
    one, _ = two
    arrays = embeddings()
    arrays["vectors"] = np.nextafter(arrays["vectors"], np.float32(9))
    fill(tmp_path / "gpu", identity, arrays, shard_rows=5)
    shard(one, identity, 1).unlink()
    (done,) = repair(LocalFiles(one, write=True), None, [LocalFiles(tmp_path / "gpu")])
    assert done.dropped == [f"{identity.key} (rows 4 to 7)"]
    assert not done.left


@pytest.mark.parametrize("moment", range(8))
def test_what_was_to_be_removed_and_is_whole_is_continued_wherever_removal_died(two, identity, embeddings, moment):
    one, _ = two
    dying = Failing(one, write=True)
    dying.left = moment
    with contextlib.suppress(KeyboardInterrupt):
        remove_artifact(dying, identity.key)
    store = FeatureStore.open(one, write=True)
    store.write_whole(identity, embeddings())
    assert all(problems == [] for _, problems in store.verify())


def test_an_upgrade_leaves_rows_without_metadata_to_their_command(two, identity, embeddings):
    one, _ = two
    (one / str(identity.key) / "zarr.json").unlink()
    repair(LocalFiles(one, write=True), None)
    upgrade(LocalFiles(one, write=True))
    store = FeatureStore.open(one, write=True)
    store.write_whole(identity, embeddings())
    assert list(store.verify()) == [(identity.key, [])]
