"""One training on two machines: the student of one, whoever is killed, and a sentence where it cannot begin."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import CPU, accepted

from cgd.store.feature_store import FeatureStore

STUDENT = "mobilenet-v1?width=0.25&dim=8&size=64"
SETTINGS = ("positives=image", "batch_norm=freeze", "image_size=64", "learning_rate=1e-5")
ARGUMENTS = (
    "distill", "--dataset", "lm@train", "--student", STUDENT, "--batch-pairs", "4", "--epochs", "2", "--out", "student",
    *CPU, *(word for setting in SETTINGS for word in ("--set", f"distill.{setting}")),
)  # fmt: skip
STEPS = 6  # of an epoch: 24 images by four
NAMES = ("one", "two")
Ends = list[int]
Hosts = Callable[..., Ends]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Run `cgd distill` on hosts, each in its folder; see `hosts.py`."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("hosts.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(folders: list[Path], *agents: dict[str, Any]) -> Ends:
        assert server.stdin
        assert server.stdout
        plain = [
            {"folder": str(folder), "name": name, "arguments": ARGUMENTS, "restarts": 0}
            for folder, name in zip(folders, NAMES, strict=True)
        ]
        told = [{**one, **agent} for one, agent in zip(plain, agents or ({}, {}), strict=True)]
        server.stdin.write(json.dumps(told) + "\n")
        server.stdin.flush()
        ends: Ends = json.loads(server.stdout.readline())
        return ends

    with server:  # at the end its input is closed, and it ends
        yield run


@pytest.fixture
def folders(prepared: Path, tmp_path: Path) -> list[Path]:
    """The folders of two machines that share nothing: each has a copy of the store and knows where the images are."""
    return [Path(shutil.copytree(prepared, tmp_path / name)) for name in NAMES]


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one machine that trains alone."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("alone") / "work"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        accepted(*ARGUMENTS)
    return folder


@pytest.fixture(scope="module")
def together(hosts: Hosts, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two machines that trained together, undisturbed."""
    folder = tmp_path_factory.mktemp("together")
    folders = [Path(shutil.copytree(prepared, folder / name)) for name in NAMES]
    assert hosts(folders) == [0, 0], told(folders)
    return folders


def told(folders: list[Path]) -> list[str]:
    return [(folder / "err").read_text() for folder in folders]


def student(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "student").iterdir())}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "student/log.jsonl").read_text().splitlines()]


def test_two_machines_train_the_student_of_one(alone: Path, together: list[Path]) -> None:
    """Gradients agree to rounding, which Adam's first steps amplify."""
    assert losses(together[0]) == pytest.approx(losses(alone), rel=2e-4)
    assert set(student(together[0])) == {"model.safetensors", "recipe.json", "log.jsonl"}
    assert student(together[0]) == student(together[1])
    kinds = [[key.kind for key in (e.key for e in FeatureStore.open(f / "features.zarr").entries())] for f in together]
    assert ["students" in of_host for of_host in kinds] == [True, False]


def test_a_killed_process_is_started_again_and_the_curve_is_the_same(
    hosts: Hosts, folders: list[Path], together: list[Path]
) -> None:
    assert hosts(folders, {"restarts": 3}, {"restarts": 3, "die_at": STEPS + 2}) == [0, 0], told(folders)
    assert "continuing after epoch 1 of 2 and 2 steps of the next one" in told(folders)[0]
    assert student(folders[0]) == student(together[0])
    assert student(folders[1]) == student(together[0])


def test_the_first_process_may_be_another_one_that_has_no_state(
    hosts: Hosts, folders: list[Path], together: list[Path]
) -> None:
    """Both end where one dies; when they are started again the other is the first, and its folder is empty."""
    assert hosts(folders, {}, {"die_at": STEPS + 2}) == [1, 1]
    said = told(folders)
    assert "another process of this training ended or cannot be reached; its machine says why." in said[0]
    assert not any(line.startswith("Traceback") for line in said[0].splitlines())  # torchrun's own are behind a time
    assert [(folder / "student/training.pt").is_file() for folder in folders] == [True, False]
    assert hosts(folders, {"order": 1}, {"order": 0}) == [0, 0], told(folders)
    assert "the newest state of this training is that of rank 1 on one" in told(folders)[1]
    assert "continuing after epoch 1 of 2 and 2 steps" in told(folders)[1]
    assert student(folders[0]) == student(folders[1]) == student(together[0])


def no_store(folder: Path) -> None:
    shutil.rmtree(folder / "features.zarr")


def elsewhere(folder: Path) -> None:
    (folder / ".cgd/roots.yaml").unlink()


def no_images(folder: Path) -> None:
    """The list is here, what it lists is not."""
    path = folder / ".cgd/roots.yaml"
    manifest = re.search(r"manifest:(.*)", path.read_text())
    assert manifest
    shutil.copy(manifest[1], folder / "manifest.csv")
    path.write_text(path.read_text().replace(manifest[1], f"{folder}/manifest.csv"))


def another_state(folder: Path) -> None:
    (folder / "student").mkdir()
    state = {"student": "students/another-0123456789abcdef", "processes": 3, "lines": [], "begun": {}}
    torch.save(state, folder / "student/training.pt")


@pytest.mark.parametrize(
    ("harm", "arguments", "message"),
    [
        (no_store, (), "there is no feature store at features.zarr"),
        (elsewhere, (), "unknown data set 'lm': known: none"),
        (no_images, (), "is missing below"),
        (another_state, (), "with its own settings and with 3 processes (now there are 2, and their number is part of"),
        (
            None,
            ("--set", "distill.seed=1"),
            "it would not train what rank 0 on one trains: other distill.seed (1, there 0)",
        ),
        (None, ("--device", "tpu"), "cannot use the device 'tpu'"),
    ],
)
def test_what_is_wrong_on_one_machine_is_said_on_both_before_the_training(
    hosts: Hosts, folders: list[Path], harm: Callable[[Path], None] | None, arguments: tuple[str, ...], message: str
) -> None:
    if harm:
        harm(folders[1])
    assert hosts(folders, {}, {"arguments": [*ARGUMENTS, *arguments]}) == [1, 1]
    for text in told(folders):
        (line,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert line.startswith("error: rank 1 on two: ")
        assert message in line
        assert line.endswith((".", "?"))
    assert not (folders[0] / "student").exists()
