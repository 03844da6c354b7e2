"""Writing: shards once each, alike from everyone, continued wherever an interruption fell."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from cgd.errors import StoreError
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.keys import identify


class Interrupted(Exception):
    """Stands for a process that ends here."""


def shapes(arrays):
    return {name: a.shape for name, a in arrays.items()}


def rows_of(arrays, rows):
    return {name: a[rows.start : rows.stop] for name, a in arrays.items()}


def written(root):
    """When each file was written, and which one it is."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def stop_after(monkeypatch, count):
    """Let the process end right after its publication number `count`."""
    publish, calls = LocalFiles.publish, []

    def publish_or_stop(self, path, data):
        done = publish(self, path, data)
        calls.append(path)
        if len(calls) == count:
            raise Interrupted(path)
        return done

    monkeypatch.setattr(LocalFiles, "publish", publish_or_stop)
    return calls


def cuts_of(artifact):
    """Rows per shard of every array, as any Zarr reader sees them."""
    metadata = [json.loads(p.read_bytes()) for p in artifact.glob("*/zarr.json")]
    return {m["chunk_grid"]["configuration"]["chunk_shape"][0] for m in metadata}


def assert_equal(store, key, arrays):
    stored = store.get(key)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(stored.read(name), expected, err_msg=name)
        np.testing.assert_array_equal(stored.gather(name, np.arange(len(expected))), expected, err_msg=name)


def test_two_stores_written_alike_are_the_same_bytes(tmp_path, identity, embeddings, fill, tree):
    fill(tmp_path / "a", identity, embeddings())
    fill(tmp_path / "b", identity, embeddings())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_shards_written_backwards_give_the_same_bytes(tmp_path, identity, embeddings, fill, tree):
    arrays = embeddings()
    fill(tmp_path / "forwards", identity, arrays)
    writer = FeatureStore.open(tmp_path / "backwards", write=True).writer(identity, shapes(arrays), shard_rows=4)
    for shard in reversed(writer.missing()):
        writer.write(shard, rows_of(arrays, writer.shard_range(shard)))
    writer.seal()
    assert tree(tmp_path / "backwards") == tree(tmp_path / "forwards")


def proof(value):
    """A receipt or seal without the SHA-256 of its own canonical JSON, which must fit."""
    found = value.pop("sha256")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert found == hashlib.sha256(text.encode()).hexdigest()
    return value


def test_receipts_and_seals_hold_the_digest_of_every_file(tmp_path, identity, embeddings, fill, tree):
    fill(tmp_path, identity, embeddings())
    found = tree(tmp_path)
    below = {p.removeprefix(f"{identity.key}/"): d for p, d in found.items() if p.startswith(f"{identity.key}/")}
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in below.items()}
    seal = json.loads(found[f".cgd/seals/{identity.key}.json"])
    assert proof(seal) == {"schema": 2, "key": str(identity.key), "files": digests}
    metadata = {path: digest for path, digest in digests.items() if path.endswith("zarr.json")}
    for shard, rows in enumerate([[0, 4], [4, 8], [8, 10]]):
        receipt = json.loads(found[f".cgd/receipts/{identity.key}/{shard:08d}.json"])
        mine = {p: d for p, d in digests.items() if p.split("/")[1:3] == ["c", str(shard)]}
        assert proof(receipt) == {
            "key": str(identity.key),
            "shard": shard,
            "rows": rows,
            "files": mine,
            "metadata": metadata,
        }
        assert len(mine) == 5


def test_shards_of_nothing_but_fill_have_files(tmp_path, identity, fill):
    rows = 6
    arrays = {
        "ids": np.full(rows, "", dtype=object),
        "vectors": np.full((rows, 2, 3), np.nan, np.float32),
        "valid": np.zeros(rows, bool),
        "digests": np.zeros((rows, 32), np.uint8),
        "reasons": np.full(rows, "", dtype=object),
        "views": np.full((rows, 5), np.nan, np.float32),
    }
    fill(tmp_path, identity, arrays, shard_rows=3)
    for shard in range(2):
        for name, array in arrays.items():
            path = tmp_path / str(identity.key) / name / "c" / "/".join([str(shard), *["0"] * (array.ndim - 1)])
            assert path.stat().st_size > 0
    assert_equal(FeatureStore.open(tmp_path), identity.key, arrays)


def test_a_shard_with_a_receipt_is_not_missing_and_not_touched_again(tmp_path, identity, embeddings, fill):
    arrays = embeddings()
    writer = FeatureStore.open(tmp_path, write=True).writer(identity, shapes(arrays), shard_rows=4)
    writer.write(1, rows_of(arrays, writer.shard_range(1)))
    before = written(tmp_path)
    again = FeatureStore.open(tmp_path, write=True).writer(identity, shapes(arrays), shard_rows=4)
    assert again.missing() == [0, 2]
    fill(tmp_path, identity, arrays)
    assert before.items() <= written(tmp_path).items()


def test_the_first_writer_of_a_shard_wins_and_receipts_speak_of_its_bytes(tmp_path, identity, embeddings, monkeypatch):
    first, second = embeddings(seed=1), embeddings(seed=2)
    store = FeatureStore.open(tmp_path, write=True)
    one = store.writer(identity, shapes(first), shard_rows=4)
    other = store.writer(identity, shapes(second), shard_rows=4)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)  # three of the five arrays of shard 0
        with pytest.raises(Interrupted):
            one.write(0, rows_of(first, range(4)))
    for shard in range(3):
        other.write(shard, rows_of(second, other.shard_range(shard)))
    for shard in range(3):
        one.write(shard, rows_of(first, one.shard_range(shard)))
    one.seal()
    other.seal()
    assert list(store.verify()) == [(identity.key, [])]
    stored = store.get(identity.key)
    np.testing.assert_array_equal(stored.read("vectors")[4:], second["vectors"][4:])
    arrays = ("ids", "vectors", "valid", "digests", "reasons")
    winners = ["first" if np.array_equal(stored.read(a)[:4], first[a][:4]) else "second" for a in arrays]
    assert np.array_equal(stored.read("digests")[:4], first["digests"][:4])
    assert "second" in winners


def test_an_interruption_after_any_publication_is_continued_to_the_same_bytes(
    tmp_path, identity, embeddings, fill, tree, monkeypatch
):
    arrays = embeddings(rows=5)
    with monkeypatch.context() as patch:
        calls = stop_after(patch, 0)
        fill(tmp_path / "whole", identity, arrays)
    undisturbed = tree(tmp_path / "whole")
    assert len(calls) > 20
    for count in range(1, len(calls)):
        root = tmp_path / str(count)
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            with pytest.raises(Interrupted):
                fill(root, identity, arrays)
        if not calls[count - 1].startswith(".cgd/provenance"):
            assert not FeatureStore(LocalFiles(root)).is_sealed(identity.key)
        fill(root, identity, arrays)
        assert tree(root) == undisturbed, f"after {calls[count - 1]}"


@pytest.mark.parametrize(("first", "second"), [(2, 5), (5, 2)])
def test_an_artifact_begun_with_another_cut_keeps_it_in_every_array(
    tmp_path, identity, embeddings, fill, monkeypatch, first, second
):
    arrays = embeddings()
    for count in range(5, 9):  # between the metadata of the first array and that of the last
        root = tmp_path / str(count)
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            with pytest.raises(Interrupted):
                fill(root, identity, arrays, shard_rows=first)
        writer = fill(root, identity, arrays, shard_rows=second)
        assert writer.shard_rows == first
        assert cuts_of(root / str(identity.key)) == {first}
        assert_equal(FeatureStore.open(root), identity.key, arrays)


def test_a_wish_for_another_cut_of_a_begun_artifact_is_ignored(tmp_path, identity, embeddings, fill):
    arrays = embeddings()
    store = FeatureStore.open(tmp_path, write=True)
    store.writer(identity, shapes(arrays), shard_rows=3).write(0, rows_of(arrays, range(3)))
    writer = fill(tmp_path, identity, arrays, shard_rows=4)
    assert writer.shard_rows == 3
    assert_equal(store, identity.key, arrays)


def test_other_settings_under_one_key_are_refused_with_both_values(tmp_path, identity, embeddings, fill, tree):
    fill(tmp_path, identity, embeddings())
    before = tree(tmp_path)
    other = dataclasses.replace(identity, settings={"dataset": "small", "view": "crop-7"})
    with pytest.raises(StoreError, match="settings") as caught:
        fill(tmp_path, other, embeddings())
    assert "'view': 'fixed'" in str(caught.value)
    assert "'view': 'crop-7'" in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", [{"digest": "0" * 64}, {"version": 2}, {"inputs": ("images/a-" + "0" * 16,)}])
def test_whatever_else_determined_an_artifact_is_compared(tmp_path, identity, embeddings, fill, change):
    fill(tmp_path, identity, embeddings())
    with pytest.raises(StoreError, match=next(iter(change))):
        fill(tmp_path, dataclasses.replace(identity, **change), embeddings())


def test_other_attributes_are_refused_with_both_values(tmp_path, identity, embeddings):
    store = FeatureStore.open(tmp_path, write=True)
    store.writer(identity, shapes(embeddings()), attributes={"dim": 3})
    with pytest.raises(StoreError, match="was made with dim = 3, this run has 4"):
        store.writer(identity, shapes(embeddings()), attributes={"dim": 4})


def test_other_shapes_are_refused_with_both(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings(dim=3))
    with pytest.raises(StoreError, match=r"vectors of shape \(10, 1, 3\), this run makes \(10, 1, 4\)"):
        fill(tmp_path, identity, embeddings(dim=4))


def test_sealing_early_is_refused_with_both_counts(tmp_path, identity, embeddings):
    arrays = embeddings()
    store = FeatureStore.open(tmp_path, write=True)
    writer = store.writer(identity, shapes(arrays), shard_rows=4)
    writer.write(2, rows_of(arrays, range(8, 10)))
    with pytest.raises(StoreError, match="lacks 2 of 3 shards"):
        writer.seal()
    assert not store.is_sealed(identity.key)


def test_a_shard_must_bring_every_array_and_all_its_rows(tmp_path, identity, embeddings):
    arrays = embeddings()
    writer = FeatureStore.open(tmp_path, write=True).writer(identity, shapes(arrays), shard_rows=4)
    with pytest.raises(ValueError, match="holds"):
        writer.write(0, {n: a[:4] for n, a in arrays.items() if n != "valid"})
    with pytest.raises(ValueError, match="has 4 rows, got 3"):
        writer.write(0, rows_of(arrays, range(3)))
    with pytest.raises(ValueError, match="has 2 rows, got 4"):
        writer.write(2, rows_of(arrays, range(4)))
    assert writer.missing() == [0, 1, 2]


def test_given_arrays_are_not_changed(tmp_path, identity, embeddings, fill):
    arrays, same = embeddings(), embeddings()
    for array in arrays.values():
        array.flags.writeable = False
    fill(tmp_path, identity, arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, same[name])


def test_provenance_says_who_wrote_how_many_shards_and_with_what(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings())
    (record,) = FeatureStore.open(tmp_path).provenance(identity.key)
    assert record["shards_written"] == 3
    assert record["started"] <= record["finished"]
    assert {"user", "host", "python", "platform"} <= record.keys()
    assert record["libraries"]["numpy"] == np.__version__


def test_who_wrote_nothing_leaves_no_provenance(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings())
    fill(tmp_path, identity, embeddings())
    assert len(FeatureStore.open(tmp_path).provenance(identity.key)) == 1


def test_files_that_are_no_arrays_are_sealed_like_shards(tmp_path):
    store = FeatureStore.open(tmp_path, write=True)
    identity = identify("students", ["set", "net"], 1, {"epochs": 2})
    blobs = {"model.safetensors": b"\0weights", "log.jsonl": b'{"loss":1}\n'}
    key = store.write_whole(identity, {}, attributes={"label": "net"}, blobs=blobs)
    stored = store.get(key)
    assert {name: stored.blob(name) for name in stored.blobs} == blobs
    assert stored.size == sum(map(len, blobs.values())) + (tmp_path / str(key) / "zarr.json").stat().st_size


def test_an_artifact_of_single_arrays_is_one_shard(tmp_path):
    store = FeatureStore.open(tmp_path, write=True)
    arrays = {"mean": np.arange(4.0), "projection": np.arange(8.0).reshape(2, 4), "eigenvalues": -np.arange(4.0)}
    key = store.write_whole(identify("whitening", ["a"], 1, {}), arrays)
    stored = store.get(key)
    assert stored.shard_count == 1
    for name, expected in arrays.items():
        np.testing.assert_array_equal(stored.read(name), expected)
        assert stored.read(name).dtype == np.float64
