"""Scores: a benchmark embedded by teachers or a student where it is not yet, then searched and scored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cgd.config import EvaluateConfig, ExtractConfig, Recipe
from cgd.data.frames import with_first_frames
from cgd.data.views import CROPPED, FIXED
from cgd.errors import InputError
from cgd.pipeline import steps
from cgd.pipeline.steps import Session
from cgd.stages import select
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, ImageList, Key

if TYPE_CHECKING:  # only the stages that run networks import torch
    import numpy as np

    from cgd.models.encoder import EncoderSource
    from cgd.retrieval.search import Scorer
    from cgd.stages.descriptors import Member


def evaluate(
    session: Session,
    benchmark: Benchmark,
    sources: Sequence[EncoderSource],
    recipe: Recipe,
    *,
    whitening: str | Mapping[str, Key] | None = None,
    ensemble: bool = False,
) -> list[dict[str, Any]]:
    """Score each of `sources` on `benchmark`, and their ensemble; embeds what is not embedded yet.

    The recipe's sections `evaluate`, `extract` and `index` tell how. `whitening` is the name of the data set it was
    fitted on, part of a key, or keys by label.
    """
    from cgd.stages import evaluate as stage

    store = session.store(write=True)
    benchmark = with_first_frames(benchmark, recipe.evaluate.frames)
    random, sets = distractors_of(session, benchmark, recipe.evaluate.distractors)
    results = []
    for cropped in _query_protocols(benchmark, recipe.evaluate):
        started = time.perf_counter()
        how = bool(cropped), sets, recipe.extract, whitening, recipe.evaluate.degrade
        members = _members(session, benchmark, sources, *how)
        embedding = time.perf_counter() - started
        groups = [(m.label, [m]) for m in members]
        if ensemble and len(members) > 1 and recipe.evaluate.codes == "none":  # codes are of one model each
            groups.append((f"ensemble of {len(members)}", members))
        for name, group in groups:
            model = f"{name}, whitened" if whitening is not None else name
            result = stage.evaluate(
                store=store,
                benchmark=benchmark,
                model=model,
                members=group,
                queries_cropped=cropped,
                config=recipe.evaluate,
                index=recipe.index,
                random=random,
                scorer=scorer_of(session),
                engine=session.engine,
            )
            results.append({**result, "seconds": {"embed": embedding, **result["seconds"]}})
    return results


def evaluate_asymmetric(
    session: Session,
    benchmark: Benchmark,
    student: str,
    recipe: Recipe,
    *,
    teachers: Sequence[str] = (),
    scales: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Score a student's queries in a gallery of the fused teachers it was distilled from (CGD).

    The teachers go through the whitening they had in training, whatever the kind of view it was fitted on: the
    student learnt that space. `teachers` name them where their weights have to be found. Only queries are degraded.
    """
    from cgd.models.load import degraded
    from cgd.stages import evaluate as stage
    from cgd.stages.descriptors import Fused, Member

    if benchmark.of_videos:
        raise InputError("videos are searched with one model on both sides: leave out --mode asymmetric.")
    store = session.store(write=True)
    _, about = steps.find_student(session, student)
    whitenings, codebook = select.fused_teachers(store, [Key.parse(key) for key in about["inputs"]])
    own = degraded(steps.load_student(session, student, scales), recipe.evaluate.degrade)
    sources = steps.sources_of(session, [store.get(key).settings["encoder"] for key in whitenings], teachers)
    random, sets = distractors_of(session, benchmark, recipe.evaluate.distractors)
    fusion = about["distill"]["fusion"]

    def fused(images: ImageList) -> Fused:
        keys = embed(session, images, sources, FIXED, recipe.extract)
        return Fused(tuple(keys[s.label] for s in sources), tuple(whitenings), fusion, codebook)

    results = []
    for cropped in _query_protocols(benchmark, recipe.evaluate):
        started = time.perf_counter()
        queries = embed(session, benchmark.queries, [own], CROPPED if cropped else FIXED, recipe.extract)[own.label]
        member = Member(own.label, fused(benchmark.gallery), queries, None, tuple(map(fused, sets)))
        embedding = time.perf_counter() - started
        result = stage.evaluate(
            store=store,
            benchmark=benchmark,
            model=f"{own.label}, asymmetric",
            members=[member],
            queries_cropped=cropped,
            config=recipe.evaluate,
            index=recipe.index,
            random=random,
            scorer=scorer_of(session),
            engine=session.engine,
        )
        results.append({**result, "seconds": {"embed": embedding, **result["seconds"]}})
    return results


def scorer_of(session: Session) -> Callable[[np.ndarray], Scorer]:
    """How a session's products are taken: by NumPy where they are taken on other machines."""
    return scorer_on("cpu" if session.engine.elsewhere else session.device)


def scorer_on(device: str) -> Callable[[np.ndarray], Scorer]:
    """How products are taken: on a GPU that was asked for, or that the networks have just used; else by NumPy."""
    from cgd.retrieval.search import DotProducts

    if device.startswith("cuda") or (device == "auto" and "torch" in sys.modules):
        from cgd.models.devices import pick_device
        from cgd.models.products import TorchProducts

        found = pick_device(device)
        if found.type == "cuda":
            return partial(TorchProducts, device=found)
    return DotProducts


def _query_protocols(benchmark: Benchmark, config: EvaluateConfig) -> list[bool | None]:
    """Cropped, full or both; None where the benchmark has no boxes."""
    if benchmark.queries.boxes is None or not any(benchmark.queries.boxes):
        return [None]
    protocols: dict[str, list[bool | None]] = {"cropped": [True], "full": [False], "both": [True, False]}
    return protocols[config.queries]


def distractors_of(session: Session, benchmark: Benchmark, texts: Sequence[str]) -> tuple[Any, list[ImageList]]:
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
    degrade: int = 0,
) -> list[Member]:
    """Embeddings of gallery, queries and distractors by each encoder, made where they are missing."""
    from cgd.models.load import degraded
    from cgd.stages.descriptors import Member

    store = session.store(write=True)
    whitenings = {s.label: _whitening(store, s, whitening) for s in sources}  # refuse before any work is done
    sources = [degraded(s, degrade) for s in sources]
    gallery = embed(session, benchmark.gallery, sources, FIXED, config)
    queries = embed(session, benchmark.queries, sources, CROPPED if cropped else FIXED, config)
    others = [embed(session, images, sources, FIXED, config) for images in distractors]
    return [
        Member(s.label, gallery[s.label], queries[s.label], whitenings[s.label], tuple(o[s.label] for o in others))
        for s in sources
    ]


def embed(
    session: Session, images: ImageList, sources: Sequence[EncoderSource], view: str, config: ExtractConfig
) -> dict[str, Key]:
    """Embeddings of one view of some images by each encoder, by its label; made where they are missing."""
    from cgd.stages.extract import extract

    report = extract(
        store=session.store(write=True),
        images=images,
        sources=sources,
        views=[view],
        config=config.of_all,
        compute=session.compute_of_workers(),
        engine=session.engine,
    )
    return {label: encoder.keys[view] for label, encoder in report.encoders.items()}


def _whitening(store: FeatureStore, source: EncoderSource, wanted: str | Mapping[str, Key] | None) -> Key | None:
    """The whitening of full images for one encoder."""
    if wanted is None or isinstance(wanted, str):
        return None if wanted is None else select.whitening_of(store, source.label, source.identity, wanted)
    return wanted[source.label]
