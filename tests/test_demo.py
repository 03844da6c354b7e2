"""The demonstration on few buildings: its commands, its second run, what it prints, and the quickstart's Python."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cgd.cli import cli, demonstrations
from cgd.pipeline import demo

ROOT = Path(__file__).resolve().parents[1]
PYTHON = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/quickstart.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Few buildings, one crop, two epochs: a minute less of everything."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LABELS": 8, "SEARCHED": 4, "DISTRACTORS": 6, "DIM": 16}.items():
            patch.setattr(demo, name, value)
        patch.setattr(demo, "TRAINING", {**demo.TRAINING, "batch_pairs": 8, "image_size": 64})
        patch.setattr(demo, "EPOCHS", {"whiten-mtd": 2, "cgd": 1})
        patch.setattr(demo, "CODEBOOK", {**demo.CODEBOOK, "positions": 8, "bits": 3})
        yield


def run(*arguments: str):
    return CliRunner().invoke(cli, [*arguments, "--device", "cpu", "--workers", "1"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    torch.set_num_threads(1)  # sums in one order, as in the tests
    folder = tmp_path_factory.mktemp("demo") / "here"
    return folder, run("demo", "--out", str(folder))


def test_it_ends_with_a_table_and_a_page(done):
    folder, result = done
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    for number, step in enumerate(demo.commands(), 1):
        assert f"{number}/{len(demo.commands())}  {step.why}" in result.output
    for row in ("pixels", "drawn-resnet", "ensemble", "student before", "student after"):
        assert row in result.output


def test_nothing_is_wider_than_a_terminal_and_there_are_no_bars_without_one(done):
    folder, result = done
    lines = [line for line in result.output.splitlines() if str(folder) not in line]
    assert [line for line in lines if len(line) > 80] == []
    shown = [line for seed in (0, 12345) for step in demo.commands(seed) for line in step.shown().splitlines()]
    assert max(map(len, shown)) <= 75  # and five blanks before it
    assert "\r" not in result.output
    assert "%|" not in result.output


def test_the_second_run_does_nothing_and_gives_the_same_figures(done):
    folder, _ = done
    before = sorted((p, p.stat().st_mtime_ns) for p in (folder / "features.zarr").rglob("*.json"))
    first, second = (json.loads(run("demo", "--out", str(folder), "--json").stdout) for _ in range(2))
    assert sorted((p, p.stat().st_mtime_ns) for p in (folder / "features.zarr").rglob("*.json")) == before
    figures = [[(row["model"], row["mAP"], row["mAP_with_distractors"]) for row in r["rows"]] for r in (first, second)]
    assert figures[0] == figures[1]


def test_what_is_shown_is_what_is_run():
    for step in demo.commands(3):
        assert shlex.split(step.shown().replace("\\\n", " ")) == ["cgd", *step.command]


def test_the_commands_shown_are_those_of_the_quickstart():
    text = (ROOT / "docs/quickstart.md").read_text()
    for step in demo.commands():
        assert f"cgd {step.command[0]} " in text


@pytest.mark.parametrize("block", PYTHON)
def test_the_quickstarts_python_runs_in_the_folder(done, block, monkeypatch, capsys):
    monkeypatch.chdir(done[0])
    exec(compile(block, "quickstart.md", "exec"), {})
    assert capsys.readouterr().out
    assert len(block.strip().splitlines()) <= 12


def test_the_weights_that_come_with_the_package_are_small_and_plain():
    files = sorted(demo.TRAINED.iterdir())
    assert {f.name for f in files} == {f"{name}.safetensors" for name in (*demo.TEACHERS.split(","), "drawn-start")}
    assert sum(f.stat().st_size for f in files) < 3_000_000


def test_interrupted_it_says_that_it_continues_and_does(done, tmp_path, monkeypatch):
    folder, whole = done
    shutil.copytree(folder / ".cgd", tmp_path / "again/.cgd")  # drawn already
    command = demonstrations._run
    calls = []

    def interrupted(o, step):
        calls.append(step)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return command(o, step)

    monkeypatch.setattr(demonstrations, "_run", interrupted)
    first = run("demo", "--out", str(tmp_path / "again"))
    assert first.exit_code == 1
    assert "the same command continues" in first.output
    monkeypatch.setattr(demonstrations, "_run", command)
    second = run("demo", "--out", str(tmp_path / "again"))
    assert second.exit_code == 0, second.output
    scores = [re.findall(r"mAP x 100: [^(]*", each.output) for each in (whole, second)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3


def test_the_proof_on_it_uses_its_own_store(done, tmp_path, monkeypatch):
    monkeypatch.setenv("CGD_STORE", str(tmp_path / "another.zarr"))
    result = run("prove", "--demo", "--out", str(done[0]), "--steps", "1", "--samples", "4")
    assert "4 images and views, live teachers against the store" in result.output, result.output
    assert not (tmp_path / "another.zarr").exists()
