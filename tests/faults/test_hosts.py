"""One training on two machines: the student of one, whoever is killed, and a sentence where it cannot begin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import CPU, accepted

from cgd.store.feature_store import FeatureStore

STUDENT = "mobilenet-v1?width=0.25&dim=8&size=64"
SETTINGS = (
    "distill.positives=image",
    "distill.batch_norm=freeze",
    "distill.image_size=64",
    "distill.learning_rate=1e-5",
)
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
