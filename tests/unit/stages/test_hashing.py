"""From photographs to binary codes: a student distilled, then trained to hash, then scored by its codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cgd.cli import cli
from cgd.config import DchConfig, DistillConfig
from cgd.models.load import student
from cgd.stages.distill import training_of
from cgd.stages.fuse import epoch_batches, epoch_targets, make_method, trained_rows
from cgd.stages.processes import Processes
from cgd.stages.update import Update
from cgd.store.keys import settings_of

STUDENT = "mobilenet-v1?width=0.25&size=64&dim={}"
SETTINGS = ("distill.epochs=1", "distill.image_size=64", "distill.batch_pairs=8", "distill.views=fixed")


def cgd(*arguments: str, fails: int = 0) -> Any:
    done = CliRunner().invoke(cli, [*arguments, *([] if fails else ["--json"])])
    assert done.exit_code == fails, done.output
    return done.output if fails else json.loads(done.stdout)


def sets(*settings: str) -> list[str]:
    return [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def place(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of the training images under two classes, some with both or none, and a feature student."""
    folder = tmp_path_factory.mktemp("hashing")
    head, *lines = (drawn / "manifest.csv").read_text().splitlines()
    columns = head.split(",")
    label, split = columns.index("label"), columns.index("split")
    rows = [row for line in lines if (row := line.split(","))[split] == "train"]
    for number, row in enumerate(rows):
        row[label] = ("sky", "water", "sky|water", "water", "")[number % 5]
    (folder / "images").symlink_to(drawn / "images")
    (folder / "manifest.csv").write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cgd(
            "extract-teachers",
            "--dataset",
            "manifest:manifest.csv",
            "--name",
            "two",
            "--teachers",
            "colours",
            "--device",
            "cpu",
        )
        cgd(
            "distill", "--dataset", "two", "--method", "contrastive", "--student", STUDENT.format(0),
            "--out", "features", *sets("distill.space=raw", "distill.positives=image"),
        )  # fmt: skip
    return folder


def hashed(out: str, method: str, bits: int, *settings: str, fails: int = 0) -> Any:
    return cgd(
        "distill", "--dataset", "two", "--method", method, "--student", STUDENT.format(bits), "--out", out,
        "--init", "features/model.safetensors", *sets("distill.space=raw", "distill.optimiser=rmsprop", *settings),
        fails=fails,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "bits"), [("dch", 12), ("csq", 16)])
def test_a_distilled_student_is_trained_to_hash_and_scored_by_its_codes(
    place: Path, method: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    hashed(method, method, bits)
    before, after = load_file("features/model.safetensors"), load_file(f"{method}/model.safetensors")
    assert after.keys() - before.keys() == {"head.weight", "head.bias"}
    moved = max(float((after[n] - before[n]).abs().max()) for n in before if n.endswith("conv_pw.weight"))
    assert 0 < moved < 0.1, "it began where the other ended"
    score = ("--set", "evaluate.codes=sign", "--set", "evaluate.top=5")
    found = cgd("evaluate", "--student", method, "--benchmark", "two", "--device", "cpu", *score)
    assert (found["card"]["bits"], found["card"]["top"]) == (bits, 5)
    values = found["protocols"]["hamming"]
    assert 0 <= values["mAP_pessimistic"] <= values["mAP"] <= values["mAP_optimistic"] <= 100


def test_centres_want_a_power_of_two(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    said = hashed("never", "csq", 12, fails=1)
    assert "hash centres exist for a power of two of bits, and the student has 12: give it ?dim=8 or ?dim=16" in said


def test_the_optimiser_is_part_of_what_a_student_is() -> None:
    encoder, nothing = student("mobilenet-v1?dim=8", None).build(), Processes()
    for name, kind in (("adam", torch.optim.Adam), ("rmsprop", torch.optim.RMSprop)):
        config = DistillConfig(optimiser=name, learning_rate=1e-5, weight_decay=1e-5)
        optimiser = Update(encoder, make_method("dch", DchConfig(), "mean"), config, nothing).optimiser
        assert type(optimiser) is kind
        assert (optimiser.defaults["lr"], optimiser.defaults["weight_decay"]) == (1e-5, 1e-5)
    assert "optimiser" not in settings_of(DistillConfig()), "students made before it keep their keys"
    assert settings_of(DistillConfig(optimiser="rmsprop"))["optimiser"] == "rmsprop"


def test_images_of_no_class_are_not_trained_on_and_shared_classes_make_pairs(stored: Any, tmp_path: Path) -> None:
    job = stored.job(tmp_path, "distill.method=dch")
    labels = tuple(("a", "b", "a|b", "")[row % 4] for row in range(len(job.images)))
    plan = training_of(job).plan
    object.__setattr__(plan, "labels", labels)
    seen = np.concatenate([batch.rows.ravel() for batch in epoch_batches(plan, 0)])
    labelled = np.flatnonzero(np.array(labels) != "")
    np.testing.assert_array_equal(np.sort(seen), labelled)
    np.testing.assert_array_equal(np.flatnonzero(trained_rows(plan)), labelled)
    batches, targets = epoch_targets(plan, 0)
    for batch, target in zip(batches, targets, strict=True):
        named = [set(labels[row].split("|")) for row in batch.rows.ravel()]
        np.testing.assert_array_equal(target["similar"], [[float(bool(a & b)) for b in named] for a in named])
