"""The loop that trains one student, from its first step or from the last one it kept."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgd import launch
from cgd.config import DistillConfig
from cgd.data.images import read_image
from cgd.engines import Engine
from cgd.engines.local import LOCAL
from cgd.errors import InputError
from cgd.methods._maps import ATTENTION, FEATURES, WithMaps
from cgd.models import batchnorm
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.models.maps import GRID, Mapped
from cgd.progress import progress
from cgd.stages.checkpoint import Checkpoint, Stateful
from cgd.stages.curves import Curves
from cgd.stages.fuse import EpochTargets, TargetPlan, epoch_batches, epoch_targets, method_of
from cgd.stages.processes import Processes
from cgd.stages.student_pixels import FULL, Sample, StudentPixels
from cgd.stages.update import Clock, Update
from cgd.stages.validation import leave_one_out
from cgd.store.feature_store import FeatureStore
from cgd.store.files import replace_file
from cgd.store.keys import canonical
from cgd.types import Batch, ImageList, Target

LOG = "log.jsonl"
LOGGED = (
    "epoch",
    "loss",
    "learning_rate",
    "teachers",
    "validation",
)  # equal for equal runs; rates go to the provenance
KEEP_SECONDS = 300.0  # an interrupted epoch loses at most so much
UNFOLD_IMAGES, EMBED_BATCH = 512, 64
Line = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass
class Begun:
    """What the steps of the current epoch gave so far: their losses, and what the method tells of its targets."""

    losses: list[float] = field(default_factory=list)
    told: list[dict[str, list[float]]] = field(default_factory=list)


@dataclass
class Progress:
    """A line per finished epoch, the epoch begun, and the best epoch's score and tensors where one is told."""

    lines: list[Line] = field(default_factory=list)
    begun: Begun = field(default_factory=Begun)
    best: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trained:
    """A student, its lines, and by which score its epoch was chosen (`epoch`, `mAP`, `images`), if by one."""

    encoder: Encoder
    lines: list[Line]
    best: Mapping[str, Any] | None


class Training:
    """One student in training; `out` holds its state, under the name of the student to be.

    The state is kept after every epoch and every five minutes: network, optimiser, random state and what the epoch's
    steps gave. The schedule and all other randomness follow from the step and the seed. Where classes are held out,
    `scored` are the rows of theirs that tell the best epoch.
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
        processes: Processes = Processes(),  # noqa: B008
        scored: np.ndarray | None = None,
        engine: Engine = LOCAL,
    ) -> None:
        self.store, self.images, self.plan, self.source, self.config = store, images, plan, source, config
        self.out, self.compute, self.processes, self.scored = out, compute, processes, scored
        self.engine = engine
        self.method = method_of(plan)
        self.checkpoint = Checkpoint(out, name, compute.device, processes.count)
        self.pixels = StudentPixels(store, images, plan, config, compute)
        self.width = store.get(plan.teachers[0][0]).shape("vectors")[-1]

    def run(self) -> Trained:
        """Train to the end; a line per epoch has its loss, and rates, which differ between two equal runs."""
        encoder = self.prepare()
        update = self._update(encoder)
        parts: dict[str, Stateful] = {"network": encoder.network, "optimiser": update.optimiser}
        if isinstance(update.encoder, Mapped):
            parts["adapter"] = update.encoder.adapter
        done = self._resume(parts)
        self.processes.from_first(list(update.encoder.state_dict().values()))
        curves = Curves(self.out if self.compute.curves and self.processes.first else None)
        with self._targets() as targets, curves:
            for epoch in range(len(done.lines), self.config.epochs):
                batches, of_epoch = targets(epoch)
                self.processes.told_by_first(None)  # that its targets are there, which may take long
                line = self._epoch(epoch, done, update, batches, of_epoch, parts)
                if self.scored is not None and self.processes.first:
                    self._validate(encoder, line, done)
                curves.add(epoch * len(batches), done.begun.losses, self._rates(epoch, len(batches)), line)
                done.lines.append(line)
                done.begun = Begun()
                self._tell(done.lines)
                self._keep(parts, done)
        best = dict(done.best) if done.best else None
        if best:
            encoder.network.load_state_dict(best.pop("network"))
        return Trained(encoder, done.lines, best)

    def measure(self) -> dict[str, float]:
        """Steps of an epoch, bytes of its targets, and seconds of all epochs to expect; two steps are tried."""
        batches, targets = epoch_targets(self.plan, 0)
        encoder = self.prepare()
        update = self._update(encoder)
        self._schedule(update, 0.0)
        self.train_mode(update.encoder)
        samples = self.pixels.samples(0, 0, batches[0])
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            stream = self.pixels.stream(samples, encoder.input_spec, len(samples))
            update.step(self.pixels.to_device(list(stream)), targets[0], len(batches[0]), Clock())
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
        self._check_width(encoder)
        encoder = encoder.to(self.compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.norm == "unfold" and not self.checkpoint.path.is_file():
            batchnorm.unfold(encoder, self._unfold_batches(encoder))
        if self.norm != "freeze" and any(True for _ in batchnorm.norms(encoder)):
            self._tell_of_statistics()
        return encoder

    def _update(self, encoder: Encoder) -> Update:
        """What takes a step: with layers that compare feature maps the student gives its own along, which end here."""
        if not self.plan.maps:
            return Update(encoder, self.method, self.config, self.processes)
        found = dict(self.plan.maps)
        settings = {kind: self.store.get(keys[0]).settings["encoder"]["options"] for kind, keys in found.items()}
        grids = {kind: int(options.get("grid", GRID)) for kind, options in settings.items()}
        hint = None
        if FEATURES in found:
            values = self.store.get(found[FEATURES][0]).shape("vectors")[-1]
            hint = values // grids[FEATURES] ** 2, grids[FEATURES]
        mapped = Mapped(encoder, hint, grids.get(ATTENTION, 0), self.config.seed)
        weights = self.plan.method_config
        method = WithMaps(self.method, encoder.embed_dim, weights.hint, weights.attention)
        return Update(mapped, method, self.config, self.processes)

    def _check_width(self, encoder: Encoder) -> None:
        """A method that compares the student's vectors with its teachers' needs them as wide, and says so first."""
        if self.method.needs.width and encoder.embed_dim != self.width:
            raise InputError(
                f"the method {self.config.method} needs a student as wide as its teachers' vectors: "
                f"{self.source.label} has {encoder.embed_dim} dimensions, they have {self.width}: "
                f"give the student ?dim={self.width}, or whiten to --dim {encoder.embed_dim}."
            )

    def _tell_of_statistics(self) -> None:
        """Batch statistics are those of what is passed forward at once, which is not always the batch."""
        share = -(-self.config.batch_pairs // self.processes.count) * self.method.needs.images_per_row
        at_once = min(share, self.config.chunk_images or share)
        if at_once < self.config.batch_pairs * self.method.needs.images_per_row:
            log.warning(
                "batch norm takes its statistics from %d images at a time, not from the whole batch, so the student "
                "depends on chunks and the number of processes; with distill.batch_norm=freeze it does not.",
                at_once,
            )

    def train_mode(self, encoder: Encoder | Mapped) -> None:
        """Training mode, batch norm as configured."""
        encoder.train()
        if self.norm == "freeze":
            batchnorm.freeze(encoder)

    def _unfold_batches(self, encoder: Encoder) -> Iterator[torch.Tensor]:
        seen = self.pixels.seen
        seen[list(self.plan.withheld)] = False
        trained = np.flatnonzero(seen)
        rows = trained[np.linspace(0, len(trained) - 1, min(UNFOLD_IMAGES, len(trained))).astype(int)]
        readable = [int(r) for r in rows if read_image(self.images.root, self.images.paths[r]).image is not None]
        for start in range(0, len(readable), EMBED_BATCH):
            part = readable[start : start + EMBED_BATCH]
            samples = [Sample(row, self.plan.views[0]) for row in part]
            yield self.pixels.to_device([self.pixels.load(sample, encoder.input_spec) for sample in samples])

    @contextlib.contextmanager
    def _targets(self) -> Iterator[Any]:
        """Of an epoch its batches, and their targets in the first process; the others need none."""
        if not self.processes.first:
            yield lambda epoch: (epoch_batches(self.plan, epoch), repeat(None))
            return
        with EpochTargets(self.plan, self.engine) as targets:
            yield lambda epoch: targets.epoch(epoch, self.config.epochs - 1)

    def _epoch(
        self,
        epoch: int,
        done: Progress,
        update: Update,
        batches: Sequence[Batch],
        targets: Iterator[Target | None],
        parts: Mapping[str, Stateful],
    ) -> Line:
        """The rest of one pass over `batches`; all randomness in it comes from the seed and the epoch."""
        begun, first = done.begun, len(done.begun.losses)
        if not first:
            _seed(self.config.seed, epoch, 2)
        self.train_mode(update.encoder)
        clock, started = Clock(), time.perf_counter()
        kept = started
        samples = [
            self.pixels.samples(epoch, number, batch, self.processes.share(len(batch)))
            for number, batch in enumerate(batches)
            if number >= first
        ]
        rates, depth = self._rates(epoch, len(batches)), 2 * max(map(len, samples), default=1)
        flat = [sample for of_batch in samples for sample in of_batch]
        stream = self.pixels.stream(flat, update.encoder.input_spec, depth)
        targets = islice(targets, first, None)
        with progress(len(flat), f"epoch {epoch + 1} of {self.config.epochs}") as bar:
            for step, (batch, of_batch) in enumerate(zip(batches[first:], samples, strict=True), first):
                target = next(targets)
                self._schedule(update, rates[step])
                clock.lap("targets")
                pixels = self.pixels.to_device(list(islice(stream, len(of_batch))))
                clock.lap("data")
                if self.processes.count > 1:  # each draws of its own, and what it draws after a restart is the same
                    _seed(self.config.seed, epoch, 2, step, self.processes.rank)
                begun.losses.append(update.step(pixels, target, len(batch), clock))
                if target is not None:
                    begun.told.append({name: target[name].tolist() for name in self.method.tells})
                bar.update(len(of_batch))
                bar.set_postfix(loss=f"{begun.losses[-1]:.4f}", refresh=False)
                if time.perf_counter() - kept >= KEEP_SECONDS:
                    self._keep(parts, done)
                    kept = time.perf_counter()
                clock.lap()
        seconds = time.perf_counter() - started
        sizes = [len(b) for b in batches]
        return {
            "epoch": epoch + 1,
            "loss": float(np.average(begun.losses, weights=sizes)),
            "learning_rate": rates[-1],
            "teachers": {
                name: np.average([told[name] for told in begun.told], axis=0, weights=sizes).tolist()
                for name in (self.method.tells if self.processes.first else ())
            },
            "seconds": seconds,
            "images_per_second": sum(b.rows.size for b in batches[first:]) / seconds,
            "seconds_per_step": clock.per_step(),
        }

    def _rates(self, epoch: int, steps: int) -> list[float]:
        """Learning rates of an epoch's steps: cosine from the first to the final one over the whole training."""
        first, final = self.config.learning_rate, self.config.final_learning_rate
        share = (np.arange(steps) + epoch * steps) / (self.config.epochs * steps)
        return [final + (first - final) * 0.5 * (1 + math.cos(math.pi * s)) for s in share]

    def _schedule(self, update: Update, rate: float) -> None:
        for group in update.optimiser.param_groups:
            group["lr"] = rate

    def _validate(self, encoder: Encoder, line: Line, done: Progress) -> None:
        """Add to `line` the mAP of the classes held out, by full images, and keep the best epoch's tensors."""
        assert self.scored is not None
        assert self.images.labels is not None
        encoder.eval()
        found = []
        samples = [Sample(int(row), FULL) for row in self.scored]
        stream = self.pixels.stream(samples, encoder.input_spec, 2 * EMBED_BATCH)
        with torch.inference_mode():
            while part := list(islice(stream, EMBED_BATCH)):
                found.append(encoder(self.pixels.to_device(part)).cpu().numpy())
        line["validation"] = leave_one_out(np.concatenate(found), [self.images.labels[row] for row in self.scored])
        if done.best is None or line["validation"] > done.best["mAP"]:
            tensors = {name: tensor.detach().clone() for name, tensor in encoder.network.state_dict().items()}
            best = {"epoch": line["epoch"], "mAP": line["validation"], "images": len(self.scored)}
            done.best = {**best, "network": tensors}

    def _tell(self, lines: Sequence[Line]) -> None:
        done, line = len(lines), lines[-1]
        left = line["seconds"] * (self.config.epochs - done)
        log.info(
            "epoch %d of %d: loss %.4f, %s%.0f images/s, %s left",
            done,
            self.config.epochs,
            line["loss"],
            f"validation mAP {line['validation']:.2f}, " if "validation" in line else "",
            line["images_per_second"],
            f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min",
        )

    def _keep(self, parts: Mapping[str, Stateful], done: Progress) -> None:
        if self.processes.first:
            plain = {"lines": done.lines, "begun": dataclasses.asdict(done.begun), "best": done.best}
            self.checkpoint.keep(parts, plain)
            if done.lines:
                replace_file(self.out / LOG, log_lines(done.lines))

    def _resume(self, parts: Mapping[str, Stateful]) -> Progress:
        """Load what was kept of this very student, if anything: the epochs done, and the one begun.

        After a restart another machine may have become the first, with a folder of its own: the newest state counts,
        whoever has it.
        """
        own = None
        with self.processes.all_ready():
            if launch.first_here():
                own = self.checkpoint.read(("lines", "begun"))
        reached = (len(own["lines"]), len(own["begun"]["losses"])) if own else (-1, 0)
        told = self.processes.told_by_all((reached, self.processes.place))
        (newest, place), holder = max(zip(told, range(len(told)), strict=True), key=lambda each: (each[0][0], -each[1]))
        if newest[0] < 0:
            if launch.started_again():
                log.warning("no machine has a state of this training in its --out: it begins anew")
            return Progress()
        state = self.processes.told_by(holder, own)
        assert state is not None
        if holder:
            log.info("the newest state of this training is that of %s", place)
        self.checkpoint.restore(state, parts)
        done = Progress(state["lines"], Begun(**state["begun"]), state.get("best"))
        steps = f" and {len(done.begun.losses)} steps of the next one" if done.begun.losses else ""
        log.info("continuing after epoch %d of %d%s", len(done.lines), self.config.epochs, steps)
        return done


def _seed(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def log_lines(lines: Sequence[Line]) -> bytes:
    """A JSON object per epoch, equal for equal runs."""
    return b"".join(canonical({name: line[name] for name in LOGGED if name in line}) + b"\n" for line in lines)
