"""Train a student against targets from the store, with no teacher in memory; an interrupted run continues."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cgd.config import DistillConfig
from cgd.data.images import read_image
from cgd.data.loading import ahead
from cgd.data.transforms import view_pixels
from cgd.data.views import CROP, FIXED, crop_name, from_row
from cgd.errors import InputError, MissingError, StoreError, WeightsError
from cgd.models import batchnorm
from cgd.models.checkpoints import read_checkpoint
from cgd.models.encoder import Encoder, EncoderSource
from cgd.progress import progress
from cgd.stages.extract import Compute
from cgd.stages.fuse import EpochTargets, TargetPlan, make_method
from cgd.stages.images import check_digest
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, canonical, identify, labels_digest, settings_of
from cgd.types import Batch, ImageList, Key, View

VERSION = 1
WEIGHTS, RECIPE, LOG, TRAINING = "model.safetensors", "recipe.json", "log.jsonl", "training.pt"
UNFOLD_IMAGES, UNFOLD_BATCH = 512, 64
WHOLE = View(0.0, 0.0, 1.0, 1.0, False)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillReport:
    """The student made, its size and cost, and where the time of a step went (seconds)."""

    key: Key
    folder: Path
    parameters: int
    gmacs: float
    epochs: int
    final_loss: float
    seconds_per_step: Mapping[str, float]
    skipped: bool


@dataclass
class _Clock:
    """Seconds per step by what they were spent on."""

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("data", "targets", "forward", "backward"), 0.0))
    steps: int = 0
    images: int = 0
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, what: str | None = None) -> None:
        now = time.perf_counter()
        if what:
            self.spent[what] += now - self._last
        self._last = now

    def per_step(self) -> dict[str, float]:
        return {k: v / max(self.steps, 1) for k, v in self.spent.items()}


def distill(
    *,
    store: FeatureStore,
    images: ImageList,
    teachers: Mapping[str, Mapping[str, Key]],
    source: EncoderSource,
    config: DistillConfig,
    method_config: Any,
    out: Path,
    compute: Compute,
) -> DistillReport:
    """Train the student of `source` on `images` against `teachers` (whitened vectors by label and view).

    `out` keeps the training state after every epoch, and in the end the student; the same call continues there.
    The student also becomes an artifact. On one CPU with fixed threads an interrupted run and an undisturbed one
    end in the same bytes.
    """
    numbers, keys = _views_used(teachers, config)
    plan = _plan(store, images, keys, numbers, config, method_config)
    identity = _identity(images, source, config, method_config, [k for ks in keys for k in ks])
    if not store.is_sealed(identity.key):
        _Training(store, images, plan, source, config, method_config, identity, out, compute).run()
        skipped = False
    else:
        skipped = True
        log.info("%s is trained already", identity.key)
    _export(store, identity.key, out)
    about = json.loads(store.get(identity.key).blob(RECIPE))
    last = json.loads(store.get(identity.key).blob(LOG).decode().splitlines()[-1])
    return DistillReport(
        identity.key, out, about["parameters"], about["gmacs"], config.epochs, last["loss"], last["seconds_per_step"], skipped
    )


def _views_used(teachers: Mapping[str, Mapping[str, Key]], config: DistillConfig) -> tuple[tuple[int, ...], list[tuple[Key, ...]]]:
    """View numbers that every teacher has (0 is the fixed view), and each teacher's keys for them."""
    if not teachers:
        raise MissingError("there is no teacher to distil from: run `cgd extract-teachers` and `cgd fit-whitening` first.")
    common = set.intersection(*(set(views) for views in teachers.values()))
    if config.views == FIXED:
        names = {0: FIXED} if FIXED in common else {}
    else:
        names = {int(v.removeprefix(f"{CROP}-")): v for v in common if v.startswith(f"{CROP}-")}
    if not names:
        wanted = "crops: extract with --views 4, or set distill.views=fixed" if config.views == CROP else "the fixed view"
        raise MissingError(f"the teachers {', '.join(teachers)} have no whitened vectors in common of {wanted}.")
    numbers = tuple(sorted(names))
    return numbers, [tuple(views[names[n]] for n in numbers) for views in teachers.values()]


def _plan(
    store: FeatureStore, images: ImageList, keys: Sequence[tuple[Key, ...]], numbers: tuple[int, ...], config: DistillConfig, method_config: Any
) -> TargetPlan:
    if config.positives == "label" and images.labels is None:
        raise InputError(f"{images.title} has no labels to pair images by: use --set distill.positives=image.")
    labels = images.labels if config.positives == "label" else None
    if make_method(config.method, method_config, config.fusion).needs.space != "whitened":
        raise InputError(f"the method {config.method} does not train on whitened vectors.")
    return TargetPlan(
        str(store.files.root), tuple(keys), numbers, labels, config.method, method_config, config.fusion, config.batch_pairs, config.seed
    )


def _identity(images: ImageList, source: EncoderSource, config: DistillConfig, method_config: Any, inputs: Sequence[Key]) -> Identity:
    settings = {
        **{name: value for name, value in settings_of(config).items() if name != "init"},  # a path; its digest is the student's
        "dataset": images.name,
        "split": images.split,
        config.method: settings_of(method_config),
        "student": source.identity,
        "labels": labels_digest(images) if config.positives == "label" else None,
    }
    return identify("students", [images.title, source.label, f"seed{config.seed}"], VERSION, settings, inputs)


class _Training:
    """One student's training, from its first step or from the last epoch that `out` holds."""

    def __init__(
        self,
        store: FeatureStore,
        images: ImageList,
        plan: TargetPlan,
        source: EncoderSource,
        config: DistillConfig,
        method_config: Any,
        identity: Identity,
        out: Path,
        compute: Compute,
    ) -> None:
        self.store, self.images, self.plan, self.source = store, images, plan, source
        self.config, self.method_config, self.identity, self.out, self.compute = config, method_config, identity, out, compute
        self.method = make_method(config.method, method_config, config.fusion)
        artifacts = {n: store.get(k) for n, k in zip(plan.views, plan.teachers[0], strict=True)}
        self.geometry = {n: a.read("views") for n, a in artifacts.items() if "views" in a.arrays}
        self.digests = next(iter(artifacts.values())).read("digests")
        if len(self.digests) != len(images):
            raise InputError(f"{images.title} has {len(images)} images, the store's vectors have {len(self.digests)}.")

    def run(self) -> None:
        """Train to the end and publish the student."""
        encoder = self._prepare()
        parameters = list(encoder.parameters())
        optimiser = torch.optim.Adam(parameters, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        history = self._resume(encoder, optimiser)
        steps = 0
        with EpochTargets(self.plan) as targets:
            for epoch in range(len(history), self.config.epochs):
                batches, stream = targets.epoch(epoch, self.config.epochs - 1)
                steps = len(batches)
                history.append(self._epoch(epoch, encoder, optimiser, batches, stream))
                line = history[-1]
                log.info(
                    "epoch %d of %d: loss %.4f, %.0f images/s, %s left",
                    epoch + 1, self.config.epochs, line["loss"], line["images_per_second"],
                    _duration(line["seconds"] * (self.config.epochs - epoch - 1)),
                )  # fmt: skip
                self._checkpoint(encoder, optimiser, history)
        log.debug("%d steps in the last epoch", steps)
        self._publish(encoder, history)
        (self.out / TRAINING).unlink(missing_ok=True)

    def _prepare(self) -> Encoder:
        """The student on its device, its batch norm as configured."""
        encoder = self.source.build()
        self.norm = batchnorm.decide(encoder, self.config.batch_norm, self.source.weights is not None)
        if self.norm != "train":
            log.info("batch norm of %s was folded away: %s", self.source.label, {"freeze": "frozen", "unfold": "un-folded"}[self.norm])
        encoder = encoder.to(self.compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.norm == "unfold" and not (self.out / TRAINING).is_file():
            rows = np.linspace(0, len(self.images) - 1, min(UNFOLD_IMAGES, len(self.images))).astype(int)
            readable = [int(r) for r in rows if read_image(self.images.root, self.images.paths[r]).image is not None]
            number = self.plan.views[0]
            pixels = [self._load(encoder, (r, number)) for r in readable]
            parts = [np.stack(pixels[i : i + UNFOLD_BATCH]) for i in range(0, len(pixels), UNFOLD_BATCH)]
            batchnorm.unfold(encoder, (self._to_device(p) for p in parts))
        return encoder

    def _epoch(
        self, epoch: int, encoder: Encoder, optimiser: torch.optim.Optimizer, batches: Sequence[Batch], targets: Iterator[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """One pass over `batches`; returns a line of the log."""
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, epoch, 2]).generate_state(1)[0]))
        encoder.train()
        if self.norm == "freeze":
            batchnorm.freeze(encoder)
        clock, losses, weights = _Clock(), [], []
        started = time.perf_counter()
        samples = [(int(r), int(v)) for b in batches for r, v in zip(b.rows.ravel(), b.views.ravel(), strict=True)]
        depth = 2 * max(len(b) for b in batches)
        loader = ahead(lambda sample: self._load(encoder, sample), samples, self.compute.workers, depth)
        with progress(len(samples), f"epoch {epoch + 1} of {self.config.epochs}") as bar:
            for step, batch in enumerate(batches):
                self._schedule(optimiser, epoch * len(batches) + step, self.config.epochs * len(batches))
                clock.lap()
                pixels = self._to_device(np.stack([next(loader) for _ in range(2 * len(batch))]))
                clock.lap("data")
                target = {k: torch.from_numpy(v).to(self.compute.device) for k, v in next(targets).items()}
                clock.lap("targets")
                embedding = encoder(pixels)
                loss = self.method.loss(embedding.unflatten(0, (len(batch), 2)), target)
                value = loss.item()
                clock.lap("forward")
                if not math.isfinite(value):
                    raise InputError(f"the loss is {value} in epoch {epoch + 1}: lower distill.learning_rate.")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                clock.lap("backward")
                clock.steps += 1
                losses.append(value)
                weights.append(len(batch))
                bar.update(2 * len(batch))
                bar.set_postfix(loss=f"{value:.4f}", refresh=False)
        next(targets, None)  # lets the reader close and remove its file
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1,
            "loss": float(np.average(losses, weights=weights)),
            "learning_rate": optimiser.param_groups[0]["lr"],
            "seconds": seconds,
            "images_per_second": len(samples) / seconds,
            "seconds_per_step": clock.per_step(),
        }

    def _schedule(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Cosine from the first to the final learning rate, stepped every iteration."""
        first, final = self.config.learning_rate, self.config.final_learning_rate
        for group in optimiser.param_groups:
            group["lr"] = final + (first - final) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def _load(self, encoder: Encoder, sample: tuple[int, int]) -> np.ndarray:
        """The pixels of one (row, view), the very crop the teachers saw, at the student's size."""
        row, number = sample
        decoded = read_image(self.images.root, self.images.paths[row])
        check_digest(self.images, row, decoded.digest, self.digests[row])
        assert decoded.image is not None, "an image with the digest of a readable one was read"
        view = from_row(self.geometry[number][row]) if number in self.geometry else WHOLE
        return view_pixels(decoded.image, encoder.input_spec, view, self.config.image_size)

    def _to_device(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).to(self.compute.device, memory_format=torch.channels_last)

    def _checkpoint(self, encoder: Encoder, optimiser: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
        state = {
            "student": str(self.identity.key),
            "network": encoder.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "history": history,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        _replace(self.out / TRAINING, buffer.getvalue())

    def _resume(self, encoder: Encoder, optimiser: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Load the last finished epoch of this very student, if `out` holds one; the log up to it."""
        path = self.out / TRAINING
        if not path.is_file():
            return []
        try:
            state = torch.load(path, map_location=self.compute.device, weights_only=True)
            if state["student"] != str(self.identity.key):
                raise StoreError(
                    f"{self.out} holds the unfinished training of {state['student']}, not of {self.identity.key}: "
                    "continue that with its own settings, or give another --out."
                )
            encoder.network.load_state_dict(state["network"])
            optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            if isinstance(error, StoreError):
                raise
            raise WeightsError(f"{path} is damaged ({str(error).splitlines()[0]}): delete it to train from the start.") from error
        history: list[dict[str, Any]] = state["history"]
        log.info("continuing after epoch %d of %d", len(history), self.config.epochs)
        return history

    def _publish(self, encoder: Encoder, history: Sequence[Mapping[str, Any]]) -> None:
        weights = {k: v.detach().cpu().contiguous() for k, v in encoder.network.state_dict().items()}
        about = {
            "student": self.source.text,
            "init": self.source.digest,
            "embed_dim": encoder.embed_dim,
            "input": dataclasses.asdict(encoder.input_spec),
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "gmacs": gmacs(encoder),
            "batch_norm": self.norm,
            "distill": dataclasses.asdict(self.config),
            self.config.method: dataclasses.asdict(self.method_config),
            "inputs": list(self.identity.inputs),
        }
        blobs = {
            WEIGHTS: save(weights),
            RECIPE: json.dumps(about, indent=1, sort_keys=True).encode() + b"\n",
            LOG: b"".join(canonical(line) + b"\n" for line in history),
        }
        self.store.write_whole(self.identity, {}, attributes={"label": self.source.label}, blobs=blobs)


def gmacs(encoder: Encoder) -> float:
    """Multiply-accumulates in units of 1e9 for one image of the encoder's size at scale 1.

    torch counts every multiply-add twice.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size = encoder.input_spec.size
    device = next(encoder.parameters()).device
    was_training = encoder.training
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder.eval()(torch.zeros(1, 3, size, size, device=device))
    encoder.train(was_training)
    return float(counter.get_total_flops()) / 2 / 1e9


def _export(store: FeatureStore, key: Key, out: Path) -> None:
    """Copy the student's files into `out`."""
    artifact = store.get(key)
    for name in (WEIGHTS, RECIPE, LOG):
        data = artifact.blob(name)
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            _replace(out / name, data)


def _replace(path: Path, data: bytes) -> None:
    """Write whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.part")
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; mend that and repeat the same command, it continues.") from error


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
