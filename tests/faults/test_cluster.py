"""A Ray cluster whose nodes and driver are killed ends in the bytes and scores of one undisturbed process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Nodes, nodes

from cgd.config import Recipe
from cgd.data.synthetic import draw_landmarks
from cgd.engines import Engine, engine_of
from cgd.errors import InputError
from cgd.pipeline import scoring, steps
from cgd.pipeline.recipe import override
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.stages import select
from cgd.stages.distill import training_of
from cgd.stages.fuse import EpochTargets, epoch_targets
from cgd.store.feature_store import FeatureStore

FULL = os.environ.get("CGD_FAULTS") == "full"
KILLS = 10 if FULL else 1
NODES = 3 if FULL else 2
SLOW = "stand_in:teacher?seconds=0.05"  # a shard takes long enough for a kill to find one in hand
SHARDS = 8


@dataclass
class Place:
    """Drawn landmarks, and stores in which the same is done in other ways."""

    folder: Path

    def session(self, store: str, engine: Engine) -> Session:
        workspace = Workspace(self.folder / "roots.yaml")
        return Session(
            str(self.folder / store), device="cpu", workers=1, shard_rows=6, engine=engine, workspace=workspace
        )

    @property
    def recipe(self) -> Recipe:
        settings = [f"extract.teachers=['{SLOW}']", "extract.views=1", "extract.crop_size=32", "whiten.dim=16"]
        return override(Recipe(), [*settings, "evaluate.queries=full"])

    def all_stages(self, store: str, engine: Engine) -> Any:
        """Extraction, whitening and scores: what the extraction and the scores report."""
        session, recipe = self.session(store, engine), self.recipe
        manifest = f"manifest:{self.folder / 'drawn/manifest.csv'}"
        images = session.workspace.images(manifest, "lm", "train")
        extracted = steps.extract_teachers(session, images, recipe.extract)
        steps.fit_whitening(session, {label: e.keys for label, e in extracted.encoders.items()}, recipe.whiten)
        benchmark, sources = session.workspace.benchmark(manifest, "lm"), steps.teacher_sources(session, [SLOW])
        (result,) = scoring.evaluate(session, benchmark, sources, recipe, whitening="lm@train")
        (encoder,) = extracted.encoders.values()
        return encoder, result["protocols"]

    def driver(self, store: str, address: str) -> subprocess.Popen[bytes]:
        """Extraction in a process of its own, which can be killed."""
        command = ["extract-teachers", "--dataset", f"manifest:{self.folder / 'drawn/manifest.csv'}", "--name", "lm",
                   "--split", "train", "--teachers", SLOW, "--views", "1", "--set", "extract.crop_size=32",
                   "--shard-rows", "6", "--device", "cpu", "--store", str(self.folder / store),
                   "--engine", f"ray://{address}", "--quiet"]  # fmt: skip
        program = [sys.executable, "-c", "from cgd.cli import main; main()"]
        return subprocess.Popen([*program, *command], cwd=self.folder)

    def arrays(self, store: str) -> dict[str, bytes]:
        """Every file that is not provenance, by path."""
        root = self.folder / store
        files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        return {n: p.read_bytes() for n, p in files.items() if not n.startswith((".cgd/provenance", ".cgd/tmp"))}

    def finished(self, store: str) -> int:
        """Shards of embeddings of the training images that have a receipt."""
        return len(list((self.folder / store / ".cgd/receipts/embeddings").glob("lm-train*/*.json")))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(NODES) as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cluster: Nodes) -> Place:  # noqa: ARG001 (workers find its teacher)
    folder = tmp_path_factory.mktemp("cluster")
    draw_landmarks(folder / "drawn", labels=8, seed=3, images=6, distractors=4)
    return Place(folder)


@pytest.fixture(scope="module")
def alone(place: Place) -> Any:
    """What one process says; its store is `local.zarr`."""
    return place.all_stages("local.zarr", engine_of("local", threads=1))


@pytest.mark.parametrize("name", ["local", "ray"])
def test_several_workers_end_in_the_bytes_and_scores_of_one(
    place: Place, alone: Any, cluster: Nodes, name: str
) -> None:
    engine = engine_of(f"ray://{cluster.address}") if name == "ray" else engine_of("local", 2, 1)
    encoder, scores = place.all_stages(f"{name}-2.zarr", engine)
    expected, found = place.arrays("local.zarr"), place.arrays(f"{name}-2.zarr")
    assert found.keys() == expected.keys()
    assert [path for path in expected if found[path] != expected[path]] == []
    assert scores == alone[1]
    assert (encoder.shards_written, encoder.tally.embedded) == (2 * SHARDS, alone[0].tally.embedded)


@pytest.mark.usefixtures("alone")
def test_targets_that_nodes_build_are_those_built_here(place: Place, cluster: Nodes) -> None:
    session = place.session("local.zarr", engine_of("local"))
    recipe = override(place.recipe, ["distill.student=timm:resnet10t", "distill.batch_pairs=8"])
    images = session.workspace.images(f"manifest:{place.folder / 'drawn/manifest.csv'}", "lm", "train")
    vectors = select.training_vectors(session.store(), "lm", "train", [], None, "whitened")
    plan = training_of(steps._distillation(session, images, vectors, recipe, place.folder / "out")).plan
    with EpochTargets(plan, engine_of(f"ray://{cluster.address}")) as targets:
        for epoch in range(3):
            batches, found = targets.epoch(epoch, 2)
            expected_batches, expected = epoch_targets(plan, epoch)
            for batch, target, mine, value in zip(batches, found, expected_batches, expected, strict=True):
                assert np.array_equal(batch.rows, mine.rows)
                assert target.keys() == value.keys()
                assert all(np.array_equal(target[name], value[name]) for name in value)


@pytest.mark.timeout(1200)
def test_nodes_and_the_driver_are_killed_and_nodes_join(place: Place, alone: Any, cluster: Nodes) -> None:
    """Nodes at random instants, the driver once; a node joins for each that was killed."""
    dice, killed, over = random.Random(5), [0], threading.Event()

    def kill_nodes() -> None:
        while killed[0] < KILLS and not over.wait(dice.uniform(1, 5)):
            cluster.kill(dice.randrange(len(cluster.alive)))
            killed[0] += 1
            cluster.add()

    driver = place.driver("killed.zarr", cluster.address)
    while driver.poll() is None and place.finished("killed.zarr") < 4:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = place.finished("killed.zarr")
    assert 4 <= before < 2 * SHARDS
    killer = threading.Thread(target=kill_nodes)
    killer.start()
    try:
        engine, rounds = engine_of(f"ray://{cluster.address}"), 0
        encoder, scores = place.all_stages("killed.zarr", engine)
        while killed[0] < KILLS:  # from nothing, until all have happened
            rounds += 1
            assert place.all_stages(f"again-{rounds}.zarr", engine)[1] == alone[1]
            assert place.arrays(f"again-{rounds}.zarr") == place.arrays("local.zarr")
    finally:
        over.set()
        killer.join()
    print(f"{killed[0]} nodes killed in {1 + rounds} runs, {before} shards finished when the driver was killed")
    assert place.arrays("killed.zarr") == place.arrays("local.zarr")
    assert scores == alone[1]
    assert encoder.shards_skipped >= before  # what was finished is never done again
    assert encoder.shards_skipped + encoder.shards_written == 2 * SHARDS
    assert not [p for _, problems in FeatureStore.open(place.folder / "killed.zarr").verify() for p in problems]


def test_a_gpu_is_asked_for_where_there_is_none(place: Place, cluster: Nodes) -> None:
    session = place.session("gpu.zarr", engine_of(f"ray://{cluster.address}"))
    with pytest.raises(InputError, match="no node of the Ray cluster has a GPU"):
        Session(session.store_url, device="cuda", engine=session.engine).compute_of_workers()
