"""A Ray cluster whose nodes and driver are killed ends in the bytes and scores of one undisturbed machine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster import Nodes, nodes

from cgd.data.synthetic import draw_landmarks
from cgd.store.feature_store import FeatureStore

FULL = os.environ.get("CGD_FAULTS") == "full"
KILLS = 10 if FULL else 2
SLOW = "engine_teacher:slow?seconds=0.15"  # a shard takes seconds, so that a kill finds one in hand
SHARD_ROWS = 4


@dataclass
class Place:
    """Drawn landmarks and commands on them; each store is one way of having the same done."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, store: str, *arguments: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            "from cgd.cli import main; main()",
            *arguments,
            "--store",
            f"{self.folder / store}",
        ]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, store: str, *arguments: str) -> dict[str, Any]:
        process = self.start(store, *arguments, "--json", "--quiet")
        told, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors[-2000:]
        result: dict[str, Any] = json.loads(told)
        return result

    def all_stages(self, store: str, *engine: str) -> dict[str, Any]:
        """Extraction, whitening and scores, as JSON by stage."""
        return {name: self.run(store, *arguments, *engine) for name, arguments in COMMANDS.items()}

    def arrays(self, store: str) -> dict[str, bytes]:
        """Every file that is not provenance, by path."""
        root = self.folder / store
        files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        return {n: p.read_bytes() for n, p in files.items() if not n.startswith((".cgd/provenance", ".cgd/tmp"))}


COMMANDS = {
    "extract": ["extract-teachers", "--dataset", "lm@train", "--teachers", SLOW, "--views", "1", "--device", "cpu",
                "--shard-rows", str(SHARD_ROWS), "--workers", "1"],
    "whiten": ["fit-whitening", "--dataset", "lm@train", "--dim", "16"],
    "evaluate": ["evaluate", "--benchmark", "lm", "--teachers", SLOW, "--whitening", "lm@train", "--device", "cpu",
                 "--queries", "full"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("cluster")
    drawn = draw_landmarks(folder / "drawn", labels=8, seed=3, images=4, distractors=4)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1",
                   "RAY_AUTH_MODE": "disabled"}  # fmt: skip
    place = Place(folder, environment)
    place.run("local.zarr", "extract-teachers", "--dataset", f"manifest:{drawn / 'manifest.csv'}", "--name", "lm",
              *COMMANDS["extract"][3:], "--split", "train")  # fmt: skip
    return place


@pytest.fixture(scope="module")
def alone(place: Place) -> dict[str, Any]:
    """What one process of one machine says; its store is `local.zarr`."""
    return place.all_stages("local.zarr", "--threads", "1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3 if FULL else 2) as found:
        yield found


def receipts(place: Place, store: str) -> int:
    """Finished shards of embeddings."""
    return len(list((place.folder / store / ".cgd/receipts/embeddings").rglob("*.json")))


def test_three_ways_end_in_the_same_bytes_and_scores(place: Place, alone: dict[str, Any], cluster: Nodes) -> None:
    ray = place.all_stages("ray.zarr", "--engine", f"ray://{cluster.address}")
    two = place.all_stages("two.zarr", "--processes", "2", "--threads", "1")
    expected = place.arrays("local.zarr")
    for store in ("ray.zarr", "two.zarr"):
        found = place.arrays(store)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
    for found in (ray, two):
        assert found["evaluate"]["protocols"] == alone["evaluate"]["protocols"]
        assert found["whiten"] == alone["whiten"]


def test_nodes_and_the_driver_are_killed_and_one_joins(place: Place, alone: dict[str, Any], cluster: Nodes) -> None:
    """Nodes at random instants, the driver once; what was finished is never done again."""
    store, random_ = "killed.zarr", random.Random(5)
    engine = ("--engine", f"ray://{cluster.address}")
    killed, over = [], threading.Event()

    def kill_nodes() -> None:
        while len(killed) < KILLS and not over.wait(random_.uniform(2, 6)):
            if len(cluster.alive) > 1:
                cluster.kill(random_.randrange(len(cluster.alive)))
                killed.append(receipts(place, store))
                cluster.add()

    before = 0
    killer = threading.Thread(target=kill_nodes)
    killer.start()
    try:
        driver = place.start(store, *COMMANDS["extract"], *engine, "--quiet")
        while driver.poll() is None and receipts(place, store) < 5:
            time.sleep(0.1)
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
        driver.communicate()
        before = receipts(place, store)
        rounds = 0
        found = place.all_stages(store, *engine)
        while len(killed) < KILLS:  # scores, and again from nothing, until all kills have happened
            rounds += 1
            place.all_stages(f"killed-{rounds}.zarr", *engine)
            assert place.arrays(f"killed-{rounds}.zarr") == place.arrays("local.zarr")
    finally:
        over.set()
        killer.join()
    assert len(killed) == KILLS
    assert place.arrays(store) == place.arrays("local.zarr")
    assert found["evaluate"]["protocols"] == alone["evaluate"]["protocols"]
    assert before >= 5
    (teacher,) = found["extract"]["teachers"].values()
    assert teacher["shards_skipped"] + teacher["shards_written"] == 2 * 8
    assert teacher["shards_skipped"] >= before
    assert not [p for _, problems in FeatureStore.open(place.folder / store).verify() for p in problems]


def test_a_gpu_is_asked_for_where_there_is_none(place: Place, cluster: Nodes) -> None:
    engine = ("--engine", f"ray://{cluster.address}")
    process = place.start("gpu.zarr", *COMMANDS["extract"][:-4], "--device", "cuda", *engine)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "no node of the Ray cluster has a GPU" in errors.splitlines()[-1]
    assert not (place.folder / "gpu.zarr").exists()
