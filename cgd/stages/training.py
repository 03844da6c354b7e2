"""The loop that trains one student, from its first step or from the last one it kept."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgd.config import DistillConfig
from cgd.data.images import read_image
from cgd.data.loading import ahead
from cgd.data.transforms import view_pixels
from cgd.data.views import from_row
from cgd.errors import InputError, StoreError, WeightsError
from cgd.models import batchnorm
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.progress import progress
from cgd.stages.fuse import EpochTargets, TargetPlan, epoch_targets, method_of
from cgd.stages.images import check_digest
from cgd.store.feature_store import FeatureStore
from cgd.store.files import replace_file
from cgd.types import Batch, ImageList, Target, View

STATE = "training.pt"
KEEP_SECONDS = 300.0  # an interrupted epoch loses at most so much
UNFOLD_IMAGES, UNFOLD_BATCH = 512, 64
WHOLE = View(0.0, 0.0, 1.0, 1.0, False)
Line = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass
class _Clock:
    """Seconds by what they were spent on, and the number of steps."""

    spent: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "targets", "forward", "backward"), 0.0)
    )
    steps: int = 0
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, what: str | None = None) -> None:
        """Add the time since the last lap to `what`, or to nothing."""
        now = time.perf_counter()
        if what:
            self.spent[what] += now - self._last
        self._last = now

    def per_step(self) -> dict[str, float]:
        return {what: seconds / max(self.steps, 1) for what, seconds in self.spent.items()}


@dataclass
class _Begun:
    """What the steps of the current epoch gave so far: their losses, and what the method tells of its targets."""

    losses: list[float] = field(default_factory=list)
    told: list[dict[str, list[float]]] = field(default_factory=list)


class Training:
    """One student in training; `out` holds its state, under the name of the student to be.

    The state is kept after every epoch and every five minutes: network, optimiser, random state and what the epoch's
    steps gave. The schedule and all other randomness follow from the step and the seed.
    """

    def __init__(
        self,
        store: FeatureStore,
        images: ImageList,
        plan: TargetPlan,
        source: EncoderSource,
        config: DistillConfig,
        name: str,
        out: Path,
        compute: Compute,
    ) -> None:
        self.images, self.plan, self.source, self.config = images, plan, source, config
        self.name, self.out, self.compute = name, out, compute
        self.method = method_of(plan)
        artifacts = {number: store.get(key) for number, key in zip(plan.views, plan.teachers[0], strict=True)}
        self.geometry = {number: a.read("views") for number, a in artifacts.items() if "views" in a.arrays}
        self.digests = next(iter(artifacts.values())).read("digests")

    def run(self) -> tuple[Encoder, list[Line]]:
        """Train to the end; the student and a line per epoch: loss and rates, which differ between two equal runs."""
        encoder = self.prepare()
        optimiser = torch.optim.Adam(
            encoder.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        lines, begun = self._resume(encoder, optimiser)
        with EpochTargets(self.plan) as targets:
            for _ in range(len(lines), self.config.epochs):
                of_epoch = targets.epoch(len(lines), self.config.epochs - 1)
                lines.append(self._epoch(lines, begun, encoder, optimiser, *of_epoch))
                begun = _Begun()
                self._tell(lines)
                self._keep(encoder, optimiser, lines, begun)
        return encoder, lines

    def measure(self) -> dict[str, float]:
        """Steps of an epoch, bytes of its targets, and seconds of all epochs to expect; two steps are tried."""
        batches, targets = epoch_targets(self.plan, 0)
        encoder = self.prepare()
        optimiser = torch.optim.Adam(encoder.parameters(), lr=0.0)
        self.train_mode(encoder)
        clock = _Clock()
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            samples = [(int(r), int(v)) for r, v in zip(batches[0].rows.ravel(), batches[0].views.ravel(), strict=True)]
            loaded = ahead(lambda sample: self.load(encoder, sample), samples, self.compute.workers, len(samples))
            self._step(encoder, optimiser, self.to_device(np.stack(list(loaded))), targets[0], clock)
            seconds = time.perf_counter() - started
        pairs = sum(len(b) for b in batches)
        return {
            "epochs": self.config.epochs,
            "steps_per_epoch": len(batches),
            "target_bytes": sum(a.nbytes for target in targets for a in target.values()),
            "seconds_per_step": seconds,
            "seconds": seconds * self.config.epochs * pairs / len(batches[0]),
        }

    def prepare(self) -> Encoder:
        """The student on its device, its batch norm as configured."""
        encoder = self.source.build()
        self.norm = batchnorm.decide(encoder, self.config.batch_norm, self.source.weights is not None)
        if self.norm != "train":
            done = {"freeze": "frozen", "unfold": "un-folded"}[self.norm]
            log.info("batch norm of %s was folded away: %s", self.source.label, done)
        encoder = encoder.to(self.compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.norm == "unfold" and not (self.out / STATE).is_file():
            batchnorm.unfold(encoder, self._unfold_batches(encoder))
        return encoder

    def train_mode(self, encoder: Encoder) -> None:
        """Training mode, batch norm as configured."""
        encoder.train()
        if self.norm == "freeze":
            batchnorm.freeze(encoder)

    def _unfold_batches(self, encoder: Encoder) -> Iterator[torch.Tensor]:
        rows = np.linspace(0, len(self.images) - 1, min(UNFOLD_IMAGES, len(self.images))).astype(int)
        readable = [int(r) for r in rows if read_image(self.images.root, self.images.paths[r]).image is not None]
        for start in range(0, len(readable), UNFOLD_BATCH):
            part = readable[start : start + UNFOLD_BATCH]
            yield self.to_device(np.stack([self.load(encoder, (row, self.plan.views[0])) for row in part]))

    def _epoch(
        self,
        lines: list[Line],
        begun: _Begun,
        encoder: Encoder,
        optimiser: torch.optim.Optimizer,
        batches: Sequence[Batch],
        targets: Iterator[Target],
    ) -> Line:
        """The rest of one pass over `batches`; all randomness in it comes from the seed and the epoch."""
        epoch, first = len(lines), len(begun.losses)
        if not first:
            torch.manual_seed(int(np.random.SeedSequence([self.config.seed, epoch, 2]).generate_state(1)[0]))
        self.train_mode(encoder)
        clock, started = _Clock(), time.perf_counter()
        kept = started
        rest = batches[first:]
        samples = [(int(r), int(v)) for b in rest for r, v in zip(b.rows.ravel(), b.views.ravel(), strict=True)]
        depth = 2 * max(len(b) for b in batches)
        loader = ahead(lambda sample: self.load(encoder, sample), samples, self.compute.workers, depth)
        with progress(len(samples), f"epoch {epoch + 1} of {self.config.epochs}") as bar:
            for step, (batch, target) in enumerate(zip(rest, islice(targets, first, None), strict=True), first):
                self._schedule(optimiser, epoch * len(batches) + step, self.config.epochs * len(batches))
                clock.lap("targets")
                pixels = self.to_device(np.stack([next(loader) for _ in range(batch.rows.size)]))
                clock.lap("data")
                begun.losses.append(self._step(encoder, optimiser, pixels, target, clock))
                begun.told.append({name: target[name].tolist() for name in self.method.tells})
                bar.update(batch.rows.size)
                bar.set_postfix(loss=f"{begun.losses[-1]:.4f}", refresh=False)
                if time.perf_counter() - kept >= KEEP_SECONDS:
                    self._keep(encoder, optimiser, lines, begun)
                    kept = time.perf_counter()
                clock.lap()
        seconds = time.perf_counter() - started
        sizes = [len(b) for b in batches]
        return {
            "epoch": epoch + 1,
            "loss": float(np.average(begun.losses, weights=sizes)),
            "learning_rate": optimiser.param_groups[0]["lr"],
            "teachers": {
                name: np.average([told[name] for told in begun.told], axis=0, weights=sizes).tolist()
                for name in self.method.tells
            },
            "seconds": seconds,
            "images_per_second": len(samples) / seconds,
            "seconds_per_step": clock.per_step(),
        }

    def _step(
        self, encoder: Encoder, optimiser: torch.optim.Optimizer, pixels: torch.Tensor, target: Target, clock: _Clock
    ) -> float:
        """One update on a batch, `pixels` (B V, 3, H, W) a pair's two in a row; the loss before it."""
        goal = {name: torch.from_numpy(values).to(self.compute.device) for name, values in target.items()}
        embedding = encoder(pixels)
        loss = self.method.loss(embedding.unflatten(0, (-1, self.method.needs.images_per_row)), goal)
        value = loss.item()
        clock.lap("forward")
        if not math.isfinite(value):
            raise InputError(f"the loss of {self.name} became {value}: lower distill.learning_rate.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        clock.lap("backward")
        clock.steps += 1
        return value

    def _schedule(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Cosine from the first to the final learning rate, stepped every iteration."""
        first, final = self.config.learning_rate, self.config.final_learning_rate
        for group in optimiser.param_groups:
            group["lr"] = final + (first - final) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def load(self, encoder: Encoder, sample: tuple[int, int]) -> np.ndarray:
        """The pixels of one (row, view), the very crop the teachers saw, at the student's size."""
        row, number = sample
        decoded = read_image(self.images.root, self.images.paths[row])
        check_digest(self.images, row, decoded.digest, self.digests[row])
        assert decoded.image is not None, "its bytes are those that were decoded at extraction"
        view = from_row(self.geometry[number][row]) if number in self.geometry else WHOLE
        return view_pixels(decoded.image, encoder.input_spec, view, self.config.image_size)

    def to_device(self, pixels: np.ndarray) -> torch.Tensor:
        """(B, 3, H, W) on the device, channels last in memory."""
        return torch.from_numpy(pixels).to(self.compute.device, memory_format=torch.channels_last)

    def _tell(self, lines: Sequence[Line]) -> None:
        done, line = len(lines), lines[-1]
        left = line["seconds"] * (self.config.epochs - done)
        log.info(
            "epoch %d of %d: loss %.4f, %.0f images/s, %s left",
            done,
            self.config.epochs,
            line["loss"],
            line["images_per_second"],
            f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min",
        )

    def _keep(self, encoder: Encoder, optimiser: torch.optim.Optimizer, lines: list[Line], begun: _Begun) -> None:
        device = self.compute.device
        state = {
            "student": self.name,
            "network": encoder.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "lines": lines,
            "begun": dataclasses.asdict(begun),
            "random": torch.get_rng_state(),
            "random_of_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        replace_file(self.out / STATE, buffer.getvalue())

    def _resume(self, encoder: Encoder, optimiser: torch.optim.Optimizer) -> tuple[list[Line], _Begun]:
        """Load the last kept state of this very student, if `out` holds one; the log up to it, and the epoch begun."""
        path = self.out / STATE
        if not path.is_file():
            return [], _Begun()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            name = state["student"]
            if name == self.name:
                encoder.network.load_state_dict(state["network"])
                optimiser.load_state_dict(state["optimiser"])
                torch.set_rng_state(state["random"])
                if state["random_of_device"] is not None and self.compute.device.type == "cuda":
                    torch.cuda.set_rng_state(state["random_of_device"], self.compute.device)
                lines, begun = state["lines"], _Begun(**state["begun"])
        except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{path} is damaged ({reason}): delete it to train from the start.") from error
        if name != self.name:
            raise StoreError(
                f"{self.out} holds the unfinished training of {name}, not of {self.name}: "
                "continue that one with its own settings, or give another --out."
            )
        steps = f" and {len(begun.losses)} steps of the next one" if begun.losses else ""
        log.info("continuing after epoch %d of %d%s", len(lines), self.config.epochs, steps)
        return lines, begun


def forget(out: Path, name: str) -> None:
    """Remove the state that `out` keeps for resuming the student `name`, now that it is finished."""
    path = out / STATE
    if path.is_file() and torch.load(path, map_location="cpu", weights_only=True)["student"] == name:
        path.unlink()
