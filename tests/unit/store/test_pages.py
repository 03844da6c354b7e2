"""Long artifacts, whose seals are in pages: what holds for every artifact holds for them, and what only they have.

Pages are of two shards here. The tests that are imported from other files run here a second time, with pages.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from servers import web_server

from cgd.errors import DamageError, StoreError
from cgd.store import catalog, layout
from cgd.store.copying import copy
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.repair import remove_artifact, repair
from cgd.store.seals import page_path, read_seal, receipt_numbers, seal_path, shard_count, signed
from cgd.store.upgrade import upgrade
from tests.unit.store.second_reader import Artifact as SecondArtifact
from tests.unit.store.test_copying import (  # noqa: F401
    source,
    test_a_copy_that_is_cut_off_goes_on,
    test_what_another_gpu_began_there_is_completed,
)
from tests.unit.store.test_repair import (  # noqa: F401
    test_rows_outlive_the_artifacts_own_metadata,
    test_swapped_files_survive_a_repair_that_is_interrupted_anywhere,
    test_what_is_dropped_is_never_adopted_again_wherever_repair_died,
    test_what_was_to_be_removed_and_is_whole_is_continued_wherever_removal_died,
    two,
)
from tests.unit.store.test_writer import (  # noqa: F401
    test_an_interruption_after_any_publication_is_continued_to_the_same_bytes,
    test_the_first_writer_of_a_shard_wins_and_receipts_speak_of_its_bytes,
)

UNPAGED = layout.UNPAGED_SHARDS


@pytest.fixture(autouse=True)
def _pages(monkeypatch):
    monkeypatch.setattr(layout, "PAGE_SHARDS", 2)
    monkeypatch.setattr(layout, "UNPAGED_SHARDS", 2)


@pytest.fixture
def root(tmp_path, identity, embeddings, fill):
    """Ten rows in five shards, so three pages."""
    fill(tmp_path / "s", identity, embeddings(), shard_rows=2)
    return tmp_path / "s"


@pytest.fixture
def key(identity):
    return identity.key


def opened(root, key):
    return FeatureStore.open(root).get(key)


def problems(root):
    return [problem for _, found in FeatureStore.open(root).verify() for problem in found]


def test_only_long_artifacts_have_pages(tmp_path, monkeypatch, identity, embeddings, fill):
    assert layout.seal_pages(2) == 0
    assert [layout.seal_pages(shards) for shards in (3, 4, 5)] == [2, 2, 3]
    monkeypatch.undo()
    assert (layout.seal_pages(UNPAGED), layout.seal_pages(UNPAGED + 1)) == (0, 5)
    fill(tmp_path, identity, embeddings(), shard_rows=1)
    assert read_seal(LocalFiles(tmp_path), identity.key).schema == layout.SCHEMA
    assert not (tmp_path / layout.PAGES).exists()


def test_pages_hold_the_digests_of_shards_and_the_seal_those_of_pages(root, key, tree):
    found = tree(root)
    below = {p.removeprefix(f"{key}/"): d for p, d in found.items() if p.startswith(f"{key}/")}
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in below.items()}
    pages = [found[page_path(key, number)] for number in range(3)]
    assert found[seal_path(key)] == signed(
        {
            "files": {path: digest for path, digest in digests.items() if path.endswith("zarr.json")},
            "key": str(key),
            "page_shards": 2,
            "pages": [hashlib.sha256(page).hexdigest() for page in pages],
            "schema": 3,
        }
    )
    for number, page in enumerate(pages):
        shards = {str(2 * number), str(2 * number + 1)}
        named = {p: d for p, d in digests.items() if "/c/" in p and p.split("/")[2] in shards}
        assert page == signed({"files": named, "key": str(key), "page": number})
    assert dict(read_seal(LocalFiles(root), key).files) == digests


def test_opening_reads_no_page_and_a_row_one(root, key, monkeypatch, embeddings):
    read, right = [], LocalFiles.read
    monkeypatch.setattr(LocalFiles, "read", lambda self, path: (read.append(path), right(self, path))[1])
    artifact = opened(root, key)
    assert not [path for path in read if layout.PAGES in path or layout.RECEIPTS in path]
    np.testing.assert_array_equal(artifact.gather("vectors", np.array([5])), embeddings()["vectors"][[5]])
    artifact.gather("ids", np.array([4]))
    assert [path for path in read if layout.PAGES in path] == [page_path(key, 1)]


def test_an_id_is_found_shard_by_shard(root, key, embeddings):
    artifact, ids = opened(root, key), embeddings()["ids"]
    assert [artifact.find(each) for each in ids] == list(range(10))
    assert artifact.find(ids[3][:-1]) is None  # a part of one that is there


def test_the_size_by_shapes_is_the_size_of_the_files(root, key):
    artifact = opened(root, key)
    assert artifact.is_long
    assert artifact.size == sum(p.stat().st_size for p in (root / str(key)).rglob("*") if p.is_file())


def test_another_reader_follows_the_document(root, key, embeddings):
    found = SecondArtifact(root, str(key))
    for name, expected in embeddings().items():
        np.testing.assert_array_equal(found.read(name), expected)
    path = root / page_path(key, 2)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match="page 2 is damaged"):
        SecondArtifact(root, str(key)).read("vectors")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path):
    """With the page after it, which proves itself as well."""
    other = path.with_name("00000002.json")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


@pytest.mark.parametrize("harm", [flip, swap, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_page_is_named_never_believed_and_written_again(root, key, tree, embeddings, harm):
    before, expected = tree(root), embeddings()["vectors"]
    harm(root / page_path(key, 1))
    artifact = opened(root, key)
    np.testing.assert_array_equal(artifact.read_shard("vectors", 0), expected[:2])
    with pytest.raises(DamageError, match=r"pages/.*/00000001\.json is (damaged|missing)"):
        artifact.read_shard("vectors", 2)
    named = problems(root)
    assert named[0].startswith(f"{page_path(key, 1)}: is ")
    assert len(named) == (2 if harm is swap else 1)
    (done,) = repair(LocalFiles(root, write=True), None)
    assert (done.dropped, done.left) == ([], [])
    assert page_path(key, 1) in done.restored
    assert tree(root) == before


def test_a_page_more_is_no_part_of_it(root, key, tree):
    before = tree(root)
    shutil.copy(root / page_path(key, 0), root / page_path(key, 3))
    assert problems(root) == [f"{page_path(key, 3)}: is no part of it"]
    repair(LocalFiles(root, write=True), None)
    assert tree(root) == before


@pytest.mark.parametrize("name", ["vectors/c/7/0/0", "../../x"])
def test_a_page_that_names_what_is_not_its_own_is_refused(root, key, name):
    page = signed({"files": {name: "0" * 64}, "key": str(key), "page": 0})
    (root / page_path(key, 0)).write_bytes(page)
    seal = json.loads((root / seal_path(key)).read_bytes())
    del seal["sha256"]
    seal["pages"][0] = hashlib.sha256(page).hexdigest()
    (root / seal_path(key)).write_bytes(signed(seal))
    with pytest.raises(DamageError, match="do not trust that store"):
        opened(root, key).read_shard("vectors", 0)


@pytest.mark.parametrize("values", [{"pages": None}, {"pages": [1]}, {"page_shards": 0}, {"page_shards": "2"}])
def test_a_seal_without_pages_of_its_version_is_damaged(root, key, values):
    seal = json.loads((root / seal_path(key)).read_bytes())
    del seal["sha256"]
    (root / seal_path(key)).write_bytes(signed(seal | values))
    with pytest.raises(DamageError, match="lists no pages"):
        opened(root, key)


def test_a_newer_seal_is_refused_with_both_numbers(root, key):
    seal = json.loads((root / seal_path(key)).read_bytes())
    del seal["sha256"]
    (root / seal_path(key)).write_bytes(signed(seal | {"schema": layout.PAGED_SCHEMA + 1}))
    with pytest.raises(StoreError, match="has format version 4, this cgd reads up to 3"):
        opened(root, key)


def test_a_page_of_a_seal_that_is_gone_gives_way(root, key, embeddings, fill, identity, tree):
    before = tree(root)
    (root / seal_path(key)).unlink()
    (root / page_path(key, 0)).write_bytes(signed({"files": {}, "key": str(key), "page": 0}))
    fill(root, identity, embeddings())
    assert tree(root) == before


def test_what_is_removed_leaves_no_page(root, key):
    remove_artifact(LocalFiles(root, write=True), key)
    assert not list((root / layout.PAGES).rglob("*.json"))
    assert list(FeatureStore.open(root).entries()) == []


def test_a_dropped_shard_takes_the_pages_along(root, key, embeddings, fill, identity, tree):
    before = tree(root)
    (root / str(key) / "vectors/c/3/0/0").unlink()
    (done,) = repair(LocalFiles(root, write=True), None)
    assert done.dropped == [f"{key} (rows 6 to 7)"]
    assert not list((root / layout.PAGES).rglob("*.json"))
    fill(root, identity, embeddings())
    assert tree(root) == before


def test_an_upgrade_turns_a_long_seal_into_pages(root, key, tmp_path, embeddings, fill, identity, tree, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(layout, "UNPAGED_SHARDS", UNPAGED)
        fill(tmp_path / "before", identity, embeddings(), shard_rows=2)
    assert upgrade(LocalFiles(tmp_path / "before", write=True)) == [str(key)]
    assert tree(tmp_path / "before") == tree(root)
    assert upgrade(LocalFiles(root, write=True)) == []


def test_shards_of_what_is_sealed_are_counted_without_a_listing(root, key):
    shutil.rmtree(root / f"{layout.RECEIPTS}/{key}")
    files = LocalFiles(root)
    assert (shard_count(files, key), receipt_numbers(files, key)) == (5, [])
    assert [entry.shards_done for entry in FeatureStore.open(root).entries()] == [5]
    (root / str(key) / "zarr.json").write_bytes(b"{}")
    assert shard_count(files, key) == 0


def test_pages_are_written_and_copied_up_and_down(root, key, tmp_path, tree):
    """To where many files are read at once, and back."""
    url = f"memory://{tmp_path.name}/s"
    for here, there in ((root, url), (url, tmp_path / "down")):
        have = FeatureStore.open(here)
        assert copy(have, FeatureStore.open(there, write=True), have.entries()).copied == [str(key)]
    assert problems(url) == []
    down = tree(tmp_path / "down")
    del down[catalog.PATH]
    assert down == tree(root)


def test_a_web_server_gives_pages(root, key, embeddings):
    catalog.publish(LocalFiles(root, write=True))
    with web_server(root) as web:
        artifact = opened(web.url, key)
        for name, expected in embeddings().items():
            np.testing.assert_array_equal(artifact.read(name), expected)
        assert problems(web.url) == []
        assert artifact.find(embeddings()["ids"][7]) == 7
