"""What is asked of a whole store: where things come from, what is damaged, what is copied."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cgd.cli import cli
from cgd.config import Recipe
from cgd.errors import MissingError
from cgd.pipeline import storage, storage_text
from cgd.pipeline.steps import Session
from cgd.store import provenance
from cgd.store.feature_store import FeatureStore
from tests.unit.pipeline.trained import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, drawn: Path, tiny_recipe: Recipe) -> Session:
    """A store with a student, the images copied so that a test may change them."""
    folder = tmp_path_factory.mktemp("stored")
    shutil.copytree(drawn, folder / "landmarks")
    return train(folder, folder / "landmarks", tiny_recipe)[0]


@pytest.fixture
def copied(made: Session, tmp_path: Path) -> Session:
    shutil.copytree(made.store_url, tmp_path / "s.zarr")
    return Session(str(tmp_path / "s.zarr"), device="cpu", workers=0, workspace=made.workspace)


def test_a_store_is_a_line_per_artifact():
    entries = [
        {"key": "a/b", "sealed": True, "shards": 4, "store": "s"},
        {"key": "c/d", "sealed": False, "shards": 2, "store": "s"},
    ]
    assert storage_text.listing_text({"artifacts": entries}) == "a/b  sealed\nc/d  not sealed, 2 shards done"
    entries[1]["store"] = "t"
    assert storage_text.listing_text({"artifacts": entries}).startswith("a/b  sealed  in s\n")
    assert storage_text.listing_text({"artifacts": []}) == "the store is empty"


def student(session: Session) -> str:
    (entry,) = session.store().entries("students")
    return str(entry.key)


def test_the_tree_goes_from_a_student_down_to_the_embeddings(made):
    found = storage.info(made, "students/")["tree"]
    assert found["key"] == student(made)
    whitened = [node for node in found["inputs"] if node["key"].startswith("whitened/")]
    assert len(whitened) == 2
    below = [node["key"].partition("/")[0] for node in whitened[0]["inputs"]]
    assert below == ["embeddings", "whitening"]
    embeddings = whitened[0]["inputs"][0]
    assert embeddings["weights"] == "random"
    assert embeddings["rows"] == 24
    assert embeddings["settings"].keys() == {"ids", "view", "precision"}
    assert embeddings["made"]["libraries"]["numpy"]


def test_a_size_that_is_reckoned_is_said_to_be():
    node = {"key": "a/b", "sealed": True, "bytes": 8 * 10**12, "rows": 10**9, "settings": {}, "weights": None}
    node |= {"made": None, "inputs": [], "bytes_are": "reckoned by shapes"}
    assert storage_text.info_text({"tree": node}).startswith("a/b  about 8000.00 GB, 1000000000 rows\n")


def test_its_text_shows_who_made_what_and_what_is_no_longer_here(made, copied):
    key = student(copied)
    whitened = next(node for node in storage.info(copied, key)["tree"]["inputs"] if node["key"].startswith("whitened/"))
    (Path(copied.store_url) / f".cgd/seals/{whitened['key']}.json").unlink()
    before = storage_text.info_text(storage.info(made, key))
    lines = storage_text.info_text(storage.info(copied, key)).splitlines()
    assert lines[0].startswith(f"{key}  ")
    assert any(f"{whitened['key']}  not here" in line for line in lines)
    assert sum("── embeddings/" in line for line in lines) < before.count("── embeddings/")
    assert any(" by " in line and "torch" in line for line in lines)


def test_verify_with_images_names_those_that_changed(made):
    assert storage.verify(made, None, images=True)["changed_images"] == []
    folder = Path(made.store_url).parent / "landmarks"
    (images,) = (made.workspace.images(name) for name in ("lm@train",))
    picture = folder / images.paths[3]
    good = picture.read_bytes()
    picture.write_bytes(good + b"\0")
    try:
        found = storage.verify(made, None, images=True)
        assert {each.partition(": ")[2] for each in found["changed_images"]} == {images.ids[3]}
        assert len(found["changed_images"]) == len([e for e in made.store().entries("embeddings") if e.sealed])
        assert found["problems"] == []
    finally:
        picture.write_bytes(good)


def test_verify_says_where_images_are_not_at_hand(made, tmp_path):
    elsewhere = Session(made.store_url, workspace=type(made.workspace)(tmp_path / "roots.yaml"))
    assert storage.verify(elsewhere, None, images=True)["not_at_hand"] == ["lm@train"]


def test_an_unfinished_artifact_is_no_problem_but_told(copied):
    key = next(e.key for e in copied.store().entries("embeddings"))
    root = Path(copied.store_url)
    (root / f".cgd/seals/{key}.json").unlink()
    shard = sorted((root / f".cgd/receipts/{key}").iterdir())[0]
    shard.unlink()
    done = CliRunner().invoke(cli, ["store", "verify", "--store", copied.store_url, "--json"])
    assert done.exit_code == 0, done.output
    assert [u["key"] for u in json.loads(done.stdout)["unfinished"]] == [str(key)]
    assert f"{key}: being written, " in storage_text.verify_text(storage.verify(copied, None))


def test_copy_takes_what_fits_and_what_it_was_made_from(made, tmp_path):
    one = storage.copy(made.store_url, str(tmp_path / "a.zarr"), ["whitening/"])
    assert {key.partition("/")[0] for key in one["copied"]} == {"whitening"}
    whole = storage.copy(made.store_url, str(tmp_path / "b.zarr"), ["students/"], inputs=True)
    assert {key.partition("/")[0] for key in whole["copied"]} == {"students", "whitened", "whitening", "embeddings"}
    assert all(problems == [] for _, problems in FeatureStore.open(tmp_path / "b.zarr").verify())
    with pytest.raises(MissingError, match="no artifact fits 'nothing'"):
        storage.copy(made.store_url, str(tmp_path / "c.zarr"), ["nothing"])


def test_copying_a_store_to_itself_only_writes_its_catalog(copied):
    done = storage.copy(copied.store_url, copied.store_url, [])
    assert done["copied"] == []
    assert len(json.loads((Path(copied.store_url) / ".cgd/catalog.json").read_text())["artifacts"]) == len(
        done["present"]
    )


def test_repair_prints_the_command_that_made_what_is_lost(copied):
    key = next(e.key for e in copied.store().entries("embeddings"))
    root = Path(copied.store_url)
    record = next((root / f".cgd/provenance/{key}").glob("*[!d].json"))
    about = json.loads(record.read_text()) | {"command": "cgd extract-teachers --dataset lm"}
    record.write_text(json.dumps(about))
    (root / str(key) / "vectors/c/0/0/0").unlink()
    done = CliRunner().invoke(cli, ["store", "repair", "--store", copied.store_url])
    assert done.exit_code == 1, done.output
    assert f"dropped {key} (rows 0 to " in done.stdout
    assert "made again by: cgd extract-teachers --dataset lm\n" in done.stdout
    assert not copied.store().is_sealed(key)
    assert CliRunner().invoke(cli, ["store", "repair", "--store", copied.store_url]).stdout == "nothing to repair\n"


def test_a_command_is_told_as_it_was_typed_and_without_passwords(monkeypatch):
    typed = ["/opt/bin/cgd", "distill", "--out", "my student", "--upstream", "https://me:secret@host/s.zarr"]
    monkeypatch.setattr(sys, "argv", typed)
    assert provenance.command() == "cgd distill --out 'my student' --upstream https://host/s.zarr"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert provenance.command() is None


def test_other_versions_of_libraries_are_told_when_an_artifact_is_continued(copied, caplog, monkeypatch):
    key = next(e.key for e in copied.store().entries("embeddings"))
    records = copied.store().provenance(key)
    with caplog.at_level(logging.WARNING, "cgd"):
        provenance.tell_of_other_libraries(key, records)
        assert not caplog.records
        monkeypatch.setattr(provenance, "libraries", lambda: {"torch": "9.9"})
        provenance.tell_of_other_libraries(key, records)
    assert "torch 2." in caplog.text
    assert "there, 9.9 here" in caplog.text


def test_what_is_behind_a_store_is_neither_copied_nor_upgraded(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("CGD_UPSTREAM", copied.store_url)
    own = storage.copy(copied.store_url, str(tmp_path / "own.zarr"), ["whitening/"])
    done = CliRunner().invoke(cli, ["store", "copy", str(tmp_path / "own.zarr"), str(tmp_path / "b.zarr"), "--json"])
    assert json.loads(done.stdout)["copied"] == own["copied"]
    assert CliRunner().invoke(cli, ["store", "upgrade", "--store", str(tmp_path / "own.zarr")]).exit_code == 0


def test_an_artifact_whose_seal_or_metadata_is_lost_is_verified_by_its_name(copied):
    key = next(e.key for e in copied.store().entries("embeddings"))
    (Path(copied.store_url) / str(key) / "zarr.json").unlink()
    (problem,) = storage.verify(copied, str(key))["problems"]
    assert problem == f"{key}/zarr.json: is missing"
    (Path(copied.store_url) / f".cgd/seals/{key}.json").unlink()
    assert storage.verify(copied, str(key))["problems"]
    with pytest.raises(MissingError, match="is not whole yet"):
        storage.info(copied, str(key))


def test_a_store_whose_own_metadata_is_lost_names_the_repair(copied):
    (Path(copied.store_url) / "zarr.json").unlink()
    done = CliRunner().invoke(cli, ["store", "verify", "--store", copied.store_url])
    assert done.exit_code == 1
    assert "zarr.json is missing: `cgd store repair --store" in done.stderr
    assert CliRunner().invoke(cli, ["store", "repair", "--store", copied.store_url]).exit_code == 0
    assert CliRunner().invoke(cli, ["store", "verify", "--store", copied.store_url]).exit_code == 0


def test_other_files_beside_receipts_stop_nothing(copied):
    key = next(e.key for e in copied.store().entries("embeddings"))
    (Path(copied.store_url) / f".cgd/receipts/{key}/.DS_Store").write_bytes(b"")
    (Path(copied.store_url) / f".cgd/receipts/{key}/._00000000.json").write_bytes(b"")
    assert CliRunner().invoke(cli, ["store", "ls", "--store", copied.store_url]).exit_code == 0
    assert len(list(copied.store().finished_shards(key))) == copied.store().get(key).shard_count
    assert len(list(copied.store().finished_shards(key, ends=True))) == 1  # the first is the last


def test_a_row_is_told_by_its_number_and_by_its_image(made):
    artifact = next(made.store().get(e.key) for e in made.store().entries("whitened"))
    ids, vectors = artifact.read("ids"), artifact.read("vectors")
    found = storage.info(made, str(artifact.key), row=3)
    assert (found["bytes"], found["bytes_are"]) == (artifact.size, "counted")
    row = found["row"]
    assert (row["number"], row["shard"], row["ids"], row["valid"]) == (3, 0, ids[3], True)
    assert row["vectors"] == vectors[3].tolist()
    assert storage.info(made, str(artifact.key), image=ids[3])["row"] == row
    lines = storage_text.info_text(found).splitlines()
    assert f"ids      {ids[3]}" in lines
    assert "shard    0" in lines
    assert f"digests  {artifact.read('digests')[3].tobytes().hex()}" in lines
    first = " ".join(f"{v:.4g}" for v in vectors[3, :6])
    assert f"vectors  {first} … {vectors.shape[1]} numbers" in lines


@pytest.mark.parametrize(
    ("key", "options", "told"),
    [
        ("whitened/", ["--at", "24"], "has the rows 0 to 23, not 24"),
        ("whitened/", ["--image", "nobody"], "has no image 'nobody'"),
        ("students/", ["--at", "0"], "has no rows; those of images, embeddings, "),
    ],
)
def test_a_row_that_is_not_there_is_one_sentence(made, key, options, told):
    found = next(e.key for e in made.store().entries(key.rstrip("/")))
    done = CliRunner().invoke(cli, ["store", "info", str(found), *options, "--store", made.store_url])
    assert done.exit_code == 1
    assert told in done.stderr
