"""Train a student against targets from the store, with no teacher in memory; an interrupted run continues."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from cgd import launch, registry
from cgd.config import DistillConfig
from cgd.data.views import CROP, FIXED, crop_name
from cgd.engines import Engine
from cgd.engines.local import LOCAL
from cgd.errors import InputError, MissingError
from cgd.methods import Needs
from cgd.models.devices import Compute
from cgd.models.encoder import EncoderSource, gmacs
from cgd.stages import select
from cgd.stages.checkpoint import Checkpoint
from cgd.stages.codebook import fit_codebook
from cgd.stages.fuse import TargetPlan, make_method, trained_rows, usable_rows
from cgd.stages.processes import Processes
from cgd.stages.training import LOG, Trained, Training, log_lines
from cgd.stages.validation import validation_rows
from cgd.stages.withheld import Withheld, withheld_of
from cgd.store import provenance
from cgd.store.feature_store import FeatureStore
from cgd.store.files import replace_file
from cgd.store.keys import Identity, groups_digest, identify, ids_digest, labels_digest, settings_of
from cgd.store.layout import RECIPE, WEIGHTS
from cgd.types import ImageList, Key

VERSION = 1
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
    best: Mapping[str, Any] | None  # by which score of classes held out its epoch was chosen, if by one
    seconds_per_step: Mapping[str, float]
    skipped: bool
    teacher_queries: Mapping[str, int]  # images, views and teachers that training rests on, and their product

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd distill --json`."""
        return {**dataclasses.asdict(self), "key": str(self.key), "folder": str(self.folder)}


@dataclass(frozen=True)
class Distillation:
    """A student to be: what it is trained on, with what settings, and where.

    `teachers` are vectors by label and view, whitened or raw as `config.space` says. `out` keeps the training state
    (see `Training`), and in the end the student; the same call continues there.
    """

    store: FeatureStore
    images: ImageList
    teachers: Mapping[str, Mapping[str, Key]]
    source: EncoderSource
    config: DistillConfig
    method_config: Any
    out: Path
    compute: Compute
    engine: Engine = LOCAL  # who builds targets


def distill(job: Distillation, processes: Processes = Processes()) -> DistillReport:  # noqa: B008
    """Train the student, which also becomes an artifact of the first process's store; several `processes` train one.

    Each of them reads images and their crops by its own `job`, whose store, images and folder may be elsewhere; the
    first one's store gives the targets. In the end `out` has the student on every machine. On one CPU with fixed
    threads an interrupted run and an undisturbed one end in the same bytes.
    """
    with processes.all_ready(), processes.first_goes_ahead():
        plan, withheld = _plan(job)
        identity = _identity(job, plan, withheld, processes.count)
        training = _training(job, plan, withheld, identity, processes)
    _agree(job, identity, processes)
    skipped = processes.told_by_first(job.store.is_sealed(identity.key))
    if skipped:
        log.info("%s is trained already", identity.key)
    else:
        with processes.all_ready():
            training.pixels.check(np.flatnonzero(trained_rows(plan)))
        trained = training.run()
    with processes.first_goes_ahead():
        if processes.first:
            if not skipped:
                _publish(job, identity, trained, training.norm, withheld.labels, _queries(plan))
            artifact = job.store.get(identity.key)
            blobs = {name: artifact.blob(name) for name in (WEIGHTS, RECIPE, LOG)}
            notes = job.store.provenance(identity.key)  # a copied store may have none
            _put(job, training.checkpoint, blobs)
        else:
            blobs, notes = {}, []
    blobs, notes = processes.told_by_first((blobs, notes))
    if launch.first_here() and not processes.first:  # by now it is there, if the folder is a shared one
        _put(job, training.checkpoint, blobs)
    about = json.loads(blobs[RECIPE])
    last = json.loads(blobs[LOG].decode().splitlines()[-1])
    return DistillReport(
        key=identity.key,
        folder=job.out,
        parameters=about["parameters"],
        gmacs=about["gmacs"],
        epochs=job.config.epochs,
        final_loss=last["loss"],
        best=about.get("best"),
        seconds_per_step=notes[-1].get("seconds_per_step", {}) if notes else {},
        skipped=skipped,
        teacher_queries=about.get("teacher_queries", {}),  # earlier students do not tell
    )


def _put(job: Distillation, checkpoint: Checkpoint, blobs: Mapping[str, bytes]) -> None:
    """The finished student into its folder, in the place of the state of its training."""
    checkpoint.forget()
    for name, data in blobs.items():
        if not (job.out / name).is_file() or (job.out / name).read_bytes() != data:
            replace_file(job.out / name, data)


def _agree(job: Distillation, identity: Identity, processes: Processes) -> None:
    """Refuse processes that would not train one and the same student by the same code."""
    if processes.count == 1:
        return
    own = {
        **{f"distill.{name}": value for name, value in identity.settings.items()},
        "teachers' vectors": identity.inputs,
        "device": job.compute.device.type,
        **{f"version of {name}": version for name, version in provenance.libraries().items()},
        "code of cgd": provenance.code_digest(),
    }
    first, place = processes.told_by_first((own, processes.place))
    with processes.all_ready():
        differing = [name for name in sorted(own | first) if own.get(name) != first.get(name)]
        if differing:
            told = ", ".join(f"{name} ({_short(own.get(name))}, there {_short(first.get(name))})" for name in differing)
            raise InputError(
                f"it would not train what {place} trains: other {told}; give all machines the same command and the "
                "same installation."
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def training_of(job: Distillation) -> Training:
    """The training that `distill` runs, not begun, in one process."""
    plan, withheld = _plan(job)
    return _training(job, plan, withheld, _identity(job, plan, withheld, 1), Processes())


def _training(
    job: Distillation, plan: TargetPlan, withheld: Withheld, identity: Identity, processes: Processes
) -> Training:
    scored = None
    if job.config.validation:
        assert job.images.labels is not None
        usable = usable_rows(job.store, plan.vectors) & ~withheld.beyond
        scored = validation_rows(job.images.labels, withheld.validation, usable, job.config.seed)
    name = str(identity.key)
    where = job.out, job.compute, processes, scored, job.engine
    return Training(job.store, job.images, plan, job.source, job.config, name, *where)


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
    if config.views == FIXED and config.crops:
        raise InputError("distill.crops is of crops: set distill.views=crop, or leave it out with distill.views=fixed.")
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


def _plan(job: Distillation) -> tuple[TargetPlan, Withheld]:
    """Which vectors and batches the student trains on; refuses what cannot work before any work is done."""
    config, images = job.config, job.images
    numbers, keys = _views_used(job.teachers, config)
    needs = make_method(config.method, job.method_config, config.fusion).needs
    by_label = needs.batches == "pairs" and config.positives == "label"
    if needs.batches == "pairs" and not by_label and len(numbers) == 1:
        log.warning(
            "training on one view: every image is paired with itself under that view, so the teachers tell of "
            "similarities between different images only; train on two stored crops or more for pairs of two views."
        )
    if by_label and images.labels is None:
        raise InputError(f"{images.title} has no labels to pair images by: use --set distill.positives=image.")
    if needs.labels and images.labels is None:
        raise InputError(
            f"the method {config.method} trains with labels, and {images.title} has none: put the images into a "
            "sub-folder per label, or choose a method without (docs/methods.md)."
        )
    if needs.raw and config.space != "raw":
        raise InputError(
            f"the method {config.method} repeats the teachers' own features, and distill.space={config.space} gives it "
            "whitened ones: use --set distill.space=raw."
        )
    if needs.batches != "classes" and (config.labelled, config.unlabelled) != (1, 0):
        raise InputError(
            f"the method {config.method} draws no batches by class, which distill.labelled and distill.unlabelled are "
            "of: leave them out, or use absolute-teacher or relative-teacher."
        )
    maps = _maps(job, needs, numbers)
    for key in (k for ks in [*keys, *(ks for _, ks in maps)] for k in ks):
        if job.store.get(key).settings["ids"] != ids_digest(images):
            raise InputError(f"{key} holds other images than {images.title}: extract and whiten these first.")
    _refuse_other_crops(job.store, [*keys, *(ks for _, ks in maps)])
    withheld = withheld_of(images, config)
    if config.exclude or config.validation:
        counts = int(withheld.excluded.sum()), int(withheld.validation.sum())
        log.info("not trained on: %d images with excluded labels, %d of classes held out", *counts)
    if by_label:
        _tell_lone_labels(images)
    codebook = None
    if needs.codebook:
        first = [of_views[0] for of_views in keys]  # one view of each image is enough
        codebook = fit_codebook(
            store=job.store,
            teachers=first,
            fusion=config.fusion,
            config=job.method_config,
            device=job.compute.device,
            withheld=withheld.rows,
        )
    plan = TargetPlan(
        store=job.store.addresses,
        teachers=tuple(keys),
        views=numbers,
        labels=images.labels if by_label or needs.labels else None,
        method=config.method,
        method_config=job.method_config,
        fusion=config.fusion,
        batch_pairs=config.batch_pairs,
        seed=config.seed,
        codebook=codebook,
        withheld=withheld.rows,
        images_per_class=config.images_per_class,
        labelled=config.labelled,
        unlabelled=config.unlabelled,
        maps=maps,
        groups=None if config.frames == "all" else images.groups,
    )
    return plan, withheld


def _maps(job: Distillation, needs: Needs, numbers: Sequence[int]) -> tuple[tuple[str, tuple[Key, ...]], ...]:
    """Feature maps by kind and view, for the layers that the method's settings weigh."""
    layers = {"features": job.method_config.hint, "attention": job.method_config.attention} if needs.maps else {}
    found = []
    for kind in (kind for kind, weight in layers.items() if weight):
        views = select.maps_of(job.store, job.images.name, job.images.split, kind)
        names = [crop_name(number) if number else FIXED for number in numbers]
        if missing := [name for name in names if name not in views]:
            raise MissingError(f"{job.images.title} has no {kind} maps of {', '.join(missing)}: extract them, too.")
        found.append((kind, tuple(views[name] for name in names)))
    return tuple(found)


def _refuse_other_crops(store: FeatureStore, keys: Sequence[Sequence[Key]]) -> None:
    """Every teacher must have seen what the student will: crops by one policy, whatever their size."""
    policies = []
    for of_views in keys:
        embeddings = select.embeddings_behind(store, of_views[0])
        policy = dict(embeddings.settings.get("policy", {}))
        policy.pop("size", None)  # a teacher may see the same crop in higher resolution
        policies.append((embeddings.key, policy))
    for key, policy in policies[1:]:
        if policy != policies[0][1]:
            differing = sorted(n for n in policy | policies[0][1] if policy.get(n) != policies[0][1].get(n))
            raise InputError(
                f"{policies[0][0]} and {key} are of different crops ({', '.join(differing)}): "
                "extract every teacher with the same extract settings."
            )


def _tell_lone_labels(images: ImageList) -> None:
    assert images.labels is not None
    _, counts = np.unique(np.asarray(images.labels, dtype=str), return_counts=True)
    if lone := int((counts == 1).sum()):
        log.warning("%d labels have a single image, which has no pair: these images are not trained on.", lone)


def _identity(job: Distillation, plan: TargetPlan, withheld: Withheld, processes: int) -> Identity:
    settings = settings_of(job.config)
    if processes > 1 and job.config.batch_norm != "freeze":
        settings["processes"] = processes  # each takes batch statistics of its own share
    if plan.groups is not None:
        settings["groups"] = groups_digest(job.images)
    del settings["init"]  # a file's name; its digest is part of the student's identity
    settings.pop("teachers", None)  # the inputs name them
    if job.config.exclude:
        settings["exclude"] = list(withheld.labels)  # what the file says, not where it is
    of_budget = job.config.images and job.config.images_by == "label"
    by_label = plan.labels is not None or job.config.validation or job.config.exclude or of_budget
    settings |= {
        "dataset": job.images.name,
        "split": job.images.split,
        job.config.method: settings_of(plan.method_config),
        "student": job.source.identity,
        "labels": labels_digest(job.images) if by_label else None,
    }
    inputs = [key for keys in plan.vectors for key in keys] + ([plan.codebook] if plan.codebook else [])
    return identify("students", [job.images.title, job.source.label], VERSION, settings, inputs)


def _queries(plan: TargetPlan) -> dict[str, int]:
    """How many times a teacher had to look at an image for this training, by what that is the product of."""
    needed = registry.find("cgd.methods", plan.method).needs.teachers
    counts = {
        "images": int(trained_rows(plan).sum()),
        "views": len(plan.views),
        "teachers": (len(plan.teachers) if needed else 0) + len(plan.maps),
    }
    return {**counts, "total": math.prod(counts.values())}


def _publish(
    job: Distillation,
    identity: Identity,
    trained: Trained,
    batch_norm: str,
    excluded: Sequence[str],
    queries: Mapping[str, int],
) -> None:
    """Make the student an artifact: its tensors, what it is and how it came about, and its log."""
    encoder, lines = trained.encoder, trained.lines
    weights = {k: v.detach().cpu().contiguous() for k, v in encoder.network.state_dict().items()}
    about = {
        "student": job.source.text,
        "init": job.source.weights and job.source.weights.digest,
        "embed_dim": encoder.embed_dim,
        "input": dataclasses.asdict(encoder.input_spec),
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "gmacs": gmacs(encoder),
        "batch_norm": batch_norm,
        "distill": dataclasses.asdict(job.config) | ({"exclude": excluded} if excluded else {}),
        job.config.method: dataclasses.asdict(job.method_config),
        "teachers": list(job.teachers),
        "inputs": list(identity.inputs),
        "teacher_queries": dict(queries),
    }
    if trained.best:
        about["best"] = {**trained.best, "criterion": "highest leave-one-out mAP of the classes held out"}
    blobs = {
        WEIGHTS: save(weights),
        RECIPE: json.dumps(about, indent=1, sort_keys=True).encode() + b"\n",
        LOG: log_lines(lines),
    }
    notes = {name: lines[-1][name] for name in ("images_per_second", "seconds_per_step")}
    job.store.write_whole(identity, {}, attributes={"label": job.source.label}, blobs=blobs, notes=notes)
