"""A training step from the store, against one with the teachers there and against the bare student.

Usage: python benchmarks/training_step.py [--student resnet18] [--teachers gem,ap-gem,solar] [--size 224] [--pairs 8]
[--steps 4] [--blocks 12] [--workers 2] [--device cpu|cuda] [--json]. Draws photographs-sized JPEG files, embeds two
crops of each with untrained teachers, centres the vectors (2048 dimensions, more than any recipe keeps), and trains
the student by three kinds of step that take turns, an epoch of `--steps` each, all with the same loader, crops,
optimiser and loss:

  online   every teacher looks at every crop of the batch, its vectors are centred and fused (the reference loop)
  store    this package: vectors from the store, fused an epoch ahead in another process while this epoch trains
  bare     a constant target: nothing but the student

`store_over_bare` and `online_over_store` are ratios of the blocks' medians with a 95 % interval (blocks drawn anew);
`limit` is what arithmetic allows the latter: multiply-adds of student and teachers over those of the student, a
backward pass counted as two forward passes. Seconds are per step. `seconds_target_256` is what a target of 256 pairs,
three teachers and 512 dimensions takes to build, which happens beside the training.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from extraction import draw_photographs
from timing import report

from cgd.config import DistillConfig, ExtractConfig, WhitenConfig, WhitenMtdConfig
from cgd.data.datasets import open_dataset
from cgd.methods import Method
from cgd.models.devices import Compute, pick_device
from cgd.models.encoder import Encoder, gmacs
from cgd.models.load import student, teacher
from cgd.retrieval.whitening import whiten
from cgd.stages.distill import Distillation, training_of
from cgd.stages.extract import extract
from cgd.stages.fuse import EpochTargets, epoch_batches, epoch_targets
from cgd.stages.processes import Processes
from cgd.stages.training import Training
from cgd.stages.update import Clock, Update
from cgd.stages.whiten import fit_and_apply, read_whitening
from cgd.store.feature_store import FeatureStore
from cgd.types import Batch, Target

FORM = "weights=random&resize=square&centre_crop=0&scales=1&scale_on=tensor"


def argument(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Bench:
    """One student and what its steps need; each kind of step has its own copy of the student."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        size, pairs = int(argument("--size", "224")), int(argument("--pairs", "8"))
        names = argument("--teachers", "gem,ap-gem,solar").split(",")
        count = int(argument("--steps", "4")) * pairs  # an epoch
        draw_photographs(folder, count)
        images = open_dataset(f"folder:{folder}")
        self.store = FeatureStore.open(folder / "features.zarr", write=True)
        self.sources = [teacher(f"{name}?size={size}&{FORM}", None) for name in names]
        extraction = ExtractConfig(views=2, crop_size=size)
        done = extract(
            store=self.store, images=images, sources=self.sources, views=["crop-1", "crop-2"], config=extraction,
            compute=compute,
        )  # fmt: skip
        embeddings = {label: report.keys for label, report in done.encoders.items()}
        whitened = fit_and_apply(store=self.store, teachers=embeddings, config=WhitenConfig(kind="centre"))
        self.whitenings = [read_whitening(self.store, reports["crop"].key) for reports, _ in whitened.values()]
        config = DistillConfig(positives="image", batch_pairs=pairs, image_size=size, learning_rate=1e-4)
        job = Distillation(
            store=self.store,
            images=images,
            teachers={label: views for label, (_, views) in whitened.items()},
            source=student(argument("--student", "resnet18"), None, 0),
            config=config,
            method_config=WhitenMtdConfig(),
            out=folder / "student",
            compute=compute,
        )
        self.training: Training = training_of(job)
        self.teachers = [source.build().to(compute.device).eval() for source in self.sources]
        self.compute = compute

    def update(self) -> Update:
        encoder = self.training.prepare()
        self.training.train_mode(encoder)
        return Update(encoder, self.training.method, self.training.config, Processes())

    def pixels(self, update: Update, batches: list[Batch]) -> Iterator[torch.Tensor]:
        """The crops of consecutive batches, decoded by threads while the network runs."""
        pixels = self.training.pixels
        samples = [pixels.samples(0, number, batch) for number, batch in enumerate(batches)]
        flat = [sample for of_batch in samples for sample in of_batch]
        loaded = pixels.stream(flat, update.encoder.input_spec, 2 * len(samples[0]))
        for of_batch in samples:
            yield pixels.to_device([next(loaded) for _ in of_batch])

    @torch.no_grad()
    def online_target(self, pixels: torch.Tensor, batch: Batch) -> Target:
        """The target of these very crops by the teachers themselves, as the reference loop makes it on every step."""
        vectors = []
        for encoder, whitening in zip(self.teachers, self.whitenings, strict=True):
            raw = encoder.embed([pixels]).cpu().numpy()
            vectors.append(whiten(raw, whitening).astype(np.float32).reshape(len(batch), 2, -1))
        return self.training.method.target(vectors, batch, np.random.default_rng(0))


def blocks(bench: Bench, count: int) -> dict[str, list[float]]:
    """Seconds per step of every block of each kind of step, in turns; the first block of each is not counted.

    A block is an epoch, so that the building of targets, which goes on beside it, falls into it.
    """
    updates = {kind: bench.update() for kind in ("online", "store", "bare")}
    seconds: dict[str, list[float]] = {kind: [] for kind in updates}
    synchronise: Callable[[], None] = torch.cuda.synchronize if bench.compute.device.type == "cuda" else lambda: None
    constant = epoch_targets(bench.training.plan, 0)[1][0]
    with EpochTargets(bench.training.plan) as targets:
        for number in range(count + 1):
            for kind, update in updates.items():
                batches = epoch_batches(bench.training.plan, number)
                of_epoch: Iterator[Target] = repeat(constant)
                synchronise()
                started = time.perf_counter()
                if kind == "store":
                    batches, of_epoch = targets.epoch(number, count)
                for batch, pixels in zip(batches, bench.pixels(update, batches), strict=True):
                    target = bench.online_target(pixels, batch) if kind == "online" else next(of_epoch)
                    update.step(pixels, target, len(batch), Clock())
                synchronise()
                if number:
                    seconds[kind].append((time.perf_counter() - started) / len(batches))
    return seconds


def of_medians(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The ratio of the medians, and its 95 % interval by drawing rounds anew."""
    a, b = np.array(over), np.array(under)
    drawn = np.random.default_rng(0).integers(0, len(a), (4000, len(a)))
    found = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return statistics.median(over) / statistics.median(under), float(low), float(high)


def gmacs_at(encoder: Encoder, size: int) -> float:
    encoder.input_spec = dataclasses.replace(encoder.input_spec, size=size)
    return gmacs(encoder)


def seconds_of_target(method: Method) -> float:
    draw = np.random.default_rng(0)
    vectors = [draw.normal(size=(256, 2, 512)).astype(np.float32) for _ in range(3)]
    batch = Batch(np.zeros((256, 2), np.int64), np.zeros((256, 2), np.int64))
    started = time.perf_counter()
    for _ in range(20):
        method.target(vectors, batch, draw)
    return (time.perf_counter() - started) / 20


def main() -> None:
    compute = Compute(pick_device(argument("--device", "auto")), workers=int(argument("--workers", "2")))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), compute)
        seconds = blocks(bench, int(argument("--blocks", "12")))
        size = int(argument("--size", "224"))
        of_student = gmacs_at(bench.training.prepare(), size)
        of_teachers = [gmacs_at(encoder, size) for encoder in bench.teachers]
    result: dict[str, object] = {
        "device": str(compute.device),
        "student": argument("--student", "resnet18"),
        "teachers": argument("--teachers", "gem,ap-gem,solar"),
        "pixels": size,
        "pairs": bench.training.config.batch_pairs,
        "blocks": len(seconds["store"]),
        "steps_a_block": int(argument("--steps", "4")),
    }
    for label, over, under in (("store_over_bare", "store", "bare"), ("online_over_store", "online", "store")):
        result[label], result[f"{label}_low"], result[f"{label}_high"] = of_medians(seconds[over], seconds[under])
    result |= {f"seconds_{kind}": statistics.median(values) for kind, values in seconds.items()}
    result["seconds_target_256"] = seconds_of_target(bench.training.method)
    result["limit"] = (3 * of_student + sum(of_teachers)) / (3 * of_student)
    result["student_gmacs"], result["teachers_gmacs"] = of_student, sum(of_teachers)
    report("a training step: from the store over the bare student, and with the teachers there over it", result)


if __name__ == "__main__":
    main()
