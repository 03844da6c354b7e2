"""Search every query in the gallery and its distractors, and score the ranking with its protocol beside it."""

from __future__ import annotations

import dataclasses
import logging
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cgd.config import EvaluateConfig, IndexConfig
from cgd.data.datasets import label_truth
from cgd.data.frames import by_video
from cgd.engines import Engine
from cgd.engines.local import LOCAL
from cgd.errors import InputError
from cgd.retrieval.search import DotProducts, Scorer
from cgd.stages.cards import artifacts_of, drawn_queries, protocol_card
from cgd.stages.descriptors import Fused, Member, RandomDistractors, keys_of
from cgd.stages.images import store_images
from cgd.stages.rankings import Job, score_codes, score_images, score_videos
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import canonical, identify, ids_digest, sha256
from cgd.types import Benchmark, GroundTruth, Key

log = logging.getLogger(__name__)
VERSION = 2  # 1: descriptors in single precision, no intervals
DEFAULT_INDEX = IndexConfig()
MEASURED = ("seconds", "peak_rss_mb", "index")


def evaluate(
    *,
    store: FeatureStore,
    benchmark: Benchmark,
    model: str,
    members: Sequence[Member],
    queries_cropped: bool | None,
    config: EvaluateConfig,
    index: IndexConfig = DEFAULT_INDEX,
    random: RandomDistractors | None = None,
    scorer: Callable[[np.ndarray], Scorer] = DotProducts,
    workers: int | None = None,
    engine: Engine = LOCAL,
) -> dict[str, Any]:
    """Score one model: a single member, or an ensemble by the mean of its members' cosines.

    Searches the descriptors of the store, without torch unless the `scorer` of the queries (Q, D) brings it; the
    result is kept as a `scores` artifact and returned as the JSON object of `cgd evaluate --json` (percentages with
    full precision). `queries_cropped` is None where the benchmark has no boxes. Frames are searched as the videos
    that they are of, exactly and on the CPU.
    """
    _refuse_empty(benchmark)
    if benchmark.of_videos:
        _refuse_beside_videos(members, config, random)
    elif config.codes != "none":
        _refuse_beside_codes(members, random)
    _refuse_others(store, benchmark, members)
    store_images(store, benchmark.gallery)
    store_images(store, benchmark.queries)
    ranked = by_video(benchmark)
    truth = benchmark.truth or label_truth(ranked.gallery, ranked.queries, ranked.leave_one_out)
    rows = drawn_queries(benchmark, config)
    if len(rows) < len(ranked.queries) and not benchmark.of_videos:
        ranked, truth = _only(ranked, truth, rows)
    card = protocol_card(store, benchmark, members, queries_cropped, config, index, random)
    inputs = [k for m in members for k in (*artifacts_of(m), *([m.whitening] if m.whitening else []))]
    # Of codes by label, the lists of positives may be longer than all else together.
    by_class = config.codes != "none" and benchmark.truth is None
    relevant = _labels_digest(ranked) if by_class else _truth_digest(truth)
    identity = identify("scores", [benchmark.name, model], VERSION, {"card": card, "truth": relevant}, inputs)
    if not store.is_sealed(identity.key):
        job = Job(store, benchmark, ranked, rows, model, members, truth, config, index, random, scorer, workers, engine)
        if benchmark.of_videos:
            found = score_videos(job)
        else:
            found = score_codes(job) if config.codes != "none" else score_images(job)
        arrays = {
            "queries": np.array(ranked.queries.ids, dtype=object),
            "average_precision": np.stack([s.average_precision for s in found.scores]),
        }
        result = {
            "benchmark": benchmark.name,
            "model": model,
            "mode": card.get("mode", "symmetric"),
            "queries": len(ranked.queries),
            **found.counts,
            "card": card,
            "protocols": found.protocols,
        }
        notes = {"seconds": found.seconds, "peak_rss_mb": _peak_rss_mb(), **found.measured}
        store.write_whole(identity, arrays, attributes={"model": model, "result": result}, notes=notes)
    known = store.provenance(identity.key)  # a copied store may have none
    last = known[-1] if known else {}
    measured = {"seconds": {}, "peak_rss_mb": None} | {name: last[name] for name in MEASURED if name in last}
    result = store.get(identity.key).attributes["result"]
    _tell_without_positives(result)
    return {**result, **measured, "key": str(identity.key)}


def _only(benchmark: Benchmark, truth: GroundTruth, rows: np.ndarray) -> tuple[Benchmark, GroundTruth]:
    """Some of the queries, searched in the whole gallery."""
    queries = benchmark.queries
    few = dataclasses.replace(
        queries,
        ids=tuple(queries.ids[r] for r in rows),
        paths=tuple(queries.paths[r] for r in rows),
        labels=queries.labels and tuple(queries.labels[r] for r in rows),
        boxes=queries.boxes and tuple(queries.boxes[r] for r in rows),
    )
    easy, hard, junk = (tuple(part[r] for r in rows) for part in (truth.easy, truth.hard, truth.junk))
    return dataclasses.replace(benchmark, queries=few), GroundTruth(easy, hard, junk)


def _refuse_empty(benchmark: Benchmark) -> None:
    for images in (benchmark.gallery, benchmark.queries):
        if not len(images):
            raise InputError(f"{images.title} of {benchmark.name} holds no image, so there is nothing to score.")


def _refuse_others(store: FeatureStore, benchmark: Benchmark, members: Sequence[Member]) -> None:
    """Vectors of another model, or of other images, give numbers that look like scores."""
    for member in members:
        gallery, queries = store.get(keys_of(member.gallery)[0]), store.get(member.queries)
        for images, artifact in ((benchmark.gallery, gallery), (benchmark.queries, queries)):
            if artifact.settings["ids"] != ids_digest(images):
                raise InputError(f"{artifact.key} holds other images than {images.title}: extract these first.")
        if isinstance(member.gallery, Fused):
            continue
        for key in (member.queries, *(d for d in member.distractors if isinstance(d, Key))):
            other = store.get(key)
            if other.settings["encoder"] != gallery.settings["encoder"]:
                raise InputError(
                    f"{key} is of another model than the gallery {gallery.key}: extract both with the same one."
                )


def _refuse_beside_videos(members: Sequence[Member], config: EvaluateConfig, random: RandomDistractors | None) -> None:
    """What is for images only."""
    if config.index != "exact":
        raise InputError(f"videos are searched exactly: set evaluate.index to exact, not {config.index}.")
    if config.codes != "none":
        raise InputError("videos are searched by the vectors of their frames: set evaluate.codes to none.")
    if config.random_queries:
        raise InputError("videos are all searched for: leave evaluate.random_queries at 0.")
    if random is not None or any(member.distractors for member in members):
        raise InputError("a benchmark of videos brings its own unlabelled videos: leave out --distractors.")


def _refuse_beside_codes(members: Sequence[Member], random: RandomDistractors | None) -> None:
    """What has no codes."""
    if len(members) > 1:
        raise InputError("binary codes are of one model: leave out --ensemble, or set evaluate.codes to none.")
    if random is not None:
        raise InputError("random distractors are vectors without codes: leave them out, or set evaluate.codes to none.")


def _tell_without_positives(result: Mapping[str, Any]) -> None:
    for protocol, values in result["protocols"].items():
        if left_out := result["queries"] - values["queries"]:
            log.info(
                "%s, %s: %d of %d queries have no positive and are left out",
                result["benchmark"], protocol, left_out, result["queries"],
            )  # fmt: skip


def _truth_digest(truth: GroundTruth) -> str:
    return sha256(canonical([[part.tolist() for part in parts] for parts in dataclasses.astuple(truth)]))


def _labels_digest(benchmark: Benchmark) -> str:
    return sha256(canonical([benchmark.gallery.labels, benchmark.queries.labels, benchmark.leave_one_out]))


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
