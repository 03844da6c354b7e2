"""Search every query in the gallery and its distractors, and score the ranking with its protocol beside it."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cgd.config import EvaluateConfig
from cgd.data.datasets import label_truth
from cgd.errors import InputError
from cgd.retrieval.metrics import PROTOCOLS, relevance, score
from cgd.retrieval.search import count_above, exact_ranks
from cgd.stages.descriptors import (
    DistractorCount,
    Fused,
    Member,
    RandomDistractors,
    descriptors,
    distractor_scores,
    keys_of,
    similarity,
)
from cgd.stages.images import store_images
from cgd.stages.whiten import read_whitening
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import canonical, identify, sha256
from cgd.types import Benchmark, GroundTruth, Key, Score

VERSION = 1
QUERY_BLOCK = 512
SCORE = "score.json"


def evaluate(
    *,
    store: FeatureStore,
    benchmark: Benchmark,
    model: str,
    members: Sequence[Member],
    queries_cropped: bool | None,
    config: EvaluateConfig,
    random: RandomDistractors | None = None,
) -> dict[str, Any]:
    """Score one model: a single member, or an ensemble by the mean of its members' cosines.

    Exact search in the embeddings of the store, without torch; the result is kept as a `scores` artifact and
    returned as the JSON object of `cgd evaluate --json` (percentages with full precision). `queries_cropped` is
    None where the benchmark has no boxes.
    """
    store_images(store, benchmark.gallery)
    store_images(store, benchmark.queries)
    truth = benchmark.truth or label_truth(benchmark.gallery, benchmark.queries, benchmark.leave_one_out)
    protocols = PROTOCOLS if benchmark.truth else ("labels",)
    card = _card(store, benchmark, members, queries_cropped, config, random)
    inputs = [k for m in members for k in (*_artifacts(m), *([m.whitening] if m.whitening else []))]
    identity = identify(
        "scores", [benchmark.name, model], VERSION, {"card": card, "truth": _truth_digest(truth)}, inputs
    )
    if not store.is_sealed(identity.key):
        result, scores = _score(store, benchmark, model, members, truth, protocols, card, config, random)
        arrays = {
            "queries": np.array(benchmark.queries.ids, dtype=object),
            "average_precision": np.stack([s.average_precision for s in scores]),
        }
        notes = {name: result.pop(name) for name in ("seconds", "peak_rss_mb")}
        store.write_whole(identity, arrays, attributes={"model": model, "result": result}, notes=notes)
    known = store.provenance(identity.key)  # a copied store may have none
    last = known[-1] if known else {}
    measured = {"seconds": last.get("seconds", {}), "peak_rss_mb": last.get("peak_rss_mb")}
    return {**store.get(identity.key).attributes["result"], **measured, "key": str(identity.key)}


def _score(
    store: FeatureStore,
    benchmark: Benchmark,
    model: str,
    members: Sequence[Member],
    truth: GroundTruth,
    protocols: Sequence[str],
    card: Mapping[str, Any],
    config: EvaluateConfig,
    random: RandomDistractors | None,
) -> tuple[dict[str, Any], list[Score]]:
    started = time.perf_counter()
    whitenings = [read_whitening(store, m.whitening) if m.whitening else None for m in members]
    gallery, present = descriptors(store, [m.gallery for m in members], whitenings)
    queries, readable = descriptors(store, [m.queries for m in members], whitenings)
    _refuse_invalid(benchmark, truth, present, readable)
    wanted = {p: _protocol(truth, p) for p in protocols}
    ranks: dict[str, list[np.ndarray]] = {p: [] for p in protocols}
    counts = DistractorCount()
    for start in range(0, len(benchmark.queries), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        part = [q[block] for q in queries]
        scores = similarity(part, gallery)  # (Q', G)
        scores[:, ~present] = -np.inf  # an unreadable gallery image is never found
        relevant = [np.concatenate(r) for r in zip(truth.easy[block], truth.hard[block], strict=True)]
        counts = DistractorCount()
        above = count_above(scores, relevant, distractor_scores(store, part, members, whitenings, random, counts))
        for protocol, (positives, ignored) in wanted.items():
            chosen = [_pick(a, r, p) for a, r, p in zip(above, relevant, positives[block], strict=True)]
            ranks[protocol] += exact_ranks(scores, positives[block], ignored[block], chosen)
    searched = time.perf_counter()
    results = [score(p, ranks[p], wanted[p][0], config.ap) for p in protocols]
    finished = time.perf_counter()
    result = {
        "benchmark": benchmark.name,
        "model": model,
        "mode": card.get("mode", "symmetric"),
        "queries": len(benchmark.queries),
        "gallery": len(benchmark.gallery),
        "distractors": counts.valid,
        "invalid_distractors": counts.invalid,
        "invalid_gallery": int((~present).sum()),
        "card": card,
        "protocols": {s.protocol: _percentages(s) for s in results},
        "seconds": {"search": searched - started, "score": finished - searched},
        "peak_rss_mb": _peak_rss_mb(),
    }
    return result, results


def _protocol(truth: GroundTruth, protocol: str) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    return relevance(truth, "medium" if protocol == "labels" else protocol)


def _pick(above: np.ndarray, relevant: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The entries of `above` (aligned with `relevant`) that belong to `positives`."""
    order = np.argsort(relevant, kind="stable")
    return above[order[np.searchsorted(relevant[order], positives)]]


def _refuse_invalid(benchmark: Benchmark, truth: GroundTruth, present: np.ndarray, readable: np.ndarray) -> None:
    """A query or positive that cannot be read makes a score meaningless."""
    if not readable.all():
        name = benchmark.queries.ids[int(np.argmin(readable))]
        raise InputError(
            f"the query '{name}' of {benchmark.name} cannot be decoded: restore it, then extract under another --name."
        )
    for positives in (*truth.easy, *truth.hard):
        if not present[positives].all():
            name = benchmark.gallery.ids[int(positives[np.argmin(present[positives])])]
            raise InputError(
                f"the positive '{name}' of {benchmark.name} cannot be decoded: "
                "restore it, then extract under another --name."
            )


def _card(
    store: FeatureStore,
    benchmark: Benchmark,
    members: Sequence[Member],
    queries_cropped: bool | None,
    config: EvaluateConfig,
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
        "precision": of_all([a.settings["precision"] for a in artifacts]),
        "dim": of_all(dims),
        "similarity": "cosine" if len(members) == 1 else "mean of the members' cosines",
        "whitening": of_all([str(m.whitening) if m.whitening else None for m in members]),
        "relevance": "ground truth"
        if benchmark.truth
        else ("label, leave-one-out" if benchmark.leave_one_out else "label"),
        "ap": config.ap,
        "ties": "score, then index",
        "index": "exact",
        "distractors": sets,
        "artifacts": [str(k) for m in members for k in _artifacts(m)],
    }


def _artifacts(member: Member) -> list[Key]:
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


def _truth_digest(truth: GroundTruth) -> str:
    return sha256(canonical([[part.tolist() for part in parts] for parts in dataclasses.astuple(truth)]))


def _percentages(result: Score) -> dict[str, Any]:
    values = {"mAP": 100 * result.mean_ap}
    if result.protocol == "labels":
        values |= {f"recall@{k}": 100 * v for k, v in result.recall_at.items()}
    values |= {f"mP@{k}": 100 * v for k, v in result.precision_at.items()}
    return {name: None if np.isnan(v) else v for name, v in values.items()} | {"queries": result.queries}


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
