"""Damaged files are named with their rows and never read as something else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from cgd.cli import cli
from cgd.errors import DamageError
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify

ROWS, CUT = 10, 4
IDENTITY = identify("embeddings", ["lm-train", "net", "fixed"], 1, {"dataset": "lm", "split": "train", "view": "fixed"})


def arrays_of(seed=0):
    draw = np.random.default_rng(seed)
    return {
        "ids": np.array([f"é-{n}" for n in range(ROWS)], dtype=object),
        "vectors": draw.standard_normal((ROWS, 1, 5)).astype(np.float32),
        "valid": np.arange(ROWS) % 3 != 0,
        "digests": draw.integers(0, 256, (ROWS, 32)).astype(np.uint8),
        "reasons": np.array(["é" * n for n in range(ROWS)], dtype=object),
    }


ARRAYS = arrays_of()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine") / "features.zarr"
    store = FeatureStore.open(root, write=True)
    writer = store.writer(IDENTITY, {n: a.shape for n, a in ARRAYS.items()}, shard_rows=CUT)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        writer.write(shard, {n: a[rows.start : rows.stop] for n, a in ARRAYS.items()})
    writer.seal()
    fitted = {"mean": np.arange(3.0), "projection": np.eye(2, 3), "eigenvalues": np.ones(3)}
    store.write_whole(identify("whitening", ["lm", "net"], 1, {}), fitted)
    store.write_whole(identify("students", ["lm", "net"], 1, {}), {}, blobs={"model.safetensors": b"weights" * 10})
    return root


@pytest.fixture
def root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "features.zarr")


def path_of(root, array, shard):
    return root / str(IDENTITY.key) / array / "c" / "/".join([str(shard), *["0"] * (ARRAYS[array].ndim - 1)])


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def swap(path):
    """With the shard after it, as long and as well formed as itself."""
    parts = list(path.parts)
    place = parts.index("c") + 1
    parts[place] = str(int(parts[place]) - 1)
    other = type(path)(*parts)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def problems(root):
    return [p for _, found in FeatureStore.open(root).verify() for p in found]


def read_all(root):
    stored = FeatureStore.open(root).get(IDENTITY.key)
    return {array: stored.read(array) for array in stored.arrays}


def verify(root, *arguments):
    return CliRunner().invoke(cli, ["store", "verify", *arguments, "--store", str(root)])


def test_an_undamaged_store_verifies(root):
    assert problems(root) == []
    done = verify(root)
    assert done.exit_code == 0
    assert done.stdout == "3 artifacts read, 0 problems\n"


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("harm", [flip, truncate, empty, delete, lengthen, swap])
def test_a_damaged_shard_is_named_with_its_rows_and_never_read(root, array, harm):
    harm(path_of(root, array, 1))
    damaged = {1} | ({0} if harm is swap else set())
    named = problems(root)
    assert len(named) == len(damaged)
    for shard, problem in zip(sorted(damaged), named, strict=True):
        path = path_of(root, array, shard).relative_to(root).as_posix()
        assert problem.startswith(f"{path} (rows {shard * CUT} to {shard * CUT + CUT - 1}): ")
    stored = FeatureStore.open(root).get(IDENTITY.key)
    for shard in range(3):
        rows = np.arange(shard * CUT, min(ROWS, shard * CUT + CUT))
        if shard in damaged:
            for read in (lambda s=shard: stored.read_shard(array, s), lambda r=rows: stored.gather(array, r)):
                for _ in range(2):  # and not on the second look either
                    with pytest.raises(DamageError, match=array):
                        read()
        else:
            np.testing.assert_array_equal(stored.gather(array, rows), ARRAYS[array][rows])
    with pytest.raises(DamageError):
        stored.read(array)
    with pytest.raises(DamageError):
        stored.gather(array, np.array([9, 4]))
    for other in ARRAYS.keys() - {array}:
        np.testing.assert_array_equal(stored.read(other), ARRAYS[other])


def test_no_flipped_byte_of_a_shard_goes_unnoticed(root):
    path = path_of(root, "vectors", 2)
    good = path.read_bytes()
    for place in range(0, len(good), 3):
        flip(path, place)
        with pytest.raises(DamageError, match="rows 8 to 9"):
            FeatureStore.open(root).get(IDENTITY.key).read("vectors")
        path.write_bytes(good)
    np.testing.assert_array_equal(FeatureStore.open(root).get(IDENTITY.key).read("vectors"), ARRAYS["vectors"])


@pytest.mark.parametrize("harm", [flip, truncate, delete])
def test_damage_after_the_first_look_is_no_wrong_row_either(root, harm):
    stored = FeatureStore.open(root).get(IDENTITY.key)
    stored.read("vectors")
    harm(path_of(root, "vectors", 1))
    with pytest.raises(DamageError):
        stored.gather("vectors", np.array([5]))


@pytest.mark.parametrize("harm", [flip, truncate, empty, delete])
@pytest.mark.parametrize("metadata", ["zarr.json", "vectors/zarr.json", "ids/zarr.json"])
def test_damaged_metadata_is_named_and_nothing_is_read_by_it(root, harm, metadata):
    harm(root / str(IDENTITY.key) / metadata)
    named = problems(root)
    assert len(named) == 1
    assert named[0].startswith(f"{IDENTITY.key}")
    assert metadata in named[0]
    with pytest.raises(DamageError, match=metadata):
        FeatureStore.open(root).get(IDENTITY.key)


@pytest.mark.parametrize("place", [0, 2, 20, 200])
def test_damaged_metadata_never_stops_a_listing(root, place):
    flip(root / str(IDENTITY.key) / "zarr.json", place)
    assert [e.sealed for e in FeatureStore.open(root).entries()] == [True, True, True]
    done = CliRunner().invoke(cli, ["store", "ls", "--store", str(root)])
    assert done.exit_code == 0, done.exception


def test_searching_among_damaged_metadata_is_refused(root):
    flip(root / str(IDENTITY.key) / "zarr.json", 0)
    with pytest.raises(DamageError, match=str(IDENTITY.key)):
        FeatureStore.open(root).find("embeddings", dataset="lm")


@pytest.mark.parametrize("harm", [truncate, empty, flip])
def test_a_damaged_seal_is_named_and_its_artifact_not_read(root, harm):
    seal = root / f".cgd/seals/{IDENTITY.key}.json"
    if harm is flip:
        flip(seal, seal.read_bytes().index(b'"vectors/c/1') - 20)  # inside a digest
    else:
        harm(seal)
    assert any(str(IDENTITY.key) in problem for problem in problems(root))
    with pytest.raises(DamageError):
        read_all(root)
    done = verify(root)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("harm", [flip, delete])
def test_damage_between_receipt_and_seal_is_found_too(tmp_path, harm):
    store = FeatureStore.open(tmp_path, write=True)
    writer = store.writer(IDENTITY, {n: a.shape for n, a in ARRAYS.items()}, shard_rows=CUT)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        writer.write(shard, {n: a[rows.start : rows.stop] for n, a in ARRAYS.items()})
    harm(path_of(tmp_path, "vectors", 0))
    writer.seal()
    (problem,) = problems(tmp_path)
    assert "vectors/c/0/0/0 (rows 0 to 3)" in problem
    with pytest.raises(DamageError):
        store.get(IDENTITY.key).gather("vectors", np.array([0]))


def test_a_damaged_receipt_does_not_become_a_seal(tmp_path):
    store = FeatureStore.open(tmp_path, write=True)
    writer = store.writer(IDENTITY, {n: a.shape for n, a in ARRAYS.items()}, shard_rows=ROWS)
    writer.write(0, ARRAYS)
    truncate(tmp_path / f".cgd/receipts/{IDENTITY.key}/00000000.json")
    with pytest.raises(DamageError, match="receipt"):
        writer.seal()
    assert not store.is_sealed(IDENTITY.key)


@pytest.mark.parametrize(("kind", "file"), [("whitening", "projection/c/0/0"), ("students", "model.safetensors")])
def test_artifacts_without_rows_are_checked_alike(root, kind, file):
    (entry,) = FeatureStore.open(root).entries(kind)
    flip(root / str(entry.key) / file)
    assert problems(root) == [f"{entry.key}/{file}: differs from its seal"]
    stored = FeatureStore.open(root).get(entry.key)
    with pytest.raises(DamageError, match=file):
        stored.read("projection") if kind == "whitening" else stored.blob(file)


def test_verify_exits_with_1_and_names_every_damaged_shard(root):
    flip(path_of(root, "vectors", 0))
    delete(path_of(root, "valid", 2))
    done = verify(root)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    *lines, last = done.stdout.splitlines()
    assert lines == [
        f"{IDENTITY.key}/valid/c/2 (rows 8 to 9): is missing",
        f"{IDENTITY.key}/vectors/c/0/0/0 (rows 0 to 3): differs from its seal",
    ]
    assert last.startswith("3 artifacts read, 2 problems; `cgd store repair` mends them")


def test_verify_of_one_artifact_reads_only_that_and_json_holds_the_problems(root):
    flip(path_of(root, "vectors", 0))
    assert verify(root, "whitening/").exit_code == 0
    done = verify(root, IDENTITY.key.mark, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["artifacts"] == 1
    assert "vectors/c/0/0/0 (rows 0 to 3)" in report["problems"][0]


def test_a_command_that_meets_damage_says_so_in_one_line(undisturbed, tmp_path):
    root = shutil.copytree(undisturbed / "features.zarr", tmp_path / "features.zarr")
    damaged = next(root.glob("embeddings/lm-train*resnet10t*fixed*/vectors/c/2/0/0"))
    flip(damaged)
    done = CliRunner().invoke(cli, ["fit-whitening", "--dataset=lm@train", "--dim=8", "--store", str(root)])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{damaged.relative_to(root).as_posix()} (rows 8 to 11) differs from its seal" in line


@pytest.mark.parametrize("harm", [flip, truncate, delete])
@pytest.mark.parametrize("sealed", [True, False])
def test_an_extraction_over_damaged_shards_says_so_in_one_line(command, undisturbed, tmp_path, harm, sealed):
    root = shutil.copytree(undisturbed / "features.zarr", tmp_path / "features.zarr")
    damaged = next(root.glob("embeddings/lm-train*resnet10t*fixed*/digests/c/0/0"))
    harm(damaged)
    if not sealed:
        (root / f".cgd/seals/embeddings/{damaged.parents[3].name}.json").unlink()
    done = command(tmp_path, command.extract)
    assert done.code == 1
    assert "Traceback" not in done.errors
    (line,) = [line for line in done.errors.splitlines() if line.startswith("error:")]
    assert damaged.relative_to(root).parent.parent.as_posix() in line
