"""Reading: what was written comes back, through the package and through plain Zarr."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import zarr

from cgd.errors import MissingError
from cgd.store import layout
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import Key


@pytest.fixture
def stored(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings())
    return FeatureStore.open(tmp_path).get(identity.key)


@pytest.fixture
def every_kind(tmp_path, embeddings):
    """A store with an artifact of each kind, and what was written there by key and array."""
    store = FeatureStore.open(tmp_path / "features.zarr", write=True)
    seen = embeddings(rows=5)
    texts = np.array(["", "ß", "\0", "日本", "a" * 100], dtype=object)
    written = {
        "images": {
            "ids": seen["ids"], "paths": texts, "labels": texts, "groups": texts,
            "boxes": np.array([[0.5, 1, 2, 3], [np.nan] * 4] + [[0.0] * 4] * 3),
        },
        "embeddings": {**seen, "views": np.full((5, 5), np.nan, np.float32)},
        "whitening": {"mean": np.arange(3.0), "projection": np.eye(2, 3), "eigenvalues": np.array([3.0, 2.0, 0.0])},
        "whitened": {
            "ids": seen["ids"], "valid": seen["valid"], "digests": seen["digests"],
            "vectors": np.arange(10, dtype=np.float16).reshape(5, 2),
        },
        "students": {},
        "indexes": {},
        "descriptors": {
            "ids": seen["ids"], "valid": seen["valid"], "vectors": np.arange(15, dtype=np.float16).reshape(5, 3),
        },
        "codes": {
            "ids": seen["ids"], "valid": seen["valid"], "codes": np.arange(10, dtype=np.uint8).reshape(5, 2),
        },
        "codebooks": {"centroids": np.ones((2, 4, 3), np.float32), "rotations": np.zeros((2, 6, 6), np.float32)},
        "canaries": {"vectors": np.arange(12, dtype=np.float32).reshape(2, 2, 3)},
        "scores": {"queries": texts, "average_precision": np.array([[0.1, np.nan, 0.3, 1.0, 0.0]])},
    }  # fmt: skip
    assert written.keys() == layout.LAYOUT.keys()
    keys = {}
    for kind, arrays in written.items():
        blobs = {"model.safetensors": b"weights", "log.jsonl": b"{}\n"} if kind == "students" else None
        keys[kind] = store.write_whole(identify(kind, ["x"], 1, {"kind": kind}), arrays, blobs=blobs)
    return store, {keys[kind]: arrays for kind, arrays in written.items()}


def test_every_array_comes_back_with_its_values_and_type(every_kind):
    store, written = every_kind
    for key, arrays in written.items():
        artifact = store.get(key)
        assert artifact.arrays == sorted(arrays)
        for name, expected in arrays.items():
            np.testing.assert_array_equal(artifact.read(name), expected)
            assert artifact.read(name).dtype == expected.dtype
            assert artifact.shape(name) == expected.shape


@pytest.mark.filterwarnings("error")
def test_plain_zarr_opens_every_group_without_a_warning_and_reads_the_same(every_kind):
    store, written = every_kind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(store.files.root, mode="r")
        members = dict(root.members(max_depth=None))
        for key, arrays in written.items():
            assert members.keys() >= {key.kind, str(key), *(f"{key}/{name}" for name in arrays)}
            declared = {a.name: a for a in layout.LAYOUT[key.kind]}
            for name, expected in arrays.items():
                array = members[f"{key}/{name}"]
                np.testing.assert_array_equal(np.asarray(array[:]).astype(expected.dtype), expected)
                assert array.metadata.dimension_names == declared[name].dims
                assert array.read_only
    groups = {name for name, member in members.items() if isinstance(member, zarr.Group)}
    assert groups == set(layout.LAYOUT) | {str(k) for k in written if layout.LAYOUT[k.kind]}


def test_shards_are_checksummed_and_not_compressed(stored, tmp_path):
    array = zarr.open_array(tmp_path / str(stored.key) / "vectors", mode="r")
    (sharding,) = array.metadata.codecs
    assert [type(c).__name__ for c in sharding.codecs] == ["BytesCodec", "Crc32cCodec"]
    assert (array.shards, array.chunks) == ((4, 1, 3), (4, 1, 3))
    # Per shard: 4 rows of 12 bytes, their checksum, an index of one chunk (16 bytes) and its checksum.
    sizes = {p.stat().st_size for p in (tmp_path / str(stored.key) / "vectors/c").rglob("0") if p.is_file()}
    assert sizes == {4 * 12 + 4 + 16 + 4}


def test_a_long_shard_holds_chunks_of_512_rows(tmp_path, identity, embeddings, fill):
    arrays = embeddings(rows=1300, dim=1)
    fill(tmp_path, identity, arrays, shard_rows=1000)
    array = zarr.open_array(tmp_path / str(identity.key) / "vectors", mode="r")
    assert (array.shards, array.chunks) == ((1024, 1, 1), (512, 1, 1))
    stored = FeatureStore.open(tmp_path).get(identity.key)
    assert stored.shard_count == 2
    np.testing.assert_array_equal(stored.read("vectors"), arrays["vectors"])
    rows = np.array([1299, 0, 511, 512, 1023, 1024, 650])
    np.testing.assert_array_equal(stored.gather("vectors", rows), arrays["vectors"][rows])


def test_gather_takes_any_rows_in_any_order(stored, embeddings):
    rows = np.array([9, 0, 9, 3, 4, 8, 5])
    for name, expected in embeddings().items():
        np.testing.assert_array_equal(stored.gather(name, rows), expected[rows])


def test_gather_of_no_rows_has_the_arrays_shape_and_type(stored):
    none = stored.gather("vectors", np.array([], np.int64))
    assert none.shape == (0, 1, 3)
    assert none.dtype == np.float32


@pytest.mark.parametrize("row", [10, 11, 12, 1000])
def test_gather_of_a_row_that_is_not_there_is_an_error_not_a_value(stored, row):
    with pytest.raises((IndexError, LookupError, RuntimeError)):
        stored.gather("vectors", np.array([0, row]))


def test_blocks_walk_all_rows_once_in_order(stored, embeddings):
    arrays, seen = embeddings(), []
    for rows, (ids, vectors) in stored.blocks("ids", "vectors"):
        seen += rows
        np.testing.assert_array_equal(ids, arrays["ids"][rows.start : rows.stop])
        np.testing.assert_array_equal(vectors, arrays["vectors"][rows.start : rows.stop])
    assert seen == list(range(10))


def test_arrays_are_read_only(stored):
    with pytest.raises(ValueError, match="read-only"):
        stored.read("vectors")[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        stored.read_shard("valid", 0)[0] = False


def test_text_comes_as_python_strings(stored):
    ids = stored.read("ids")
    assert ids.dtype == object
    assert all(type(i) is str for i in ids)


def test_settings_inputs_and_attributes_come_back(tmp_path):
    store = FeatureStore.open(tmp_path, write=True)
    source = Key("embeddings", "a", "0" * 16)
    identity = identify("whitening", ["é"], 3, {"floor": 1e-5, "name": "é"}, [source])
    arrays = {"mean": np.zeros(1), "projection": np.zeros((1, 1)), "eigenvalues": np.zeros(1)}
    artifact = store.get(store.write_whole(identity, arrays, attributes={"n_fit": 7}))
    assert artifact.settings == {"floor": 1e-5, "name": "é"}
    assert artifact.inputs == [source]
    assert artifact.attributes["n_fit"] == 7
    assert artifact.attributes["version"] == 3
    assert artifact.attributes["digest"][:16] == identity.key.mark


def test_an_unsealed_artifact_is_refused(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings(), seal=False)
    with pytest.raises(MissingError, match="is not whole yet: repeat the command"):
        FeatureStore.open(tmp_path).get(identity.key)


def test_an_absent_artifact_is_refused_otherwise(tmp_path, identity, embeddings, fill):
    fill(tmp_path, identity, embeddings())
    with pytest.raises(MissingError, match="there is no embeddings/x-0000000000000000"):
        FeatureStore.open(tmp_path).get(Key("embeddings", "x", "0" * 16))


def test_an_unknown_file_lists_those_there_are(stored):
    with pytest.raises(MissingError, match=r"has no file model\.safetensors; it has .*vectors/zarr\.json"):
        stored.blob("model.safetensors")
