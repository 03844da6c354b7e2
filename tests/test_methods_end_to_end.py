"""Methods beside Whiten-MTD and CGD through the command line, from photographs to scores, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cgd.cli import cli

TEACHER = "mobilenet-v1?width=0.25&size=64&weights=random"
CPU = ("--device", "cpu", "--workers", "0")
RAW = ("--set", "distill.space=raw")
FOUR = ("--set", "distill.images_per_class=2")


def cgd(*arguments: str) -> dict[str, Any]:
    """The JSON object of a command that succeeds."""
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def distill(method: str, *more: str, dim: int = 8, dataset: str = "lm@train") -> tuple[str, ...]:
    student = f"mobilenet-v1?width=0.25&dim={dim}&size=64"
    return ("distill", "--dataset", dataset, "--method", method, "--student", student, "--epochs", "1", *CPU,
            "--batch-pairs", "4", "--set", "distill.image_size=64", "--out", f"{method}-{dim}", *more)  # fmt: skip


@pytest.fixture(scope="module")
def folder(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops by one teacher, whitened; `bare` are the same images without labels."""
    place = tmp_path_factory.mktemp("methods")
    with (drawn / "manifest.csv").open() as file:
        rows = [row | {"label": ""} for row in csv.DictReader(file) if row["split"] == "train"]
    (place / "images").symlink_to(drawn / "images")
    with (place / "bare.csv").open("w") as file:
        writer = csv.DictWriter(file, ["image_id", "path", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, manifest in (("lm", drawn / "manifest.csv"), ("bare", place / "bare.csv")):
            cgd("extract-teachers", "--dataset", f"manifest:{manifest}", "--name", name, "--split", "train",
                "--teachers", TEACHER, "--views", "1", "--set", "extract.crop_size=64", *CPU)  # fmt: skip
            cgd("fit-whitening", "--dataset", f"{name}@train", "--dim", "8")
    return place


@pytest.mark.parametrize(
    ("method", "dim", "settings", "images"),
    [
        ("absolute-teacher", 8, FOUR, 24),
        ("relative-teacher", 6, (*FOUR, *RAW, "--set", "distill.unlabelled=1", "--set", "distill.labelled=0.5"), 24),
        ("ranking", 5, ("--set", "distill.images=10", "--set", "distill.degrade=16"), 10),
        ("feature-regression", 256, RAW, 24),
    ],
)
def test_a_student_is_trained_and_scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, dim: int, settings: tuple[str, ...], images: int
) -> None:
    monkeypatch.chdir(folder)
    report = cgd(*distill(method, *settings, dim=dim))
    assert report["final_loss"] >= 0
    assert report["teacher_queries"] == {"images": images, "views": 1, "teachers": 1, "total": images}
    if method == "ranking":
        score = ("evaluate", "--student", report["folder"], "--benchmark", "lm", *CPU)
        good, worse = cgd(*score), cgd(*score, "--set", "evaluate.degrade=16")
        assert "degrade" not in good["card"]
        assert worse["card"] == {**good["card"], "degrade": 16, "artifacts": worse["card"]["artifacts"]}
        assert worse["card"]["artifacts"] != good["card"]["artifacts"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (distill("relative-teacher", *FOUR, dataset="bare@train"), "trains with labels, and bare@train has none"),
        (distill("relative-teacher"), "holds no two classes of distill.images_per_class=8 images"),
        (
            distill("absolute-teacher", *FOUR, "--batch-pairs", "14"),
            "batches of 7 classes need as many, and there are 6: set distill.batch_pairs to at most 12",
        ),
        (distill("absolute-teacher", *FOUR, dim=9), "needs a student as wide as its teachers' vectors"),
        (distill("feature-regression", *RAW), "give the student ?dim=256"),
        (distill("feature-regression"), "distill.space=whitened gives it whitened ones: use --set distill.space=raw"),
        (distill("ranking", "--set", "distill.unlabelled=1"), "draws no batches by class"),
        (distill("relative-teacher", *FOUR, "--set", "distill.unlabelled=1"), "and there are none to train on"),
        (distill("ranking", "--set", "distill.images=1"), "leaves a single image, and training needs two"),
        (
            distill("ranking", "--set", "distill.images=5", "--set", "distill.images_by=label", dataset="bare@train"),
            "bare@train has no labels to draw images by",
        ),
        (distill("ranking", "--set", "ranking.loss=rank"), "ranking.loss: unknown value 'rank': did you mean rank_"),
        (distill("relative-teacher", "--set", "relative-teacher.margin=-1"), "relative-teacher.margin is at least 0"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr.splitlines()[-1]
