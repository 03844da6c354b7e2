"""A run killed again and again ends in the bytes of an undisturbed one, and does nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cgd.data.synthetic import draw_landmarks
from cgd.store.feature_store import FeatureStore
from cgd.store.layout import LAYOUT

STORE = "features.zarr"


@dataclass
class Kill:
    """What stood where a command was killed: files by path with inode and time, unsealed artifacts, temporary files."""

    files: dict[str, tuple[int, int]]
    problems: list[str]
    unsealed: list[str]
    temporary: list[str]
    state: bool
    code: int


def written(root: Path) -> dict[str, tuple[int, int]]:
    found = {p.relative_to(root).as_posix(): p.stat() for p in root.rglob("*") if p.is_file()}
    return {n: (s.st_ino, s.st_mtime_ns) for n, s in found.items() if not n.startswith(".cgd/tmp/")}


def look(folder: Path, code: int) -> Kill:
    store = FeatureStore.open(folder / STORE)
    problems = [p for _, found in store.verify() for p in found]
    unsealed = [str(entry.key) for entry in store.entries() if not entry.sealed]
    temporary = os.listdir(folder / STORE / ".cgd/tmp")
    state = (folder / "student/student-seed0/training.pt").is_file()
    return Kill(written(folder / STORE), problems, unsealed, temporary, state, code)


def names(kill: Kill, part: str) -> list[str]:
    return [path for path in kill.files if part in path]


@dataclass
class Story:
    """One folder in which every stage was killed once before it was let finish."""

    folder: Path
    kills: dict[str, Kill]
    reports: dict[str, Any]
    children: dict[str, str]
    orphans: dict[str, list[int]]


@pytest.fixture(scope="module")
def story(command, orphans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    moments = {
        "extraction": (command.extract, "6 receipts/embeddings/"),
        "rest of extraction": (command.extract, None),
        "whitening": (command.run, "3 /whitened/.*/vectors/c/"),
        "training": (command.run, "2 /training.pt$"),
        "publication": (command.run, "1 /students/.*/model.safetensors$"),
        "farewell": (command.run, "1 /training.pt$"),
        "rest": (command.run, None),
    }
    told = Story(folder, {}, {}, {}, {})
    for name, (arguments, moment) in moments.items():
        done = command(folder, arguments, **({"die_at": moment} if moment else {}))
        told.reports[name] = done
        if moment:
            told.children[name] = (folder / "children").read_text()
            told.orphans[name] = orphans(folder)
            told.kills[name] = look(folder, done.code)
    return told


def test_every_stage_was_killed_in_its_midst(story):
    assert {k.code for k in story.kills.values()} == {-signal.SIGKILL}
    extraction, whitening, training, publication, farewell = story.kills.values()
    assert len(names(extraction, "receipts/embeddings/")) == 5
    assert names(extraction, "seals/embeddings/") == []
    assert len(names(whitening, "seals/embeddings/")) == 4
    assert len(names(whitening, "receipts/whitened/")) == 2
    assert names(whitening, "seals/whitened/") == []
    assert len(names(training, "seals/whitened/")) == 4
    assert training.state
    assert publication.state
    assert len(names(publication, "/log.jsonl")) == 1
    assert names(publication, "receipts/students/") == []
    assert farewell.state
    assert len(names(farewell, "seals/students/")) == 1


def test_what_is_not_whole_is_told_and_nothing_is_damaged(story):
    for kill in story.kills.values():
        assert kill.problems == []
    assert {key.split("/")[0] for key in story.kills["extraction"].unsealed} == {"embeddings"}
    assert {key.split("/")[0] for key in story.kills["whitening"].unsealed} == {"whitened"}
    assert story.kills["training"].unsealed == []


def test_the_same_commands_end_well(story):
    for name in ("rest of extraction", "rest"):
        assert story.reports[name].code == 0, story.reports[name].errors
    assert all(problems == [] for _, problems in FeatureStore.open(story.folder / STORE).verify())


def test_the_store_ends_in_the_bytes_of_an_undisturbed_run(story, undisturbed, tree):
    found, expected = tree(story.folder / STORE), tree(undisturbed / STORE)
    assert found.keys() == expected.keys()
    assert sum("/vectors/c/" in path for path in expected) > 24
    kinds = {p.split("/")[2] for p in expected if p.startswith(".cgd/seals/")}
    assert kinds == set(LAYOUT) - {"codebooks", "codes", "indexes"}  # Whiten-MTD and exact search have none
    assert [p for p in expected if found[p] != expected[p]] == []


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.json", "log.jsonl"])
def test_the_student_ends_in_the_bytes_of_an_undisturbed_run(story, undisturbed, name):
    path = f"student/student-seed0/{name}"
    assert (story.folder / path).read_bytes() == (undisturbed / path).read_bytes()


def test_the_log_holds_every_epoch_once(story):
    lines = (story.folder / "student/student-seed0/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_no_file_that_stood_was_written_again(story):
    final = written(story.folder / STORE)
    for name, kill in story.kills.items():
        assert [p for p, which in kill.files.items() if final[p] != which] == [], name


def test_finished_shards_were_skipped(story):
    report = json.loads(story.reports["rest of extraction"].output)
    finished = len(names(story.kills["extraction"], "receipts/embeddings/"))
    assert sum(t["shards_skipped"] for t in report["teachers"].values()) == finished == 5
    assert sum(t["shards_written"] for t in report["teachers"].values()) == 4 * 6 - finished


def test_finished_epochs_were_not_trained_again(story):
    assert "continuing after epoch 1 of 2" in story.reports["publication"].errors
    assert "continuing after epoch 2 of 2" in story.reports["farewell"].errors
    assert "is trained already" in story.reports["rest"].errors


def test_temporary_files_of_the_dead_are_gone(story):
    assert all(len(story.kills[name].temporary) == 1 for name in ("extraction", "whitening", "publication"))
    assert os.listdir(story.folder / STORE / ".cgd/tmp") == []
    assert list((story.folder / "student").rglob("*.part")) == []


def test_the_state_of_a_finished_training_is_gone(story):
    assert not (story.folder / "student/student-seed0/training.pt").exists()


def test_a_killed_training_leaves_no_process_behind(story):
    assert len(story.children["training"].split()) == 1  # the one that builds targets
    assert story.orphans == {name: [] for name in story.kills}


def test_targets_of_a_killed_training_do_not_stay_on_the_disk(story):
    assert list((story.folder / "tmp").glob("cgd-*")) == []


def test_a_scoring_killed_before_its_seal_is_continued(command, tmp_path):
    teacher = command.recipe.extract.teachers[0]
    evaluate = ["evaluate", f"--teachers={teacher}", f"--benchmark={command.data}", "--name=lm", "--device=cpu"]
    killed = command(tmp_path, evaluate, die_at="1 /seals/scores/")
    assert killed.code == -signal.SIGKILL
    again = command(tmp_path, evaluate)
    assert again.code == 0, again.errors
    assert all(problems == [] for _, problems in FeatureStore.open(tmp_path / STORE).verify())


def test_other_images_of_the_same_names_do_not_continue_an_interrupted_extraction(command, tmp_path):
    killed = command(tmp_path, command.extract, die_at="6 receipts/embeddings/")
    assert killed.code == -signal.SIGKILL
    other = draw_landmarks(tmp_path / "other", labels=6, images=4, distractors=6, seed=1)
    arguments = [a.replace(command.data, f"manifest:{other / 'manifest.csv'}") for a in command.extract]
    mixed = command(tmp_path, arguments)
    assert mixed.code == 1
    assert "is not the one in the store" in mixed.errors
    assert command(tmp_path, command.extract).code == 0


ANY_STEP = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify

os.fsync = lambda _: None  # power is not cut here

def write(root):
    arrays = {"ids": np.array(["a", "é", "c"], object), "vectors": np.eye(3, 2, dtype=np.float16),
              "valid": np.ones(3, bool), "digests": np.zeros((3, 32), np.uint8)}
    store = FeatureStore.open(root, write=True)
    writer = store.writer(identify("whitened", ["x"], 1, {}), {n: a.shape for n, a in arrays.items()}, shard_rows=2)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        writer.write(shard, {n: a[rows.start : rows.stop] for n, a in arrays.items()})
    writer.seal()

def in_a_process(root, last=None):
    process = os.fork()
    if not process:
        steps = 0
        def watch(event, arguments):
            nonlocal steps
            if event in ("open", "os.link", "os.remove", "os.mkdir") and str(root) in str(arguments[0]):
                steps += 1
                if steps == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        write(root)
        (root.parent / "steps").write_text(str(steps))
        os._exit(0)
    return os.waitpid(process, 0)[1]

def tree(root):
    files = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return {p: data for p, data in files.items() if p.parts[:2] != (".cgd", "provenance")}

folder = Path(sys.argv[1])
assert in_a_process(folder / "whole") == 0
count = int((folder / "steps").read_text())
for last in range(1, count + 1, int(sys.argv[2])):
    root = folder / str(last)
    assert in_a_process(root, last) == signal.SIGKILL, last
    assert in_a_process(root) == 0, last
    assert tree(root) == tree(folder / "whole"), last
    print(last)
"""


def test_a_write_killed_at_any_step_is_continued_to_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", ANY_STEP, str(tmp_path), "19"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 4
