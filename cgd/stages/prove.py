"""Prove that training from the store is training with the teachers there: same vectors, same loss at equal weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cgd.config import ExtractConfig
from cgd.data.views import FIXED, crop_name
from cgd.errors import InputError
from cgd.models.encoder import Encoder, EncoderSource
from cgd.progress import progress
from cgd.retrieval.vectors import combine_scales, l2
from cgd.retrieval.whitening import whiten
from cgd.stages.embed import Block, Look, Meter, embed_rows
from cgd.stages.fuse import epoch_batches, gather_views, usable_rows
from cgd.stages.training import Training
from cgd.stages.whiten import read_whitening
from cgd.store.feature_store import FeatureStore
from cgd.types import Batch, ImageList, Key, Target, Whitening

# A one-pixel shift of a crop moves cosines by more; another order of additions, or half precision, by less.
LEAST_COSINE = 0.9999
MOST_DIFFERENCE = {"float32": 1e-5, "float16": 1e-3}


@dataclass(frozen=True)
class Proof:
    """What was compared and how far apart it was; `problems` is empty where the proof succeeded."""

    samples: int
    min_cosine: Mapping[str, float]
    geometry_differs: int
    steps: int
    max_loss_difference: float
    max_loss_difference_float32: float
    loss: Sequence[float]
    precision: str
    problems: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd prove --json`."""
        return {
            **dataclasses.asdict(self),
            "min_cosine": min(self.min_cosine.values()),
            "cosines": dict(self.min_cosine),
            "allowed": {"min_cosine": LEAST_COSINE, "max_loss_difference": MOST_DIFFERENCE},
            "proven": not self.problems,
        }


class _Live:
    """The teachers themselves, looking at the images of a batch as they would in training."""

    def __init__(self, training: Training, sources: Sequence[EncoderSource], config: ExtractConfig) -> None:
        self.training, self.config = training, config
        self.encoders: list[Encoder] = [s.build().to(training.compute.device).eval() for s in sources]

    def look(self, rows: np.ndarray, views: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Raw vectors (M, S, D_k) of each teacher for `rows` (M,) under `views` (M,), and crops' geometry (M, 5)."""
        found: list[Any] = [None] * len(self.encoders)
        geometry = np.full((len(rows), 5), np.nan, np.float32)
        for number in np.unique(views):
            here = np.flatnonzero(views == number)
            blocks = self._embed(rows[here], int(number))
            if number:
                geometry[here] = blocks[0]["views"]
            for k, block in enumerate(blocks):
                if found[k] is None:
                    found[k] = np.empty((len(rows), *block["vectors"].shape[1:]), np.float32)
                found[k][here] = block["vectors"]
        return found, geometry

    def _embed(self, rows: np.ndarray, number: int) -> list[Block]:
        """The blocks of each teacher for `rows` under view `number`; a row may come several times."""
        images = self.training.images
        distinct, place = np.unique(rows, return_inverse=True)
        ids, paths = (tuple(names[row] for row in distinct) for names in (images.ids, images.paths))
        some = ImageList(images.name, images.split, ids, paths, images.root)
        looks = [Look(encoder, crop_name(number) if number else FIXED) for encoder in self.encoders]
        blocks = embed_rows(range(len(distinct)), looks, some, self.config, self.training.compute, Meter())
        return [{name: array[place] for name, array in block.items()} for block in blocks]


def prove(
    *,
    store: FeatureStore,
    training: Training,
    sources: Sequence[EncoderSource],
    steps: int,
    samples: int,
) -> Proof:
    """Compare the store with live teachers on `samples` random (image, view) pairs, then along `steps` of training.

    Every step's loss is evaluated three times at the same weights: against live teachers, against the stored vectors as
    training reads them, and against stored raw vectors whitened in single precision. The student trains on the second.
    """
    plan = training.plan
    if plan.maps:
        raise InputError("a proof compares descriptors: leave hint and attention out of its settings.")
    inputs = [_Inputs(store, keys) for keys in plan.teachers]
    live = _Live(training, sources, _extraction(store, inputs[0].embeddings))
    usable = np.flatnonzero(usable_rows(store, plan.teachers))
    draw = np.random.default_rng(np.random.SeedSequence([plan.seed, 3]))
    rows, views = draw.choice(usable, samples), draw.choice(np.asarray(plan.views), samples)
    seen, geometry = live.look(rows, views)
    cosines = {
        source.label: float(_cosines(one, stored.raw(rows, views, plan.views)).min())
        for source, one, stored in zip(sources, seen, inputs, strict=True)
    }
    kept = [training.pixels.geometry[v][r] for r, v in zip(rows, views, strict=True) if v]  # the fixed view has none
    differs = int((geometry[views > 0] != np.reshape(kept, (-1, 5))).any(axis=1).sum())
    differences = _train(store, training, live, inputs, steps)
    precision = "float16" if plan.teachers[0][0].kind == "whitened" else "float32"
    proof = Proof(
        samples=samples,
        min_cosine=cosines,
        geometry_differs=differs,
        steps=len(differences),
        max_loss_difference=max(abs(d[0] - d[1]) for d in differences),
        max_loss_difference_float32=max(abs(d[0] - d[2]) for d in differences),
        loss=[d[1] for d in differences],
        precision=precision,
        problems=(),
    )
    return dataclasses.replace(proof, problems=_problems(proof))


def _extraction(store: FeatureStore, embeddings: Sequence[Key]) -> ExtractConfig:
    """The settings that stored crops were drawn with."""
    settings = store.get(embeddings[0]).settings
    policy = settings.get("policy")
    if policy is None:  # full images
        return ExtractConfig(precision=settings["precision"])
    return ExtractConfig(
        crop_size=policy["size"],
        crop_filter=policy.get("filter", "own"),
        crop_area=tuple(policy["area"]),
        crop_aspect=tuple(policy["aspect"]),
        flip=policy["flip"],
        precision=settings["precision"],
    )


class _Inputs:
    """What one teacher's stored vectors were made of: raw embeddings, and the whitening they went through or none."""

    def __init__(self, store: FeatureStore, keys: Sequence[Key]) -> None:
        self.store, self.keys = store, keys
        artifacts = [store.get(key) for key in keys]
        whitened = keys[0].kind == "whitened"
        self.embeddings = [a.inputs[0] if whitened else key for a, key in zip(artifacts, keys, strict=True)]
        self.whitening: Whitening | None = read_whitening(store, artifacts[0].inputs[1]) if whitened else None
        self.combine = store.get(self.embeddings[0]).attributes["input"]["combine"]

    def raw(self, rows: np.ndarray, views: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """(M, S, D) float32 as they came from the network."""
        artifacts = [self.store.get(key) for key in self.embeddings]
        found = np.empty((len(rows), *artifacts[0].shape("vectors")[1:]), np.float32)
        for number, artifact in zip(numbers, artifacts, strict=True):
            found[views == number] = artifact.gather("vectors", rows[views == number])
        return found

    def target_space(self, raw: np.ndarray) -> np.ndarray:
        """(M, D') float32: what a method is given for raw vectors (M, S, D)."""
        if self.whitening is not None:
            return whiten(raw, self.whitening, self.combine).astype(np.float32)
        return raw[:, 0] if raw.shape[1] == 1 else combine_scales(raw, self.combine)


def _train(
    store: FeatureStore, training: Training, live: _Live, inputs: Sequence[_Inputs], steps: int
) -> list[tuple[float, float, float]]:
    """Losses of every step: live, from the store, and from stored raw vectors in single precision."""
    plan = training.plan
    encoder = training.prepare()
    optimiser = torch.optim.Adam(encoder.parameters(), lr=training.config.learning_rate)
    training.train_mode(encoder)
    losses: list[tuple[float, float, float]] = []
    with progress(steps, "proving", "steps") as bar:
        for epoch in range(steps):
            for number, batch in enumerate(epoch_batches(plan, epoch)):
                if len(losses) == steps:
                    return losses
                seed = [plan.seed, epoch, number]
                targets = _targets(store, training, live, inputs, batch, seed)
                losses.append(_step(training, encoder, optimiser, batch, targets))
                bar.update(1)
    return losses


def _targets(
    store: FeatureStore,
    training: Training,
    live: _Live,
    inputs: Sequence[_Inputs],
    batch: Batch,
    seed: Sequence[int],
) -> list[Target]:
    """The target of a batch by live teachers, by the store, and by stored raw vectors in single precision."""
    plan, shape = training.plan, batch.rows.shape
    rows, views = batch.rows.ravel(), batch.views.ravel()
    seen, _ = live.look(rows, views)
    online = [i.target_space(raw).reshape(*shape, -1) for i, raw in zip(inputs, seen, strict=True)]
    stored = [gather_views(store, keys, plan.views, batch.rows, batch.views) for keys in plan.teachers]
    offline = [vectors.astype(np.float32) for vectors in stored]
    single = [i.target_space(i.raw(rows, views, plan.views)).reshape(*shape, -1) for i in inputs]
    given = [online, offline, single] if training.method.needs.teachers else [[], [], []]
    return [training.method.target(v, batch, np.random.default_rng(seed)) for v in given]


def _step(
    training: Training, encoder: Encoder, optimiser: torch.optim.Optimizer, batch: Batch, targets: Sequence[Target]
) -> tuple[float, float, float]:
    """One update towards the stored target; the losses of all targets for the same descriptors, before it."""
    samples = training.pixels.samples(0, 0, batch)
    pixels = [training.pixels.load(sample, encoder.input_spec) for sample in samples]
    descriptors = encoder(training.pixels.to_device(pixels)).unflatten(0, (-1, training.method.needs.images_per_row))
    goals = [{n: torch.from_numpy(v).to(descriptors.device) for n, v in target.items()} for target in targets]
    online, offline, single = (training.method.loss(descriptors, goal) for goal in goals)
    optimiser.zero_grad(set_to_none=True)
    offline.backward()
    optimiser.step()
    return online.item(), offline.item(), single.item()


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines (M, S) of rows (M, S, D) and (M, S, D)."""
    found: np.ndarray = (l2(one.astype(np.float64)) * l2(other.astype(np.float64))).sum(axis=-1)
    return found


def _problems(proof: Proof) -> list[str]:
    found = [
        f"{label}: the least cosine between live and stored vectors is {cosine:.6f}, required {LEAST_COSINE}"
        for label, cosine in proof.min_cosine.items()
        if not cosine >= LEAST_COSINE
    ]
    if proof.geometry_differs:
        drawn = f"{proof.geometry_differs} of {proof.samples} crops"
        found.append(f"{drawn} are drawn elsewhere than their stored geometry says")
    limits = {
        f"stored {proof.precision} vectors": (proof.max_loss_difference, MOST_DIFFERENCE[proof.precision]),
        "stored float32 vectors": (proof.max_loss_difference_float32, MOST_DIFFERENCE["float32"]),
    }
    for what, (difference, most) in limits.items():
        if not difference <= most:
            found.append(f"losses from {what} and live teachers differ by {difference:.1e}, allowed {most:.0e}")
    return found
