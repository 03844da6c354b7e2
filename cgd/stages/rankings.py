"""Rankings and their scores: of images by their vectors or their binary codes, of videos by their frames'."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cgd.config import EvaluateConfig, IndexConfig
from cgd.engines import Engine, Work, Worker
from cgd.engines.local import LOCAL
from cgd.errors import InputError
from cgd.progress import progress
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
from cgd.retrieval.search import (
    Block,
    Levels,
    Pieces,
    Scorer,
    counts_above,
    in_given_order,
    levels_of,
    nearest,
    ranks_of,
    scores_of_wanted,
)
from cgd.retrieval.video import VideoScorer
from cgd.stages.cards import recalls_of
from cgd.stages.descriptors import Gallery, Member, RandomDistractors, computed, join, open_gallery
from cgd.stages.rows import runs
from cgd.stages.sight import Sight, sight
from cgd.stages.videos import gallery_of, video_vectors
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, GroundTruth, ImageList, Score

RUNS_PER_WORKER = 4  # of blocks: fewer leave workers idle in the end, more travel more
Ranks = dict[str, list[np.ndarray]]
Wanted = Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]


@dataclass(frozen=True)
class Job:
    """All that a score is made of; `ranked` is the benchmark with its queries in `rows` alone, or with videos."""

    store: FeatureStore
    benchmark: Benchmark
    ranked: Benchmark
    rows: np.ndarray
    model: str
    members: Sequence[Member]
    truth: GroundTruth
    config: EvaluateConfig
    index: IndexConfig
    random: RandomDistractors | None
    scorer: Callable[[np.ndarray], Scorer]
    workers: int | None
    engine: Engine = LOCAL

    @property
    def protocols(self) -> Sequence[str]:
        return PROTOCOLS if self.benchmark.truth else ("labels",)


@dataclass(frozen=True)
class Found:
    """Scores and their JSON by protocol, how many images there were, and `seconds` by what they were spent on."""

    scores: Sequence[Score]
    protocols: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    measured: Mapping[str, Any] = field(default_factory=dict)


def score_images(job: Job) -> Found:
    """Every query by cosine with every image of gallery and distractors."""
    started = time.perf_counter()
    of_gallery = job.members, job.config.descriptors, job.random
    gallery = open_gallery(job.store, *of_gallery, job.engine)
    query_vectors = [computed(job.store, m.queries, m.whitening) for m in job.members]
    present, readable = (np.logical_and.reduce([v.valid for v in found]) for found in (gallery.sets[0], query_vectors))
    _refuse_invalid(job, present, readable[job.rows])
    queries = join([v.read(range(len(v.valid))) for v in query_vectors])[job.rows]
    _refuse_other_widths(gallery, queries.shape[1])
    described = time.perf_counter()
    wanted = {p: relevance(job.truth, "medium" if p == "labels" else p) for p in job.protocols}
    measured: dict[str, Any]
    if job.config.index == "exact":
        parts = _Parts(partial(job.scorer, queries), partial(_image_blocks, of_gallery=of_gallery))
        ranks, measured = _exact_ranks(job, parts, gallery.blocks, wanted), {}
    else:
        ranks, measured = _found_ranks(job, queries, gallery, wanted)
    searched = time.perf_counter()
    recalls = recalls_of(job.benchmark, job.config)
    results = [score(p, ranks[p], wanted[p][0], job.config.ap, recalls) for p in job.protocols]
    counts = [np.logical_and.reduce([v.valid for v in members]) for members in gallery.sets]
    random = job.random.count if job.random else 0
    return Found(
        scores=results,
        protocols={s.protocol: _percentages(s) for s in results},
        counts={"gallery": len(job.benchmark.gallery), **_counts(counts, random)},
        seconds=_laps(started, described, searched),
        measured=measured,
    )


def score_videos(job: Job) -> Found:
    """Every query video against all videos; mAP among the first 100 and over all (methods.md 8.5)."""
    started = time.perf_counter()
    gallery = video_vectors(job.store, job.benchmark.gallery, job.members, gallery_of)
    queries = video_vectors(job.store, job.benchmark.queries, job.members, lambda member: member.queries)
    _refuse_invalid(job, gallery.valid, queries.valid)
    scorer = partial(VideoScorer, queries.read(range(len(queries.starts))), job.config.video)
    described = time.perf_counter()
    wanted = {p: relevance(job.truth, "medium") for p in VIDEO_PROTOCOLS}
    blocks_of = partial(_video_blocks, images=job.benchmark.gallery, members=job.members)
    ranks = _exact_ranks(job, _Parts(scorer, blocks_of), gallery.blocks, wanted)
    searched = time.perf_counter()
    results = [score_at(p, ranks[p], k) for p, k in VIDEO_PROTOCOLS.items()]
    return Found(
        scores=results,
        protocols={s.protocol: _percentages(s) for s in results},
        counts={
            "gallery": len(job.ranked.gallery),
            **_counts([gallery.valid]),
            "invalid_frames": int((~gallery.known).sum() + (~queries.known).sum()),
        },
        seconds=_laps(started, described, searched),
    )


def score_codes(job: Job) -> Found:
    """Every query by the Hamming distance of binary codes, with what the score would be however ties fell (8.6)."""
    from cgd.stages import codes as stored  # FAISS only where it is asked for

    started = time.perf_counter()
    (member,) = job.members
    keys = [stored.encode(job.store, images, member.whitening) for images in (member.gallery, *member.distractors)]
    gallery = [stored.read_codes(job.store, key) for key in keys]
    queries = stored.read_codes(job.store, stored.encode(job.store, member.queries, member.whitening))
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
    scored = stored.score_codes(queries.packed[job.rows], gallery, wanted, cut, depths, f"scoring {job.model}"[:40])
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
    return Found(
        scores=results,
        protocols=protocols,
        counts={"gallery": len(job.benchmark.gallery), **_counts([codes.valid for codes in gallery])},
        seconds=_laps(started, described, searched),
    )


@dataclass(frozen=True)
class _Parts:
    """How a worker comes by the scorer of the queries, and by the blocks of the gallery from its store."""

    scorer: Callable[[], Scorer]
    blocks: Callable[[FeatureStore], Sequence[Block]]


def _image_blocks(store: FeatureStore, *, of_gallery: Any) -> Sequence[Block]:
    return open_gallery(store, *of_gallery).blocks


def _video_blocks(store: FeatureStore, *, images: ImageList, members: Sequence[Member]) -> Sequence[Block]:
    return video_vectors(store, images, members, gallery_of).blocks


def _exact_ranks(job: Job, parts: _Parts, blocks: Sequence[Block], wanted: Wanted) -> Ranks:
    """Ranks of all positives: every image of the gallery is compared with them, whatever the number of protocols.

    Workers take runs of blocks: first for the scores of what is wanted, then to count what comes before it. Counts
    are whole numbers, so ranks do not depend on who counted.
    """
    truth = job.truth
    chosen = [np.unique(np.concatenate(each)) for each in zip(truth.easy, truth.hard, truth.junk, strict=True)]
    with sight(job.store, job.engine) as seen, job.engine.start(_Search(seen, parts, job.workers)) as pool:
        cuts = list(runs(len(blocks), 1 if pool.workers == 1 else RUNS_PER_WORKER * pool.workers))
        found = pool.run(_Searcher.scores, [(cut, chosen) for cut in cuts])
        levels = levels_of(chosen, [pieces for _, pieces in found])
        above = [np.zeros(len(each), np.int64) for each in chosen]
        with progress(sum(len(b.rows) for b in blocks), f"scoring {job.model}"[:40]) as bar:
            for _, counts in pool.run(_Searcher.counts, [(cut, levels) for cut in cuts], bar):
                for total, more in zip(above, counts, strict=True):
                    total += more
    above = in_given_order(levels, above)
    return {
        protocol: [ranks_of(*each) for each in zip(chosen, above, positives, ignored, strict=True)]
        for protocol, (positives, ignored) in wanted.items()
    }


@dataclass(frozen=True)
class _Search(Work["_Searcher"]):
    sight: Sight
    parts: _Parts
    threads: int | None

    def check(self) -> None:
        self.sight.check()

    def open(self, worker: Worker) -> _Searcher:
        blocks = self.parts.blocks(self.sight.open())
        return _Searcher(self.parts.scorer(), blocks, worker.threads or self.threads, worker)


@dataclass(frozen=True)
class _Searcher:
    scorer: Scorer
    blocks: Sequence[Block]
    threads: int | None
    worker: Worker

    def scores(self, unit: tuple[range, Sequence[np.ndarray]]) -> Pieces:
        cut, wanted = unit
        return scores_of_wanted(self.scorer, self._blocks(cut), wanted, workers=self.threads)

    def counts(self, unit: tuple[range, Sequence[Levels]]) -> list[np.ndarray]:
        cut, levels = unit
        return counts_above(self.scorer, self._blocks(cut), levels, workers=self.threads, bar=self.worker.bar)

    def _blocks(self, cut: range) -> Sequence[Block]:
        return self.blocks[cut.start : cut.stop]


def _found_ranks(job: Job, queries: np.ndarray, gallery: Gallery, wanted: Wanted) -> tuple[Ranks, dict[str, Any]]:
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


def _refuse_other_widths(gallery: Gallery, dim: int) -> None:
    """Galleries of fused teachers, and stores that were put together by hand, may differ from the queries."""
    for number, members in enumerate(gallery.sets):
        if (width := sum(member.dim for member in members)) != dim:
            which = f"distractor set {number}" if number else "the gallery"
            raise InputError(
                f"the vectors of {which} have {width} dimensions, those of the queries {dim}: they do not "
                "share a space; extract both with the same model and whitening."
            )


def _refuse_invalid(job: Job, present: np.ndarray, readable: np.ndarray) -> None:
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


def _counts(valid: Sequence[np.ndarray], random: int = 0) -> dict[str, int]:
    """Of the gallery (G,) bool and sets of distractors: which of their images are there."""
    gallery, *distractors = valid
    return {
        "distractors": sum(int(v.sum()) for v in distractors) + random,
        "invalid_distractors": sum(int((~v).sum()) for v in distractors),
        "invalid_gallery": int((~gallery).sum()),
    }


def _laps(started: float, described: float, searched: float) -> dict[str, float]:
    return {
        "describe": described - started,
        "search": searched - described,
        "score": time.perf_counter() - searched,
    }


def _percentages(result: Score) -> dict[str, Any]:
    values: dict[str, Any] = {"mAP": 100 * result.mean_ap}
    if result.queries:
        values["mAP_interval"] = [100 * end for end in interval(result.average_precision)]
    if result.protocol == "labels":
        values |= {f"recall@{k}": 100 * v for k, v in result.recall_at.items()}
    values |= {f"mP@{k}": 100 * v for k, v in result.precision_at.items()}
    return {name: None if v != v else v for name, v in values.items()} | {"queries": result.queries}  # NaN: none
