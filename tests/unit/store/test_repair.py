"""Repair never takes a silent network, or a file one may not read, for damage; and it survives its own interruption."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from cgd.errors import StoreError
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.repair import repair


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
