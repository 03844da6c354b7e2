"""One function per command: from what a user typed to the stage that does it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import EvaluateConfig, ExtractConfig, Recipe, WhitenConfig
from cgd.data.views import CROP, CROPPED, FIXED, crop_name
from cgd.errors import InputError, MissingError
from cgd.pipeline.recipe import change
from cgd.pipeline.workspace import Workspace
from cgd.stages import select
from cgd.stages.whiten import WhiteningReport, apply_whitening, fit_and_apply
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, ImageList, Key

if TYPE_CHECKING:  # only the stages that run networks import torch
    from cgd.models.devices import Compute
    from cgd.models.encoder import EncoderSource
    from cgd.stages.descriptors import Member
    from cgd.stages.distill import DistillReport
    from cgd.stages.extract import ExtractReport


@dataclass(frozen=True)
class Session:
    """What holds for a whole command and changes no result: where things are, which device, how many workers."""

    store_url: str
    weights: Path | None = None
    device: str = "auto"
    workers: int = 2
    batch_size: int = 32
    shard_rows: int | None = None
    part: tuple[int, int] = (1, 1)
    workspace: Workspace = field(default_factory=Workspace)

    def store(self, *, write: bool = False) -> FeatureStore:
        return FeatureStore.open(self.store_url, write=write)

    def compute(self) -> Compute:
        from cgd.models.devices import Compute, pick_device

        return Compute(pick_device(self.device), self.workers, self.batch_size, self.shard_rows, self.part)


def teacher_sources(session: Session, teachers: Sequence[str]) -> list[EncoderSource]:
    from cgd.models.load import teacher

    if not teachers:
        raise InputError("no teacher is named: give --teachers NAME[,NAME…], e.g. --teachers gem.")
    return [teacher(text, session.weights) for text in teachers]


def views_of(config: ExtractConfig) -> list[str]:
    return [FIXED, *(crop_name(n) for n in range(1, config.views + 1))]


def extract_teachers(session: Session, images: ImageList, config: ExtractConfig) -> ExtractReport:
    """Embed `images` with every teacher, the fixed view and the crops."""
    from cgd.stages.extract import extract

    return extract(
        store=session.store(write=True),
        images=images,
        sources=teacher_sources(session, config.teachers),
        views=views_of(config),
        config=config,
        compute=session.compute(),
    )


def estimate_extraction(session: Session, images: ImageList, config: ExtractConfig) -> dict[str, Any]:
    """Bytes, free disk and expected time of `extract_teachers`, measured on a few images."""
    from cgd.stages.extract import estimate

    return estimate(
        store=session.store(write=True),
        images=images,
        sources=teacher_sources(session, config.teachers),
        views=views_of(config),
        config=config,
        compute=session.compute(),
    )


Whitened = dict[str, tuple[dict[str, WhiteningReport], dict[str, Key]]]


def fit_whitening(session: Session, teachers: Mapping[str, Mapping[str, Key]], config: WhitenConfig) -> Whitened:
    """Fit and apply a whitening per teacher and kind of view; `teachers` are embeddings by label and view."""
    return fit_and_apply(store=session.store(write=True), teachers=teachers, config=config)


def apply_to(session: Session, whitening: str, dataset: str, split: str | None) -> dict[str, Key]:
    """Apply a stored whitening to every embeddings artifact of a data set that it fits, by view."""
    store = session.store(write=True)
    key = store.resolve(whitening, ("whitening",))
    known = store.get(key)
    views = select.embeddings_of(store, dataset, split, known.attributes["label"])[known.attributes["label"]]
    fitting = {v: k for v, k in views.items() if v.startswith(CROP + "-") == (known.settings["view_kind"] == CROP)}
    if not fitting:
        raise MissingError(
            f"{dataset} has no embeddings of {known.attributes['label']} under {known.settings['view_kind']} views."
        )
    return {v: apply_whitening(store=store, whitening=key, embeddings=k) for v, k in fitting.items()}


def student_source(session: Session, recipe: Recipe) -> EncoderSource:
    """The untrained student of a recipe, its trunk from `init` (FILE, or FILE?sha256=…) where one is named."""
    from cgd.models.checkpoints import locate
    from cgd.models.load import student

    name, _, digest = recipe.distill.init.partition("?sha256=")
    init = locate(name, digest or None, None if Path(name).is_file() else session.weights) if name else None
    return student(recipe.distill.student, init, recipe.distill.seed)


def pin(session: Session, recipe: Recipe) -> Recipe:
    """`recipe` with the SHA-256 of every weights file, so that later stages run without the files."""
    from cgd.models.load import pinned

    teachers = tuple(pinned(source) for source in teacher_sources(session, recipe.extract.teachers))
    recipe = change(recipe, "extract", teachers=teachers)
    init = student_source(session, recipe).weights
    return recipe if init is None else change(recipe, "distill", init=f"{init.name}?sha256={init.digest}")


def distill(
    session: Session, images: ImageList, teachers: Mapping[str, Mapping[str, Key]], recipe: Recipe, out: Path
) -> DistillReport:
    """Train the recipe's student on `images` against whitened `teachers`."""
    from cgd.stages.distill import distill as run

    return run(**_distillation(session, images, teachers, recipe, out))


def estimate_distillation(
    session: Session, images: ImageList, teachers: Mapping[str, Mapping[str, Key]], recipe: Recipe, out: Path
) -> dict[str, float]:
    """Steps, bytes and seconds that `distill` with these arguments will take."""
    from cgd.stages.distill import estimate

    return estimate(**_distillation(session, images, teachers, recipe, out))


def _distillation(
    session: Session, images: ImageList, teachers: Mapping[str, Mapping[str, Key]], recipe: Recipe, out: Path
) -> dict[str, Any]:
    return {
        "store": session.store(write=True),
        "images": images,
        "teachers": teachers,
        "source": student_source(session, recipe),
        "config": recipe.distill,
        "method_config": method_config(recipe),
        "out": out,
        "compute": session.compute(),
    }


def method_config(recipe: Recipe) -> Any:
    """The section of the recipe that has the method's name."""
    from cgd import registry

    registry.find("cgd.methods", recipe.distill.method)
    return getattr(recipe, recipe.distill.method.replace("-", "_"))


def load_student(session: Session, where: str, scales: Sequence[float] = ()) -> EncoderSource:
    """The student in a folder, or in the store by its key; `scales` replace its own."""
    from cgd.models.load import trained_student
    from cgd.stages.distill import RECIPE, WEIGHTS

    folder = Path(where)
    if not (folder / RECIPE).is_file():
        if folder.is_dir():
            raise MissingError(
                f"{folder} holds no finished student ({RECIPE} is missing): run `cgd distill … --out {folder}`."
            )
        try:
            store = session.store()
            folder = store.files.root / str(store.resolve(where, ("students",)))
        except MissingError as error:
            raise MissingError(f"'{where}' is no folder of a student, nor its key: {error}") from error
    try:
        text = json.loads((folder / RECIPE).read_text())["student"]
        if not isinstance(text, str):
            raise TypeError(f"its student is {text!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RECIPE} is damaged: {error}.") from error
    if scales:
        text += f"{'&' if '?' in text else '?'}scales={','.join(map(str, scales))}"
    return trained_student(text, folder / WEIGHTS)


def evaluate(
    session: Session,
    benchmark: Benchmark,
    sources: Sequence[EncoderSource],
    config: EvaluateConfig,
    *,
    whitening: str | Mapping[str, Key] | None = None,
    ensemble: bool = False,
    extract_config: ExtractConfig | None = None,
) -> list[dict[str, Any]]:
    """Score each of `sources` on `benchmark`, and their ensemble; embeds what is not embedded yet.

    `whitening` is the name of the data set it was fitted on, part of a key, or keys by label.
    """
    from cgd.stages import evaluate as stage

    store = session.store(write=True)
    random, sets = _distractors(session, benchmark, config.distractors)
    extraction = extract_config or ExtractConfig()
    results = []
    for cropped in _query_protocols(benchmark, config):
        started = time.perf_counter()
        members = _members(session, benchmark, sources, bool(cropped), sets, extraction, whitening)
        embedding = time.perf_counter() - started
        groups = [(m.label, [m]) for m in members]
        if ensemble and len(members) > 1:
            groups.append((f"ensemble of {len(members)}", members))
        for name, group in groups:
            model = f"{name}, whitened" if whitening is not None else name
            result = stage.evaluate(
                store=store,
                benchmark=benchmark,
                model=model,
                members=group,
                queries_cropped=cropped,
                config=config,
                random=random,
            )
            results.append({**result, "seconds": {"embed": embedding, **result["seconds"]}})
    return results


def _query_protocols(benchmark: Benchmark, config: EvaluateConfig) -> list[bool | None]:
    """Cropped, full or both; None where the benchmark has no boxes."""
    if benchmark.queries.boxes is None or not any(benchmark.queries.boxes):
        return [None]
    protocols: dict[str, list[bool | None]] = {"cropped": [True], "full": [False], "both": [True, False]}
    return protocols[config.queries]


def _distractors(session: Session, benchmark: Benchmark, texts: Sequence[str]) -> tuple[Any, list[ImageList]]:
    """Random distractors or none, and the image lists: `1m` is the revisited million under the benchmark's root."""
    from cgd.stages.descriptors import RandomDistractors

    random, sets = None, []
    for text in texts:
        kind, _, count = text.partition(":")
        if kind == "random":
            if not count.isdigit():
                raise InputError(f"--distractors {text}: expected random:N with a whole number.")
            random = RandomDistractors(int(count))
        elif text == "1m":
            root = benchmark.gallery.root
            assert root is not None, "an opened benchmark knows where its images are"
            sets.append(session.workspace.images(f"revisitop1m:{root.parent}"))
        else:
            sets.append(session.workspace.images(text))
    return random, sets


def _members(
    session: Session,
    benchmark: Benchmark,
    sources: Sequence[EncoderSource],
    cropped: bool,
    distractors: Sequence[ImageList],
    config: ExtractConfig,
    whitening: str | Mapping[str, Key] | None,
) -> list[Member]:
    """Embeddings of gallery, queries and distractors by each encoder, made where they are missing."""
    from cgd.stages.descriptors import Member
    from cgd.stages.extract import extract

    store, compute = session.store(write=True), session.compute()

    def embed(images: ImageList, view: str) -> dict[str, Key]:
        report = extract(store=store, images=images, sources=sources, views=[view], config=config, compute=compute)
        return {label: encoder.keys[view] for label, encoder in report.encoders.items()}

    whitenings = {s.label: _whitening(store, s, whitening) for s in sources}  # refuse before any work is done
    gallery = embed(benchmark.gallery, FIXED)
    queries = embed(benchmark.queries, CROPPED if cropped else FIXED)
    others = [embed(images, FIXED) for images in distractors]
    return [
        Member(s.label, gallery[s.label], queries[s.label], whitenings[s.label], tuple(o[s.label] for o in others))
        for s in sources
    ]


def _whitening(store: FeatureStore, source: EncoderSource, wanted: str | Mapping[str, Key] | None) -> Key | None:
    """The whitening of full images for one encoder."""
    if wanted is None or isinstance(wanted, str):
        return None if wanted is None else select.whitening_of(store, source.label, source.identity, wanted)
    return wanted[source.label]
