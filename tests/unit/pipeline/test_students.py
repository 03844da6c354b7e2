"""Students listed and exported: files that run where there is no cgd, and nothing in anybody's way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from trained import train

from cgd.cli import cli
from cgd.config import Recipe
from cgd.data.images import read_image
from cgd.data.transforms import full_pixels
from cgd.errors import CgdError, InputError, MissingError, StoreError
from cgd.models import export
from cgd.pipeline import scoring, steps, students
from cgd.pipeline.steps import Session
from cgd.retrieval.vectors import combine_scales, l2
from cgd.stages import select
from cgd.store.feature_store import FeatureStore

STUDENT = "timm:test_resnet?dim=32&resize=longest&filter=bicubic&size=64"
WITHOUT = (
    "import runpy, sys\n"
    "sys.modules['cgd'] = sys.modules['timm'] = None\n"  # whoever imports them now fails
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "assert {'cgd', 'timm'} & {n.partition('.')[0] for n, m in sys.modules.items() if m} == set()\n"
    "assert ('torch' in sys.modules) == sys.argv[0].endswith('pt2/sample.py')\n"
)


@dataclasses.dataclass(frozen=True)
class Place:
    session: Session
    folder: Path
    drawn: Path


@pytest.fixture(scope="module")
def place(drawn: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A student of one epoch, exported in every format."""
    folder = tmp_path_factory.mktemp("students")
    session, _, _ = train(folder, drawn, tiny_recipe, f"distill.student='{STUDENT}'")
    return Place(session, folder / "student", drawn)


@pytest.fixture(scope="module")
def exported(place: Place) -> dict[str, dict[str, Any]]:
    """The report of each format; onnx at two scales."""
    scales = {"onnx": (1.0, 0.7071)}
    return {
        form: students.export_student(place.session, str(place.folder), form, place.folder / form, scales.get(form, ()))
        for form in export.FORMATS
    }


def by_cgd(place: Place, path: Path, scales: tuple[float, ...], box: tuple[float, ...] | None = None) -> np.ndarray:
    encoder = steps.load_student(place.session, str(place.folder), scales).build()
    image = read_image(path.parent, path.name).image
    assert image is not None
    pixels = full_pixels(image, encoder.input_spec, box)  # type: ignore[arg-type]
    with torch.inference_mode():
        vectors = encoder.embed([torch.from_numpy(p[None]) for p in pixels]).double().numpy()
    found: np.ndarray = l2(combine_scales(vectors, encoder.input_spec.combine))[0]
    return found


def alone(*arguments: str | Path) -> str:
    """Standard output of a script run without cgd, timm and the working directory."""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", WITHOUT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# what users run


@pytest.mark.parametrize(("form", "scales"), [("onnx", (1.0, 0.7071)), ("pt2", ())])
def test_a_sample_gives_the_descriptors_of_evaluation_without_cgd(
    place: Place, exported: dict[str, dict[str, Any]], form: str, scales: tuple[float, ...], tmp_path: Path
) -> None:
    script = Path(exported[form]["sample"])
    assert script == place.folder / form / "sample.py"
    pictures = [p for p in sorted(place.drawn.rglob("*")) if p.suffix in (".jpg", ".png")][:2]
    alone(script, *pictures, "--out", tmp_path / "v.npy")
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float32
    expected = np.stack([by_cgd(place, path, scales) for path in pictures])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_a_sample_prints_a_query_cut_to_its_box(place: Place, exported: dict[str, dict[str, Any]]) -> None:
    picture = next(p for p in sorted(place.drawn.rglob("*")) if p.suffix in (".jpg", ".png"))
    line = json.loads(alone(exported["onnx"]["sample"], picture, "--box", "3,4,40.5,30"))
    assert line["image"] == str(picture)
    expected = by_cgd(place, picture, (1.0, 0.7071), (3.0, 4.0, 40.5, 30.0))
    np.testing.assert_allclose(line["descriptor"], expected, atol=2e-6)
    assert np.abs(expected - by_cgd(place, picture, (1.0, 0.7071))).max() > 1e-3


def test_an_export_tells_what_it_is_and_how_far_from_the_student(exported: dict[str, dict[str, Any]]) -> None:
    for form, report in exported.items():
        path = Path(report["file"])
        assert path.name == f"student.{form}"
        assert path.stat().st_size == report["bytes"]
        assert report["dimensions"] == 32
        assert report["max_relative_difference"] == max(report["differences"].values()) < report["tolerance"]
        assert set(report["differences"]) == {"64x64", "97x131", "160x120"}
        assert sorted(p.name for p in path.parent.iterdir()) == sorted(
            [path.name] if form == "safetensors" else [path.name, "sample.py"]
        )
        json.dumps(report)


def test_of_tensors_alone_there_is_no_sample(exported: dict[str, dict[str, Any]]) -> None:
    assert exported["safetensors"]["sample"] is None
    assert "onnx and pt2 run by themselves" in students.export_text(exported["safetensors"])
    assert students.export_text(exported["onnx"]).splitlines()[-1].startswith("next: python ")


# where to


@pytest.mark.parametrize(
    ("out", "file"),
    [(None, "student.pt2"), ("more", "more/student.pt2"), ("more/my.pt2", "more/my.pt2")],
)
def test_out_is_a_file_or_a_folder_or_the_students(place: Place, out: str | None, file: str) -> None:
    target = students._target("x", place.folder, "pt2", None if out is None else place.folder / out)
    assert target == place.folder / file


def test_a_student_in_a_store_needs_to_be_told_where(place: Place, tmp_path: Path) -> None:
    key = students.list_students(place.session)["students"][0]["key"]
    before = sorted(Path(place.session.store_url).rglob("*"))
    with pytest.raises(InputError, match="stands in a store, where nothing is added: say with --out"):
        students.export_student(place.session, key, "safetensors")
    report = students.export_student(place.session, key, "safetensors", tmp_path)
    assert report["file"] == str(tmp_path / "student.safetensors")
    assert sorted(Path(place.session.store_url).rglob("*")) == before


def test_an_export_replaces_its_own_sample_and_nobody_elses(place: Place, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "export", lambda *_: export.Exported(b"model", {"64x64": 0.0}))
    for _ in range(2):
        students.export_student(place.session, str(place.folder), "pt2", tmp_path)
    (tmp_path / "sample.py").write_text("print('mine')")
    with pytest.raises(StoreError, match=r"sample\.py is there already and was not written by an export"):
        students.export_student(place.session, str(place.folder), "pt2", tmp_path)


def test_a_refused_export_leaves_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="nothing is written"):
        students.export_student(place.session, str(place.folder), "safetensors", tmp_path / "new/folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "out", "message"),
    [
        ("nowhere", "out", "'nowhere' is no folder of a student, nor its key"),
        (None, "x.onnx", "a file of the format pt2 ends in .pt2"),
        (None, "file/x.pt2", "cannot write .*x.pt2: name another place"),
        (None, "file", "cannot write .*file/student.pt2: name another place"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_it_is_built(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str | None, out: str, message: str
) -> None:
    (tmp_path / "file").touch(0o755)
    monkeypatch.setattr(students, "load_student", lambda *_: pytest.fail("a student was loaded"))
    with pytest.raises(CgdError, match=message):
        students.export_student(place.session, where or str(place.folder), "pt2", tmp_path / out)


def test_an_unfinished_student_names_the_command_that_finishes_it(place: Place, tmp_path: Path) -> None:
    (tmp_path / "training.pt").touch()
    with pytest.raises(MissingError, match=r"holds no finished student .* run `cgd distill … --out"):
        students.export_student(place.session, str(tmp_path), "pt2")


# what there is


def test_students_are_listed_with_how_they_were_trained(place: Place) -> None:
    (entry,) = students.list_students(place.session)["students"]
    assert entry["key"].startswith("students/lm-train.timm-test-resnet-")
    trained = {name: entry[name] for name in ("student", "method", "fusion", "epochs", "seed", "dimensions")}
    assert trained == {
        "student": STUDENT,
        "method": "whiten-mtd",
        "fusion": "max-min",
        "epochs": 1,
        "seed": 0,
        "dimensions": 32,
    }
    assert entry["teachers"] == ["mobilenet-v1-width-0.25", "timm-resnet10t"]
    weights = steps.load_student(place.session, str(place.folder)).build()
    assert entry["parameters"] == sum(p.numel() for p in weights.parameters())
    told = students.students_text(students.list_students(place.session)).splitlines()
    assert told[0] == entry["key"]
    assert "whiten-mtd with max-min of mobilenet-v1-width-0.25, timm-resnet10t, 1 epochs, seed 0" in told[1]


def test_a_student_that_cannot_be_read_does_not_hide_the_others() -> None:
    golden = FeatureStore.open(Path(__file__).parents[2] / "golden/store_v1")
    (entry,) = students.list_students(Session(str(golden.files.root)))["students"]
    assert "has no file recipe.json" in entry["problem"]
    assert "recipe.json" in students.students_text({"store": "s", "students": [entry]})


def test_an_empty_store_names_the_command_that_makes_a_student(tmp_path: Path) -> None:
    told = students.students_text({"store": "s.zarr", "students": []})
    assert told == "s.zarr holds no student: `cgd distill --dataset NAME --out DIR` trains one"
    result = CliRunner().invoke(cli, ["students", "ls", "--store", str(tmp_path / "none.zarr")])
    assert result.exit_code == 1
    assert "there is no feature store" in result.stderr


def test_the_commands_print_one_object_and_nothing_else(place: Place, tmp_path: Path) -> None:
    store = ["--store", place.session.store_url, "--json"]
    listed = CliRunner().invoke(cli, ["students", "ls", *store])
    assert len(json.loads(listed.stdout)["students"]) == 1
    arguments = ["students", "export", str(place.folder), "--format", "safetensors", "--out", str(tmp_path)]
    written = CliRunner().invoke(cli, [*arguments, *store])
    assert written.exit_code == 0, written.output
    assert written.stderr == ""
    assert json.loads(written.stdout)["file"] == str(tmp_path / "student.safetensors")
    unknown = CliRunner().invoke(cli, ["students", "export", str(place.folder), "--format", "tflite"])
    assert unknown.exit_code == 2
    assert "'tflite' is not one of" in unknown.stderr


def test_students_scored_on_the_training_images_are_no_teachers(
    drawn: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    session, recipe, images = train(tmp_path, drawn, tiny_recipe)
    before = select.teachers_of(session.store(), "lm", "train", ())
    for source in (steps.load_student(session, str(tmp_path / "student")), steps.student_source(session, recipe)):
        scoring.embed(session, images, [source], "fixed", recipe.extract)
    assert len(select.embeddings_of(session.store(), "lm", "train")) == len(before) + 2
    assert select.teachers_of(session.store(), "lm", "train", ()) == before
    student = session.store().files.root / str(next(session.store().entries("students")).key)
    (student / "zarr.json").write_text("{}")
    assert len(select.teachers_of(session.store(), "lm", "train", ())) >= len(before), "a damaged student stops nobody"


def test_images_that_only_students_were_scored_on_have_no_teachers(
    drawn: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    session, recipe, _ = train(tmp_path, drawn, tiny_recipe)
    gallery = session.workspace.images("lm@gallery")
    scoring.embed(session, gallery, [steps.load_student(session, str(tmp_path / "student"))], "fixed", recipe.extract)
    with pytest.raises(MissingError, match=r"by students only: run `cgd extract-teachers --dataset lm@gallery"):
        select.teachers_of(session.store(), "lm", "gallery", ())
