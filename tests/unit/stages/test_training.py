"""Training that is interrupted at any step and continued ends in the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd.engines import Engine
from cgd.errors import WeightsError
from cgd.models.encoder import Encoder
from cgd.stages import training
from cgd.stages.checkpoint import STATE
from cgd.stages.distill import Distillation, distill, training_of
from cgd.stages.fuse import EpochTargets, TargetPlan, epoch_targets
from cgd.stages.training import LOGGED
from cgd.stages.update import Update
from cgd.types import Batch, Target

CGD = [
    "distill.method=cgd",
    "distill.fusion=cgd-two",
    "cgd.positions=4",
    "cgd.bits=2",
    "cgd.restarts=1",
    "distill.student=mobilenet-v1?width=0.25&dim=16&size=64",
]
RELATIVE = ["distill.method=relative-teacher", "distill.images_per_class=2", "distill.unlabelled=0.5",
            "distill.labelled=0.8"]  # fmt: skip
SETTINGS = {"cgd": CGD, "relative-teacher": RELATIVE}


class _Interrupted(Exception):
    """What ends a run here; a real one ends with the process."""


class _Targets:
    """The targets of an epoch built in this very process, which saves a process per continued run."""

    def __init__(self, plan: TargetPlan, engine: Engine) -> None:  # noqa: ARG002
        self.plan = plan

    def __enter__(self) -> _Targets:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def epoch(self, epoch: int, _: int) -> tuple[list[Batch], Iterator[Target]]:
        batches, targets = epoch_targets(self.plan, epoch)
        return list(batches), iter(targets)


@pytest.fixture
def arguments(stored: Any) -> Any:
    """Of a method and a folder: what `distill` is called with."""

    def make(method: str, out: Path, *settings: str) -> Distillation:
        pairs = ("distill.epochs=12", "distill.positives=image")
        return stored.job(out, *pairs, *SETTINGS.get(method, ()), *settings)

    return make


def finish(job: Distillation) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    done = training_of(job).run()
    return done.encoder.network.state_dict(), [{n: line[n] for n in LOGGED if n in line} for line in done.lines]


@pytest.mark.parametrize(("method", "interruptions"), [("whiten-mtd", 20), ("cgd", 20), ("relative-teacher", 8)])
def test_interrupted_at_random_steps_it_ends_in_the_same_bits(
    arguments: Any, method: str, interruptions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, step = Encoder.forward, Update.step

    def noisy(self: Encoder, x: Tensor) -> Tensor:  # as dropout would be: a training whose random state matters
        found: Tensor = forward(self, x)
        return found + 0.01 * torch.randn_like(found) if self.training else found

    monkeypatch.setattr(Encoder, "forward", noisy)
    monkeypatch.setattr(training, "EpochTargets", _Targets)
    expected, log = finish(arguments(method, tmp_path / "whole"))

    draw = np.random.default_rng(0)
    left, after = 0, False

    def limited(self: Update, *rest: Any) -> float:
        nonlocal left
        left -= 1
        if left < 0 and not after:
            raise _Interrupted
        value = step(self, *rest)
        if left < 0:
            raise _Interrupted  # the weights have moved, and nothing was kept of it
        return value

    monkeypatch.setattr(Update, "step", limited)
    continued_within = 0
    for _ in range(interruptions):
        left, after = int(draw.integers(0, 4)), bool(draw.integers(2))
        monkeypatch.setattr(training, "KEEP_SECONDS", 0.0 if draw.integers(4) else 1e9)
        run = training_of(arguments(method, tmp_path / "broken"))
        with pytest.raises(_Interrupted):
            run.run()
        state = tmp_path / "broken" / STATE
        if state.is_file():
            continued_within += bool(torch.load(state, weights_only=True)["begun"]["losses"])
    assert continued_within >= interruptions // 4
    monkeypatch.setattr(Update, "step", step)
    found, found_log = finish(arguments(method, tmp_path / "broken"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert found_log == log


def test_a_state_that_holds_code_is_refused(arguments: Any, tmp_path: Path) -> None:
    torch.save({"student": finish}, tmp_path / STATE)
    with pytest.raises(WeightsError, match=r"training\.pt is damaged .*delete it to train from the start"):
        training_of(arguments("whiten-mtd", tmp_path)).run()


def test_an_empty_state_is_refused_too(arguments: Any, tmp_path: Path) -> None:
    (tmp_path / STATE).touch()
    with pytest.raises(WeightsError, match=r"training\.pt is damaged .*delete it to train from the start"):
        training_of(arguments("whiten-mtd", tmp_path)).run()


def test_what_is_no_state_of_a_finished_student_is_left_alone(arguments: Any, tmp_path: Path) -> None:
    job = arguments("whiten-mtd", tmp_path, "distill.epochs=1")
    distill(job)
    (tmp_path / STATE).write_bytes(b"no state")
    assert distill(job).skipped
    assert (tmp_path / STATE).read_bytes() == b"no state"


def test_targets_of_finished_epochs_are_removed(arguments: Any, tmp_path: Path) -> None:
    plan = training_of(arguments("whiten-mtd", tmp_path)).plan
    with EpochTargets(plan) as targets:
        folder = targets._folder
        for epoch in range(4):
            batches, of_epoch = targets.epoch(epoch, 3)
            for _ in batches:  # and not beyond the last, as a training reads them
                next(of_epoch)
            assert {p.name for p in folder.iterdir()} <= {f"epoch-{epoch}.npz", f"epoch-{epoch + 1}.npz"}


@pytest.mark.parametrize(("chunk", "told"), [(0, False), (1000, False), (3, True)])
def test_smaller_batch_statistics_are_told(
    arguments: Any, tmp_path: Path, chunk: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    training_of(arguments("whiten-mtd", tmp_path, f"distill.chunk_images={chunk}")).prepare()
    assert ("takes its statistics from 3 images at a time" in caplog.text) == told
    assert ("takes its statistics" in caplog.text) == told
