"""Hint and attention layers: maps from the store, a student's own beside its descriptor, and nothing left of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stored import Stored

from cgd.engines import Engine
from cgd.errors import InputError, MissingError
from cgd.models.load import teacher
from cgd.pipeline import steps
from cgd.pipeline.recipe import change
from cgd.stages import select, training
from cgd.stages.distill import distill, training_of
from cgd.stages.fuse import TargetPlan, epoch_targets
from cgd.stages.prove import prove
from cgd.stages.update import Update
from cgd.types import Batch, Target

MAPS = tuple(f"maps:timm:resnet10t?weights=random&size=64&grid=2&kind={kind}" for kind in ("features", "attention"))
LAYERS = ("distill.method=relative-teacher", "distill.images_per_class=2", "relative-teacher.hint=0.5",
          "relative-teacher.attention=2")  # fmt: skip


@pytest.fixture(scope="module")
def mapped(stored: Stored) -> Stored:
    """The store has one teacher's features and attention, too."""
    images = stored.job(Path("unused")).images
    config = change(stored.recipe, "extract", teachers=MAPS).extract
    steps.extract_teachers(stored.session, images, config)
    return stored


def naive(found: torch.Tensor, kind: str) -> np.ndarray:
    """Of a map (B, C, 2, 2) for a crop of 64 pixels: itself, or its sums of squares."""
    values = found.numpy().astype(np.float64)
    return values.reshape(len(values), -1) if kind == "features" else (values**2).sum(axis=1).reshape(len(values), -1)


def test_maps_are_those_of_the_teachers_trunk(mapped: Stored) -> None:
    store = mapped.session.store()
    inner = teacher("timm:resnet10t?weights=random&size=64", None).build()
    pixels = training_of(mapped.job(Path("unused"))).pixels
    spec = inner.input_spec
    for kind in ("features", "attention"):
        key = select.maps_of(store, "lm", "train", kind)["crop-1"]
        crops = [pixels.load(training.Sample(row, 1), spec) for row in range(3)]
        with torch.inference_mode():
            found = inner.network.trunk(torch.from_numpy(np.stack(crops)))
        assert found.shape == (3, 512, 2, 2)
        vectors = store.get(key).read("vectors")[:3, 0]
        np.testing.assert_allclose(vectors, naive(found, kind), rtol=1e-3, atol=1e-5)


def test_maps_teach_in_layers_only(mapped: Stored) -> None:
    store = mapped.session.store()
    assert set(select.teachers_of(store, "lm", "train", [])) == set(mapped.raw)
    plain = training_of(mapped.job(Path("unused"), "distill.method=relative-teacher", "distill.images_per_class=2"))
    assert plain.plan.maps == ()
    assert set(epoch_targets(plain.plan, 0)[1][0]) == {"distances", "labels"}


def test_the_loss_is_the_sum_of_its_layers(mapped: Stored, tmp_path: Path) -> None:
    run = training_of(mapped.job(tmp_path, *LAYERS))
    batches, targets = epoch_targets(run.plan, 0)
    encoder = run.prepare()
    update = run._update(encoder)
    samples = run.pixels.samples(0, 0, batches[0])
    pixels = run.pixels.to_device([run.pixels.load(sample, encoder.input_spec) for sample in samples])
    goal = {name: torch.from_numpy(values) for name, values in targets[0].items()}
    with torch.no_grad():
        found = update.method.loss(update.encoder.eval()(pixels)[:, None], goal).item()
        own = encoder.network.trunk(pixels)  # (B, C, 2, 2)
        hint = update.encoder.adapter(own).flatten(1)
        descriptor = run.method.loss(encoder(pixels)[:, None], goal).item()
    theirs = targets[0]["features"][:, 0]
    hints = np.linalg.norm(hint.numpy() - theirs, axis=1).mean() / math.sqrt(theirs.shape[1])
    attention = [naive(own, "attention"), targets[0]["attention"][:, 0]]
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in attention]
    attentions = np.linalg.norm(unit[0] - unit[1], axis=1).mean()
    assert found == pytest.approx(descriptor + 0.5 * hints + 2 * attentions, rel=1e-5)


def test_the_student_keeps_nothing_of_the_layers(mapped: Stored, tmp_path: Path) -> None:
    job = mapped.job(tmp_path / "s", *LAYERS, "distill.epochs=1", "distill.chunk_images=3")
    report = distill(job)
    assert load_file(report.folder / "model.safetensors").keys() == job.source.build().network.state_dict().keys()
    assert report.teacher_queries == {"images": 24, "views": 2, "teachers": 4, "total": 192}
    inputs = mapped.session.store().get(report.key).inputs
    assert {key.kind for key in inputs} == {"whitened", "embeddings"}


class _Targets:
    def __init__(self, plan: TargetPlan, engine: Engine) -> None:  # noqa: ARG002
        self.plan = plan

    def __enter__(self) -> _Targets:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def epoch(self, epoch: int, _: int) -> tuple[list[Batch], Iterator[Target]]:
        batches, targets = epoch_targets(self.plan, epoch)
        return list(batches), iter(targets)


def test_an_interrupted_training_keeps_its_adapter(
    mapped: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "EpochTargets", _Targets)
    monkeypatch.setattr(training, "KEEP_SECONDS", 0.0)
    whole = training_of(mapped.job(tmp_path / "whole", *LAYERS, "distill.epochs=2")).run()
    step, left = Update.step, 0

    def limited(self: Update, *rest: Any) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return step(self, *rest)

    monkeypatch.setattr(Update, "step", limited)
    job = mapped.job(tmp_path / "broken", *LAYERS, "distill.epochs=2")
    for more in (2, 3):  # within the first epoch, and within the second
        left = more
        with pytest.raises(KeyboardInterrupt):
            training_of(job).run()
    assert torch.load(tmp_path / "broken" / "training.pt", weights_only=True)["adapter"].keys() == {"weight", "bias"}
    monkeypatch.setattr(Update, "step", step)
    continued = training_of(job).run()
    expected = whole.encoder.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in continued.encoder.network.state_dict().items())


def test_layers_that_cannot_be(mapped: Stored, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="has no depth maps for that layer: run `cgd extract-teachers"):
        select.maps_of(mapped.session.store(), "lm", "train", "depth")
    run = training_of(mapped.job(tmp_path, *LAYERS))
    with pytest.raises(InputError, match="leave hint and attention out"):
        prove(store=mapped.session.store(), training=run, sources=[], steps=1, samples=1)
    told_of = {
        "maps": "needs the name of a teacher",
        "maps:maps:gem": "maps of maps are none",
        "maps:timm:resnet10t?grid=0": "grid is between 1 and 64",
        "maps:timm:vit_tiny_patch16_224": "tokens in a row",
        "maps:colours": "no single trunk",
    }
    for text, told in told_of.items():
        with pytest.raises(InputError, match=told):
            teacher(f"{text}{'&' if '?' in text else '?'}weights=random", None).build()
