"""Search every query in the gallery and its distractors, and score the ranking with its protocol beside it."""

from __future__ import annotations

import dataclasses
import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgd.config import EvaluateConfig, IndexConfig
from cgd.data.datasets import label_truth
from cgd.data.frames import by_video
from cgd.errors import InputError
from cgd.retrieval.bootstrap import interval
from cgd.retrieval.metrics import (
    HAMMING,
    HAMMING_AT,
    PROTOCOLS,
    VIDEO_PROTOCOLS,
    relevance,
    score,
    score_at,
)
from cgd.retrieval.search import Block, DotProducts, Scorer, count_above, nearest, ranks_of
from cgd.retrieval.video import VideoScorer
from cgd.stages.cards import artifacts_of, drawn_queries, protocol_card, recalls_of
from cgd.stages.descriptors import (
    Fused,
    Gallery,
    Member,
    RandomDistractors,
    computed,
    join,
    keys_of,
    open_gallery,
)
from cgd.stages.images import store_images
from cgd.stages.videos import video_vectors
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import canonical, identify, ids_digest, sha256
from cgd.types import Benchmark, GroundTruth, Key, Score

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
        job = _Job(store, benchmark, ranked, rows, model, members, truth, card, config, index, random, scorer, workers)
        how = _score_codes if config.codes != "none" else _score
        result, scores = (_score_videos if benchmark.of_videos else how)(job)
        arrays = {
            "queries": np.array(ranked.queries.ids, dtype=object),
            "average_precision": np.stack([s.average_precision for s in scores]),
        }
        notes = {name: result.pop(name) for name in MEASURED if name in result}
        store.write_whole(identity, arrays, attributes={"model": model, "result": result}, notes=notes)
    known = store.provenance(identity.key)  # a copied store may have none
    last = known[-1] if known else {}
    measured = {"seconds": {}, "peak_rss_mb": None} | {name: last[name] for name in MEASURED if name in last}
    result = store.get(identity.key).attributes["result"]
    _tell_without_positives(result)
    return {**result, **measured, "key": str(identity.key)}


@dataclass(frozen=True)
class _Job:
    """All that a score is made of; `ranked` is the benchmark with its queries in `rows` alone, or with videos."""

    store: FeatureStore
    benchmark: Benchmark
    ranked: Benchmark
    rows: np.ndarray
    model: str
    members: Sequence[Member]
    truth: GroundTruth
    card: Mapping[str, Any]
    config: EvaluateConfig
    index: IndexConfig
    random: RandomDistractors | None
    scorer: Callable[[np.ndarray], Scorer]
    workers: int | None

    @property
    def protocols(self) -> Sequence[str]:
        return PROTOCOLS if self.benchmark.truth else ("labels",)


def _score(job: _Job) -> tuple[dict[str, Any], list[Score]]:
    started = time.perf_counter()
    gallery = open_gallery(job.store, job.members, job.config.descriptors, job.random)
    query_vectors = [computed(job.store, m.queries, m.whitening) for m in job.members]
    present, readable = (np.logical_and.reduce([v.valid for v in found]) for found in (gallery.sets[0], query_vectors))
    _refuse_invalid(job, present, readable[job.rows])
    queries = join([v.read(range(len(v.valid))) for v in query_vectors])[job.rows]
    _refuse_other_widths(gallery, queries.shape[1])
    described = time.perf_counter()
    wanted = {p: relevance(job.truth, "medium" if p == "labels" else p) for p in job.protocols}
    measured: dict[str, Any]
    if job.config.index == "exact":
        ranks, measured = _exact_ranks(job, job.scorer(queries), gallery.blocks, wanted), {}
    else:
        ranks, measured = _found_ranks(job, queries, gallery, wanted)
    searched = time.perf_counter()
    recalls = recalls_of(job.benchmark, job.config)
    results = [score(p, ranks[p], wanted[p][0], job.config.ap, recalls) for p in job.protocols]
    finished = time.perf_counter()
    counts = [np.logical_and.reduce([v.valid for v in members]) for members in gallery.sets]
    random = job.random.count if job.random else 0
    result = {
        "benchmark": job.benchmark.name,
        "model": job.model,
        "mode": job.card.get("mode", "symmetric"),
        "queries": len(job.ranked.queries),
        "gallery": len(job.benchmark.gallery),
        "distractors": sum(int(valid.sum()) for valid in counts[1:]) + random,
        "invalid_distractors": sum(int((~valid).sum()) for valid in counts[1:]),
        "invalid_gallery": int((~counts[0]).sum()),
        "card": job.card,
        "protocols": {s.protocol: _percentages(s) for s in results},
        "seconds": {
            "describe": described - started, "search": searched - described, "score": finished - searched
        },
        "peak_rss_mb": _peak_rss_mb(),
        **measured,
    }  # fmt: skip
    return result, results


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


Ranks = dict[str, list[np.ndarray]]
Wanted = Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]


def _score_videos(job: _Job) -> tuple[dict[str, Any], list[Score]]:
    """Every query video against all videos; mAP among the first 100 and over all (methods.md 8.5)."""
    started = time.perf_counter()
    gallery = video_vectors(job.store, job.benchmark.gallery, job.members, lambda member: member.gallery)
    queries = video_vectors(job.store, job.benchmark.queries, job.members, lambda member: member.queries)
    _refuse_invalid(job, gallery.valid, queries.valid)
    scorer = VideoScorer(queries.read(range(len(queries.starts))), job.config.video)
    described = time.perf_counter()
    wanted = {p: relevance(job.truth, "medium") for p in VIDEO_PROTOCOLS}
    ranks = _exact_ranks(job, scorer, gallery.blocks, wanted)
    searched = time.perf_counter()
    results = [score_at(p, ranks[p], k) for p, k in VIDEO_PROTOCOLS.items()]
    finished = time.perf_counter()
    result = {
        "benchmark": job.benchmark.name,
        "model": job.model,
        "mode": "symmetric",
        "queries": len(job.ranked.queries),
        "gallery": len(job.ranked.gallery),
        "distractors": 0,
        "invalid_distractors": 0,
        "invalid_gallery": int((~gallery.valid).sum()),
        "invalid_frames": int((~gallery.known).sum() + (~queries.known).sum()),
        "card": job.card,
        "protocols": {s.protocol: _percentages(s) for s in results},
        "seconds": {
            "describe": described - started, "search": searched - described, "score": finished - searched
        },
        "peak_rss_mb": _peak_rss_mb(),
    }  # fmt: skip
    return result, results


def _score_codes(job: _Job) -> tuple[dict[str, Any], list[Score]]:
    """Every query by the Hamming distance of binary codes, with what the score would be however ties fell (8.6)."""
    from cgd.stages.codes import encode, read_codes, score_codes  # FAISS only where it is asked for

    started = time.perf_counter()
    (member,) = job.members
    keys = [encode(job.store, images, member.whitening) for images in (member.gallery, *member.distractors)]
    gallery = [read_codes(job.store, key) for key in keys]
    queries = read_codes(job.store, encode(job.store, member.queries, member.whitening))
    _refuse_invalid(job, gallery[0].valid, queries.valid[job.rows])
    if widths := {codes.bits for codes in gallery} - {queries.bits}:
        raise InputError(
            f"the codes of the queries have {queries.bits} bits, others {', '.join(map(str, sorted(widths)))}: they do "
            "not share a space; extract both with the same model and whitening."
        )
    described = time.perf_counter()
    truth = job.truth
    wanted = {p: relevance(truth, p) for p in PROTOCOLS} if job.benchmark.truth else {HAMMING: (truth.easy, truth.junk)}
    cut, size = job.config.top or None, sum(int(codes.valid.sum()) for codes in gallery)
    depths = job.config.recall_at or tuple(k for k in HAMMING_AT if k <= size)
    scored = score_codes(queries.packed[job.rows], gallery, wanted, cut, depths, f"scoring {job.model}"[:40])
    searched = time.perf_counter()
    results, protocols = [], {}
    for protocol, found in scored.items():
        mean, best, worst = found.average_precision.mean(axis=0).tolist()
        results.append(Score(protocol, mean, len(job.rows), found.average_precision[:, 0]))
        protocols[protocol] = {
            **_percentages(results[-1]),
            "mAP_optimistic": 100 * best,
            "mAP_pessimistic": 100 * worst,
            **{f"precision@{k}": 100 * float(v) for k, v in zip(depths, found.precision, strict=True)},
            **{f"recall@{k}": 100 * float(v) for k, v in zip(depths, found.recall, strict=True)},
        }
    finished = time.perf_counter()
    result = {
        "benchmark": job.benchmark.name,
        "model": job.model,
        "mode": job.card.get("mode", "symmetric"),
        "queries": len(job.ranked.queries),
        "gallery": len(job.benchmark.gallery),
        "distractors": sum(int(codes.valid.sum()) for codes in gallery[1:]),
        "invalid_distractors": sum(int((~codes.valid).sum()) for codes in gallery[1:]),
        "invalid_gallery": int((~gallery[0].valid).sum()),
        "card": job.card,
        "protocols": protocols,
        "seconds": {
            "describe": described - started, "search": searched - described, "score": finished - searched
        },
        "peak_rss_mb": _peak_rss_mb(),
    }  # fmt: skip
    return result, results


def _exact_ranks(job: _Job, scorer: Scorer, blocks: Sequence[Block], wanted: Wanted) -> Ranks:
    """Ranks of all positives: every image of the gallery is compared with them, whatever the number of protocols."""
    truth = job.truth
    chosen = [np.unique(np.concatenate(parts)) for parts in zip(truth.easy, truth.hard, truth.junk, strict=True)]
    above = count_above(scorer, blocks, chosen, workers=job.workers, what=f"scoring {job.model}"[:40])
    return {
        protocol: [ranks_of(*each) for each in zip(chosen, above, positives, ignored, strict=True)]
        for protocol, (positives, ignored) in wanted.items()
    }


def _found_ranks(job: _Job, queries: np.ndarray, gallery: Gallery, wanted: Wanted) -> tuple[Ranks, dict[str, Any]]:
    """Ranks of the positives that an approximate index finds, and how well and how fast it finds what is near."""
    from cgd.stages.index import open_index  # FAISS only where it is asked for

    most = 0 if job.benchmark.truth else max(recalls_of(job.benchmark, job.config)) + job.benchmark.leave_one_out
    if job.config.k < min(most, gallery.size):
        raise InputError(
            f"evaluate.k={job.config.k} nearest images are too few for the recalls that are wanted: set it to {most} "
            "or more."
        )
    if not gallery.keys:
        raise InputError("an approximate index is built from stored descriptors: leave evaluate.descriptors at half.")
    config, k = job.config, min(job.config.k, gallery.size)
    drawn = {"random": dataclasses.asdict(job.random)} if job.random else {}
    started = time.perf_counter()
    index = open_index(
        store=job.store,
        kind=config.index,
        descriptors=gallery.keys,
        gallery=gallery.blocks,
        dim=queries.shape[1],
        config=job.index,
        title=[job.benchmark.name, job.model],
        extra=drawn,
    )
    opened = time.perf_counter()
    _, found = index.search(queries, k)
    searched = time.perf_counter()
    _, exact = nearest(job.scorer(queries), gallery.blocks, k, workers=job.workers, what="exact, to compare")
    ranks: Ranks = {p: [] for p in wanted}
    for protocol, parts in wanted.items():
        for rows, positives, ignored in zip(found, *parts, strict=True):
            left = rows[(rows >= 0) & ~np.isin(rows, ignored)]
            ranks[protocol].append(np.flatnonzero(np.isin(left, positives)))
    measured = {
        **{f"recall@{n}": _overlap(found[:, :n], exact[:, :n]) for n in sorted({1, min(10, k), k})},
        "queries_per_second": len(queries) / (searched - opened),
        "bytes_per_vector": index.bytes_per_vector,
        "seconds_to_open": opened - started,
        "key": str(index.key) if index.key else None,
    }
    return ranks, {"index": measured}


def _overlap(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact nearest that were found, a mean over queries."""
    shares = [np.isin(e[e >= 0], f).mean() for f, e in zip(found, exact, strict=True) if (e >= 0).any()]
    return float(np.mean(shares)) if shares else float("nan")


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


def _refuse_other_widths(gallery: Gallery, dim: int) -> None:
    """Galleries of fused teachers, and stores that were put together by hand, may differ from the queries."""
    for number, members in enumerate(gallery.sets):
        if (width := sum(member.dim for member in members)) != dim:
            which = f"distractor set {number}" if number else "the gallery"
            raise InputError(
                f"the vectors of {which} have {width} dimensions, those of the queries {dim}: they do not "
                "share a space; extract both with the same model and whitening."
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


def _refuse_invalid(job: _Job, present: np.ndarray, readable: np.ndarray) -> None:
    """A query or positive that cannot be read makes a score meaningless; both are (G,) and (Q,) bool."""
    benchmark = job.ranked
    mend = "cannot be decoded: restore it, then extract under another --name."
    if not readable.all():
        name = benchmark.queries.ids[int(np.argmin(readable))]
        raise InputError(f"the query '{name}' of {benchmark.name} {mend}")
    for positives in (*job.truth.easy, *job.truth.hard):
        if not present[positives].all():
            name = benchmark.gallery.ids[int(positives[np.argmin(present[positives])])]
            raise InputError(f"the positive '{name}' of {benchmark.name} {mend}")


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


def _percentages(result: Score) -> dict[str, Any]:
    values: dict[str, Any] = {"mAP": 100 * result.mean_ap}
    if result.queries:
        values["mAP_interval"] = [100 * end for end in interval(result.average_precision)]
    if result.protocol == "labels":
        values |= {f"recall@{k}": 100 * v for k, v in result.recall_at.items()}
    values |= {f"mP@{k}": 100 * v for k, v in result.precision_at.items()}
    return {name: None if v != v else v for name, v in values.items()} | {"queries": result.queries}  # NaN: none


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
