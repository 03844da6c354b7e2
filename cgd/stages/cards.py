"""The protocol card of a score: everything a reader needs to know what the number means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cgd.config import EvaluateConfig, IndexConfig
from cgd.retrieval.metrics import RECALL_AT, random_queries
from cgd.stages.descriptors import Fused, Member, RandomDistractors, keys_of
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, Key


def protocol_card(
    store: FeatureStore,
    benchmark: Benchmark,
    members: Sequence[Member],
    queries_cropped: bool | None,
    config: EvaluateConfig,
    index: IndexConfig,
    random: RandomDistractors | None,
) -> dict[str, Any]:
    """Everything a reader needs to know what the score means."""
    artifacts = [store.get(m.queries) for m in members]
    spec = [a.attributes["input"] for a in artifacts]
    dims = [
        a.attributes["dim"] if m.whitening is None else store.get(m.whitening).shape("projection")[0]
        for a, m in zip(artifacts, members, strict=True)
    ]

    def of_all(values: Sequence[Any]) -> Any:
        return values[0] if all(v == values[0] for v in values) else list(values)

    firsts = [store.get(keys_of(d)[0]) for d in members[0].distractors]
    sets = [{"name": first.settings["dataset"], "images": first.rows} for first in firsts]
    if random is not None:
        sets.append(
            {
                "name": f"random:{random.count}",
                "images": random.count,
                "note": "synthetic unit vectors: not a published protocol",
            }
        )
    fused = members[0].gallery
    return {
        **({"mode": "asymmetric", "gallery": _fused_card(store, fused)} if isinstance(fused, Fused) else {}),
        "members": [m.label for m in members],
        "query_crop": queries_cropped,
        "scales": of_all([s["scales"] for s in spec]),
        "image_size": of_all([s["size"] for s in spec]),
        "resize": of_all([s["resize"] for s in spec]),
        "filter": of_all([s["filter"] for s in spec]),
        "combine": of_all([s["combine"] for s in spec]),
        **({"degrade": spec[0]["degrade"]} if "degrade" in spec[0] else {}),
        "precision": of_all([a.settings["precision"] for a in artifacts]),
        "dim": of_all(dims),
        "similarity": "cosine" if len(members) == 1 else "mean of the members' cosines",
        "whitening": of_all([str(m.whitening) if m.whitening else None for m in members]),
        "relevance": "ground truth"
        if benchmark.truth
        else ("label, leave-one-out" if benchmark.leave_one_out else "label"),
        "ap": config.ap,
        "ties": "score, then index",
        "descriptors": {"half": "float16", "single": "float32"}[config.descriptors],
        "index": "exact"
        if config.index == "exact"
        else {"kind": config.index, "k": config.k, **index.of(config.index)},
        "distractors": sets,
        "artifacts": [str(k) for m in members for k in artifacts_of(m)],
        **_label_card(benchmark, config),
        **(_video_card(benchmark, config, spec) if benchmark.of_videos else {}),
        **(_codes_card(benchmark, config, dims[0]) if config.codes != "none" else {}),
    }


def recalls_of(benchmark: Benchmark, config: EvaluateConfig) -> tuple[int, ...]:
    """At which k recall is told: as set, or as published with the benchmark."""
    return config.recall_at or benchmark.recall_at


def drawn_queries(benchmark: Benchmark, config: EvaluateConfig) -> np.ndarray:
    """Rows of the queries that are scored, ascending: all, or `random_queries` of them where there are more."""
    count = len(benchmark.queries)
    if not 0 < config.random_queries < count:
        return np.arange(count)
    return random_queries(count, config.random_queries, np.random.default_rng(config.seed))


def _label_card(benchmark: Benchmark, config: EvaluateConfig) -> dict[str, Any]:
    """What is said where it is not as everywhere: the k of recalls, and queries drawn at random."""
    recalls, count = recalls_of(benchmark, config), len(benchmark.queries)
    told: dict[str, Any] = {}
    if benchmark.truth is None and recalls != RECALL_AT:
        told["recall_at"] = list(recalls)
    if 0 < config.random_queries < count:
        told["random_queries"] = {"drawn": config.random_queries, "of": count, "seed": config.seed}
    return told


def _codes_card(benchmark: Benchmark, config: EvaluateConfig, bits: int) -> dict[str, Any]:
    """What is otherwise where vectors are made binary codes (methods.md 8.6)."""
    shared = "at least one shared class" + (", leave-one-out" if benchmark.leave_one_out else "")
    return {
        "similarity": "Hamming distance",
        "descriptors": f"codes of {bits} bits, the signs of {bits} outputs (an exact 0 counts as below 0)",
        "relevance": "ground truth" if benchmark.truth else shared,
        "ap": f"mean-precision@{config.top or 'all'} (over hits)",
        "ties": "distance, then index",
        "index": "exact binary",
        "bits": bits,
        "top": config.top or "all",
    }


VIDEO_SIMILARITIES = {
    "cf": "Chamfer of frames (cf)",
    "fme": "cosine of the frames' means (fme)",
    "fmx": "cosine of the frames' maxima (fmx)",
    "sme": "mean cosine of frames (sme)",
    "smx": "largest cosine of frames (smx)",
}


def _video_card(benchmark: Benchmark, config: EvaluateConfig, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of videos instead of images."""
    similarity = VIDEO_SIMILARITIES[config.video]
    plain = [set(each.get("mean", ())) == {0.0} and set(each.get("std", ())) == {1.0} for each in inputs]
    return {
        "pixels": "not normalised, as in the released evaluation" if all(plain) else "normalised",
        "similarity": similarity if len(inputs) == 1 else f"mean of the members' similarities, each {similarity}",
        "frames": f"first {config.frames}" if config.frames else "all",
        "ap": "mean precision at the hits",
        "descriptors": "float32",
        "relevance": "videos judged for the query, and all unlabelled ones"
        if benchmark.truth
        else "label of the video, leave-one-out",
    }


def artifacts_of(member: Member) -> list[Key]:
    """What one member's scores come from, its whitening apart."""
    return [*keys_of(member.gallery), member.queries, *(k for d in member.distractors for k in keys_of(d))]


def _fused_card(store: FeatureStore, fused: Fused) -> dict[str, Any]:
    """How the gallery of an asymmetric score was made."""
    artifacts = [store.get(key) for key in fused.teachers]
    return {
        "teachers": [a.attributes["label"] for a in artifacts],
        "fusion": fused.fusion,
        "whitening": [str(key) for key in fused.whitenings],
        "inputs": [a.attributes["input"] for a in artifacts],
    }
