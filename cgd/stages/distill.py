"""Train a student against targets from the store, with no teacher in memory; an interrupted run continues."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from cgd.config import DistillConfig
from cgd.data.views import CROP, FIXED
from cgd.errors import InputError, MissingError
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource, gmacs
from cgd.stages.codebook import fit_codebook
from cgd.stages.fuse import TargetPlan, make_method
from cgd.stages.training import Line, Training, forget
from cgd.store.feature_store import FeatureStore
from cgd.store.files import replace_file
from cgd.store.keys import Identity, canonical, identify, ids_digest, labels_digest, settings_of
from cgd.types import ImageList, Key

VERSION = 1
WEIGHTS, RECIPE, LOG = "model.safetensors", "recipe.json", "log.jsonl"
LOGGED = ("epoch", "loss", "learning_rate", "teachers")  # equal for equal runs; rates go to the provenance
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillReport:
    """The student made, its size and cost, and where the time of its last epoch's steps went (seconds)."""

    key: Key
    folder: Path
    parameters: int
    gmacs: float
    epochs: int
    final_loss: float
    seconds_per_step: Mapping[str, float]
    skipped: bool

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd distill --json`."""
        return {**dataclasses.asdict(self), "key": str(self.key), "folder": str(self.folder)}


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

    `out` keeps the training state (see `Training`), and in the end the student; the same call continues there.
    The student also becomes an artifact. On one CPU with fixed threads an interrupted run and an undisturbed one
    end in the same bytes.
    """
    plan = _plan(store, images, teachers, config, method_config, compute.device)
    identity = _identity(images, source, plan, config)
    skipped = store.is_sealed(identity.key)
    if skipped:
        log.info("%s is trained already", identity.key)
    else:
        training = Training(store, images, plan, source, config, str(identity.key), out, compute)
        encoder, lines = training.run()
        _publish(store, identity, source, encoder, training.norm, lines, config, method_config, list(teachers))
    forget(out, str(identity.key))
    artifact = store.get(identity.key)
    for name in (WEIGHTS, RECIPE, LOG):
        data = artifact.blob(name)
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            replace_file(out / name, data)
    about = json.loads(artifact.blob(RECIPE))
    last = json.loads(artifact.blob(LOG).decode().splitlines()[-1])
    notes = store.provenance(identity.key)  # a copied store may have none
    return DistillReport(
        key=identity.key,
        folder=out,
        parameters=about["parameters"],
        gmacs=about["gmacs"],
        epochs=config.epochs,
        final_loss=last["loss"],
        seconds_per_step=notes[-1].get("seconds_per_step", {}) if notes else {},
        skipped=skipped,
    )


def training_of(
    *,
    store: FeatureStore,
    images: ImageList,
    teachers: Mapping[str, Mapping[str, Key]],
    source: EncoderSource,
    config: DistillConfig,
    method_config: Any,
    out: Path,
    compute: Compute,
) -> Training:
    """The training that `distill` with these arguments runs, not begun."""
    plan = _plan(store, images, teachers, config, method_config, compute.device)
    name = str(_identity(images, source, plan, config).key)
    return Training(store, images, plan, source, config, name, out, compute)


def _views_used(
    teachers: Mapping[str, Mapping[str, Key]], config: DistillConfig
) -> tuple[tuple[int, ...], list[tuple[Key, ...]]]:
    """View numbers that every teacher has (0 is the fixed view), and each teacher's keys for them."""
    if not teachers:
        raise MissingError(
            "there is no teacher to distil from: run `cgd extract-teachers` and `cgd fit-whitening` first."
        )
    common = set.intersection(*(set(views) for views in teachers.values()))
    names: dict[int, str]
    if config.views == FIXED:
        names = {0: FIXED} if FIXED in common else {}
    else:
        names = {int(v.removeprefix(f"{CROP}-")): v for v in common if v.startswith(f"{CROP}-")}
    if not names:
        remedy = "crops: extract with --views 4, or set distill.views=fixed"
        wanted = remedy if config.views == CROP else "the fixed view"
        raise MissingError(f"the teachers {', '.join(teachers)} have no {config.space} vectors in common of {wanted}.")
    if config.crops > len(names):
        raise MissingError(
            f"distill.crops={config.crops}, but the teachers {', '.join(teachers)} have {len(names)} crops in common: "
            f"extract with --views {config.crops}, or set distill.crops to at most {len(names)}."
        )
    numbers = tuple(sorted(names)[: config.crops or None])
    return numbers, [tuple(views[names[n]] for n in numbers) for views in teachers.values()]


def _plan(
    store: FeatureStore,
    images: ImageList,
    teachers: Mapping[str, Mapping[str, Key]],
    config: DistillConfig,
    method_config: Any,
    device: torch.device,
) -> TargetPlan:
    """Which vectors and batches the student trains on; refuses what cannot work before any work is done."""
    numbers, keys = _views_used(teachers, config)
    needs = make_method(config.method, method_config, config.fusion).needs
    by_label = needs.images_per_row == 2 and config.positives == "label"
    if needs.images_per_row == 2 and not by_label and len(numbers) == 1:
        log.warning(
            "one stored view: every image is paired with itself under that view, so only similarities between "
            "different images teach; extract with --views 2 or more for pairs of two views."
        )
    if by_label and images.labels is None:
        raise InputError(f"{images.title} has no labels to pair images by: use --set distill.positives=image.")
    for key in (k for ks in keys for k in ks):
        if store.get(key).settings["ids"] != ids_digest(images):
            raise InputError(f"{key} holds other images than {images.title}: extract and whiten these first.")
    codebook = None
    if needs.codebook:
        first = [of_views[0] for of_views in keys]  # one view of each image is enough
        codebook = fit_codebook(store=store, teachers=first, fusion=config.fusion, config=method_config, device=device)
    return TargetPlan(
        store=str(store.files.root),
        teachers=tuple(keys),
        views=numbers,
        labels=images.labels if by_label else None,
        method=config.method,
        method_config=method_config,
        fusion=config.fusion,
        batch_pairs=config.batch_pairs,
        seed=config.seed,
        codebook=codebook,
    )


def _identity(images: ImageList, source: EncoderSource, plan: TargetPlan, config: DistillConfig) -> Identity:
    settings = settings_of(config)
    del settings["init"]  # a file's name; its digest is part of the student's identity
    settings.pop("teachers", None)  # the inputs name them
    settings |= {
        "dataset": images.name,
        "split": images.split,
        config.method: settings_of(plan.method_config),
        "student": source.identity,
        "labels": None if plan.labels is None else labels_digest(images),
    }
    inputs = [key for keys in plan.teachers for key in keys] + ([plan.codebook] if plan.codebook else [])
    return identify("students", [images.title, source.label], VERSION, settings, inputs)


def _publish(
    store: FeatureStore,
    identity: Identity,
    source: EncoderSource,
    encoder: Encoder,
    batch_norm: str,
    lines: Sequence[Line],
    config: DistillConfig,
    method_config: Any,
    teachers: Sequence[str],
) -> None:
    """Make the student an artifact: its tensors, what it is and how it came about, and its log."""
    weights = {k: v.detach().cpu().contiguous() for k, v in encoder.network.state_dict().items()}
    about = {
        "student": source.text,
        "init": source.weights and source.weights.digest,
        "embed_dim": encoder.embed_dim,
        "input": dataclasses.asdict(encoder.input_spec),
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "gmacs": gmacs(encoder),
        "batch_norm": batch_norm,
        "distill": dataclasses.asdict(config),
        config.method: dataclasses.asdict(method_config),
        "teachers": teachers,
        "inputs": list(identity.inputs),
    }
    blobs = {
        WEIGHTS: save(weights),
        RECIPE: json.dumps(about, indent=1, sort_keys=True).encode() + b"\n",
        LOG: b"".join(canonical({name: line[name] for name in LOGGED}) + b"\n" for line in lines),
    }
    notes = {name: lines[-1][name] for name in ("images_per_second", "seconds_per_step")}
    store.write_whole(identity, {}, attributes={"label": source.label}, blobs=blobs, notes=notes)
