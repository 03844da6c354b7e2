"""Embed a data set's images with each encoder, shard by shard; what is finished is never done again."""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cgd.config import ExtractConfig
from cgd.data.images import digest_of, image_bytes
from cgd.data.loading import ahead
from cgd.data.sampling import within_budget
from cgd.data.views import CROP, CROPPED, view_kind
from cgd.engines import Engine, Pool, Work, Worker
from cgd.engines.local import LOCAL
from cgd.errors import InputError, StoreError
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.progress import progress
from cgd.stages.canaries import check_canaries
from cgd.stages.embed import NOT_ASKED, Look, Meter, Tally, embed_rows, policy_settings
from cgd.stages.growth import stocks
from cgd.stages.images import check_same_images, store_images
from cgd.stages.sight import Sight, rooted, sight
from cgd.store import layout
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, canonical, identify, ids_digest, sha256
from cgd.store.writer import Writer
from cgd.types import ImageList, Key

VERSION = 2  # 2: sides as Pillow's thumbnail and torchvision's Resize round them
SAMPLE_IMAGES = 16  # embedded to know the speed
SAMPLE_DIGESTS = 256  # read to know how many images are new
log = logging.getLogger(__name__)


@dataclass
class EncoderReport:
    """What happened to one encoder's artifacts; `copied` counts the rows of images that were embedded before."""

    keys: dict[str, Key] = field(default_factory=dict)
    shards_written: int = 0
    shards_skipped: int = 0
    copied: int = 0
    tally: Tally = field(default_factory=Tally)

    @property
    def images_per_second(self) -> float:
        """Inside the network; 0 where nothing had to be embedded."""
        return self.tally.embedded / self.tally.seconds if self.tally.seconds else 0.0


@dataclass
class ExtractReport:
    """Counts of the images, the failures with their reasons, and a report per encoder's label.

    `waiting` is the share of the time in which the networks waited for images to be read and decoded; `not_asked` are
    the images beyond the budget, which are no failures.
    """

    images: int
    failed: dict[str, str]
    encoders: dict[str, EncoderReport]
    images_per_second: float = 0.0
    waiting: float = 0.0
    not_asked: int = 0

    @property
    def valid(self) -> int:
        return self.images - self.not_asked - len(self.failed)

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd extract-teachers --json`."""
        return {
            "images": self.images,
            "valid": self.valid,
            "not_asked": self.not_asked,
            "failed": [{"id": i, "reason": r} for i, r in self.failed.items()],
            "images_per_second": self.images_per_second,
            "waiting_for_images": self.waiting,
            "teachers": {
                label: {
                    "key": str(next(iter(e.keys.values()))),
                    "keys": {view: str(key) for view, key in e.keys.items()},
                    "shards_written": e.shards_written,
                    "shards_skipped": e.shards_skipped,
                    "images_copied": e.copied,
                    "images_per_second": e.images_per_second,
                }
                for label, e in self.encoders.items()
            },
        }


@dataclass(frozen=True)
class _Wanted:
    """One artifact: one encoder under one view."""

    source: EncoderSource
    view: str
    identity: Identity


@dataclass(frozen=True)
class _Job:
    """An artifact that is not whole yet, with all it takes to finish it."""

    wanted: _Wanted
    look: Look
    writer: Writer


@dataclass(frozen=True)
class _Cut:
    """Artifacts that are cut at the same rows: by their place among those wanted, which shards each one `lacks`."""

    rows: int
    lacks: Mapping[int, frozenset[int]]
    begun: bool


@dataclass(frozen=True)
class _Made:
    """What one shard cost and gave; lists and dictionaries are by the place of an artifact among those wanted."""

    written: Sequence[int]
    copied: Mapping[int, Mapping[Key, int]]
    tallies: Mapping[str, Tally]  # by label
    images: int
    waited: float


def embeddings_identity(images: ImageList, source: EncoderSource, view: str, config: ExtractConfig) -> Identity:
    """What determines one encoder's vectors of one view: ids, weights, options, the view's policy, precision.

    Of a budget it is the images kept, however they were drawn.
    """
    settings: dict[str, Any] = {
        "dataset": images.name,
        "split": images.split,
        "ids": ids_digest(images),
        "encoder": source.identity,
        "view": view,
        "precision": config.precision,
    }
    if not (asked := _asked(images, config)).all():
        settings["asked"] = sha256(canonical([images.ids[row] for row in np.flatnonzero(asked)]))
    if view_kind(view) == CROP:
        settings["policy"] = {**policy_settings(config), "size": config.crop_size}
    if view == CROPPED:
        settings["boxes"] = sha256(canonical(list(images.boxes or ())))
    return identify("embeddings", [images.title, source.label, view], VERSION, settings)


def _asked(images: ImageList, config: ExtractConfig) -> np.ndarray:
    """(N,) bool: the images that teachers are shown."""
    return within_budget(images, config.images, config.images_by, config.images_seed)


def extract(
    *,
    store: FeatureStore,
    images: ImageList,
    sources: Sequence[EncoderSource],
    views: Sequence[str],
    config: ExtractConfig,
    compute: Compute,
    engine: Engine = LOCAL,
) -> ExtractReport:
    """Make the embeddings of `images` by every source under every view; finished shards are skipped.

    Rows of images that were embedded for another list are copied out of the store (see `stages/growth.py`). Views
    are `fixed`, `cropped` (queries cut to their boxes) and `crop-1`, `crop-2`, … . Raises `CgdError` where an image is
    missing, the disk is too small, or stored vectors belong to other images of the same name.
    """
    wanted = _wanted(images, sources, views, config)
    report = ExtractReport(len(images), {}, {s.label: EncoderReport() for s in sources})
    report.not_asked = int((~_asked(images, config)).sum())
    for each in wanted:
        report.encoders[each.source.label].keys[each.view] = each.identity.key
    check_same_images(store, images)
    finished = [w for w in wanted if store.is_sealed(w.identity.key)]
    for each in finished:
        report.encoders[each.source.label].shards_skipped += store.get(each.identity.key).shard_count
    unsealed = [w for w in wanted if w not in finished]
    if unsealed:
        with sight(store, engine, images, [w.source.weights for w in unsealed]) as seen:
            work = _Extraction(seen, rooted(images) if engine.elsewhere else images, tuple(unsealed), config, compute)
            with engine.start(work, gpus=compute.device.type == "cuda") as pool:
                _run(pool, unsealed, images, compute, report)
    else:
        store_images(store, images)
    report.failed.update(_failures(store, wanted))
    return report


def estimate(
    *,
    store: FeatureStore,
    images: ImageList,
    sources: Sequence[EncoderSource],
    views: Sequence[str],
    config: ExtractConfig,
    compute: Compute,
) -> dict[str, Any]:
    """Bytes to write, bytes free and seconds to expect for what is not stored yet; measured on a few images.

    `share_copied` of the rows, guessed from digests of a few images, will be copied instead of embedded.
    """
    wanted = _wanted(images, sources, views, config)
    unsealed = [w for w in wanted if not store.is_sealed(w.identity.key)]
    asked = np.flatnonzero(_asked(images, config))
    result = {
        "images": len(asked),
        "artifacts": len(unsealed),
        "free_bytes": store.files.free_bytes(),
        "bytes": 0,
        "seconds": 0.0,
        "share_copied": 0.0,
    }
    if not unsealed:
        return result
    looks = _looks(unsealed, {w.source.label: Tally() for w in unsealed}, compute)
    sample, seconds = min(len(asked), SAMPLE_IMAGES), 0.0
    with progress(2 * sample, "measuring") as bar:
        for _ in range(2):  # the first pass warms up
            started = time.perf_counter()
            embed_rows(asked[:sample].tolist(), looks, images, config, compute, Meter(bar))
            seconds = time.perf_counter() - started
    rate, share = sample / seconds, _share_copied(store, images, asked, unsealed, looks, compute)
    return {
        **result,
        "bytes": _bytes(images, looks),
        "images_per_second": rate,
        "seconds": (1 - share) * len(asked) / rate,
        "share_copied": share,
    }


def _wanted(
    images: ImageList, sources: Sequence[EncoderSource], views: Sequence[str], config: ExtractConfig
) -> list[_Wanted]:
    if CROPPED in views and images.boxes is None:
        raise InputError(f"{images.title} has no boxes to cut its queries to.")
    labels = [s.label for s in sources]
    if len(set(labels)) != len(labels):
        raise InputError(f"two of the models have the same name: {', '.join(sorted(labels))}.")
    return [_Wanted(s, v, embeddings_identity(images, s, v, config)) for s in sources for v in views]


def _looks(wanted: Sequence[_Wanted], tallies: dict[str, Tally], compute: Compute) -> list[Look]:
    """Build each network once."""
    encoders: dict[str, Encoder] = {}
    for source in (w.source for w in wanted):
        if source.label not in encoders:
            log.debug("loading %s", source.text)
            encoder = source.build().to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            encoders[source.label] = encoder.eval()
    for each in wanted:
        if each.view == CROPPED and encoders[each.source.label].input_spec.query_crop == "none":
            raise InputError(f"{each.source.label} ignores the boxes of queries (query_crop=none): use --queries full.")
    return [Look(encoders[w.source.label], w.view, tallies[w.source.label]) for w in wanted]


def _check_space(store: FeatureStore, images: ImageList, looks: Sequence[Look]) -> None:
    """Refuse early where the disk is too small."""
    needed, free = _bytes(images, looks), store.files.free_bytes()
    if free is not None and needed > free:
        raise StoreError(
            f"these embeddings need {needed / 1e9:.2f} GB, the store {store.files.url} has {free / 1e9:.2f} GB free; "
            "nothing was written: free space, or name another --store."
        )


def _stocked(store: FeatureStore, unsealed: Sequence[_Wanted], looks: Sequence[Look]) -> list[Look]:
    """The looks with the rows that need not be made again."""
    found = stocks(store, [(w.identity, _about(w, look)) for w, look in zip(unsealed, looks, strict=True)])
    return [dataclasses.replace(look, stock=stock) for look, stock in zip(looks, found, strict=True)]


def _about(wanted: _Wanted, look: Look) -> dict[str, Any]:
    """The attributes of an artifact."""
    spec = json.loads(json.dumps(dataclasses.asdict(look.encoder.input_spec)))
    if not spec["degrade"]:  # artifacts made before it existed do not tell
        del spec["degrade"]
    return {"label": wanted.source.label, "input": spec, "dim": look.encoder.embed_dim}


def _share_copied(
    store: FeatureStore,
    images: ImageList,
    asked: np.ndarray,
    unsealed: Sequence[_Wanted],
    looks: Sequence[Look],
    compute: Compute,
) -> float:
    """Which share of the rows is in the store, by the digests of some images across the list."""
    found = [look.stock for look in _stocked(store, unsealed, looks)]
    if not any(found):
        return 0.0
    rows = asked[np.unique(np.linspace(0, len(asked) - 1, SAMPLE_DIGESTS).astype(int))].tolist()

    def known(row: int) -> list[bool]:
        digest = digest_of(image_bytes(images.root, images.paths[row]))
        return [stock.find(digest, images.ids[row]) is not None for stock in found]

    return float(np.mean([*ahead(known, rows, compute.workers, 2 * compute.workers)]))


def _run(
    pool: Pool[_Extractor], unsealed: Sequence[_Wanted], images: ImageList, compute: Compute, report: ExtractReport
) -> None:
    """Shard by shard: embedded for every artifact that lacks it, published, and sealed where it is whole."""
    cuts = pool.ask(_Extractor.cuts, None)
    started, seen, waited = time.perf_counter(), 0, 0.0
    copied: dict[int, Counter[Key]] = defaultdict(Counter)
    for cut in cuts:
        for made in _made(pool, cut, images, compute, report, unsealed):
            seen, waited = seen + made.images, waited + made.waited
            for place, rows in made.copied.items():
                copied[place].update(rows)
            for label, tally in made.tallies.items():
                report.encoders[label].tally.add(tally)
    for place, rows in copied.items():
        report.encoders[unsealed[place].source.label].copied += rows.total()
    pool.ask(_Extractor.seal, copied)
    seconds = time.perf_counter() - started
    report.images_per_second = seen / seconds
    report.waiting = waited / seconds / pool.workers
    total = sum(e.copied for e in report.encoders.values())
    done = f"{seen} images for {len(unsealed)} artifacts in {seconds:.1f} s, {total} rows copied"
    rate = f"{report.images_per_second:.1f} images/s, {100 * report.waiting:.0f} % of the time waiting for images"
    log.info("%s: %s, %s", images.title, done, rate)


def _made(
    pool: Pool[_Extractor],
    cut: _Cut,
    images: ImageList,
    compute: Compute,
    report: ExtractReport,
    unsealed: Sequence[_Wanted],
) -> Iterator[_Made]:
    """The shards of artifacts that are cut alike: in order, but on from a random place where others are at work too.

    Processes that begin or meet at one place would otherwise march in step from there, each doing all of the work.
    """
    index, count = compute.part
    rows = [range(first, min(first + cut.rows, len(images))) for first in range(0, len(images), cut.rows)]
    mine = [s for s in range(len(rows)) if s % count == index - 1]
    for place, lacks in cut.lacks.items():
        report.encoders[unsealed[place].source.label].shards_skipped += len(set(mine) - lacks)
    left = [s for s in mine if any(s in lacks for lacks in cut.lacks.values())]
    done = sum(len(rows[s]) for s in mine) - sum(len(rows[s]) for s in left)
    alone = not cut.begun

    def following() -> Iterator[tuple[int, int]]:
        place = 0
        while left:
            place = place % len(left) if alone else secrets.randbelow(len(left))
            yield cut.rows, left.pop(place)

    what = f"{images.title}, {len(cut.lacks)} artifacts"
    with progress(sum(len(rows[s]) for s in mine), what, initial=done) as bar:
        for (_, shard), made in pool.run(_Extractor.shard, following(), bar):
            lacking = [place for place, lacks in cut.lacks.items() if shard in lacks]
            alone = set(lacking) == set(made.written)
            for place in lacking:
                counts = report.encoders[unsealed[place].source.label]
                counts.shards_written += place in made.written
                counts.shards_skipped += place not in made.written
            yield made


@dataclass(frozen=True)
class _Extraction(Work["_Extractor"]):
    """Which embeddings are to be made, and how."""

    sight: Sight
    images: ImageList
    wanted: tuple[_Wanted, ...]
    config: ExtractConfig
    compute: Compute

    def check(self) -> None:
        self.sight.check()

    def open(self, worker: Worker) -> _Extractor:
        return _Extractor(self, worker)


class _Extractor:
    """Networks and open artifacts: a worker that makes shards."""

    def __init__(self, work: _Extraction, worker: Worker) -> None:
        store = self.store = work.sight.open(write=True)
        self.work, self.worker = work, worker
        self.compute = compute = work.compute.of(worker)
        self.asked = _asked(work.images, work.config)
        self.tallies = {w.source.label: Tally() for w in work.wanted}
        looks = _looks(work.wanted, self.tallies, compute)
        _check_space(store, work.images, looks)  # whatever is refused is refused before anything is written
        check_canaries(store, list(zip((w.source for w in work.wanted), looks, strict=True)), work.config, compute)
        store_images(store, work.images)
        self.jobs = self._open(looks)

    def _open(self, looks: Sequence[Look]) -> list[_Job]:
        """A writer for each artifact, all cut at the same rows, and what can be copied into it."""
        count, wanted, store = len(self.work.images), self.work.wanted, self.store
        widest = max(4 * int(np.prod(look.shapes(count)["vectors"][1:])) for look in looks)
        rows = self.compute.shard_rows or layout.shard_rows(count, widest)
        jobs = []
        for each, look in zip(wanted, _stocked(store, wanted, looks), strict=True):
            writer = store.writer(each.identity, look.shapes(count), attributes=_about(each, look), shard_rows=rows)
            jobs.append(_Job(each, look, writer))
        return jobs

    def cuts(self, _: None) -> list[_Cut]:
        """The artifacts by where they are cut: those begun with another cut keep theirs."""
        by_rows: dict[int, list[int]] = defaultdict(list)
        for place, job in enumerate(self.jobs):
            by_rows[job.writer.shard_rows].append(place)
        return [
            _Cut(
                rows,
                {place: frozenset(self.jobs[place].writer.missing()) for place in places},
                any(self.jobs[place].writer.begun for place in places),
            )
            for rows, places in by_rows.items()
        ]

    def shard(self, unit: tuple[int, int]) -> _Made:
        """The shard of this number of all artifacts with this cut that lack it by now."""
        cut, shard = unit
        places = [place for place, job in enumerate(self.jobs) if job.writer.shard_rows == cut]
        todo = [place for place in places if not self.jobs[place].writer.has(shard)]
        rows = self.jobs[places[0]].writer.shard_range(shard)
        meter = Meter(self.worker.bar)
        for tally in self.tallies.values():
            tally.embedded, tally.seconds = 0, 0.0
        written: list[int] = []
        copied: dict[int, dict[Key, int]] = {}
        images = self.work.images
        if todo:
            looks = [self.jobs[place].look for place in todo]
            for look in looks:
                look.stock.copied.clear()
            blocks = embed_rows(rows, looks, images, self.work.config, self.compute, meter, asked=self.asked)
            for place, block in zip(todo, blocks, strict=True):
                writer = self.jobs[place].writer
                if not writer.has(shard):
                    writer.write(shard, block)
                    written.append(place)
                copied[place] = dict(self.jobs[place].look.stock.copied)
        else:
            meter.skip(len(rows))
        tallies = {label: dataclasses.replace(tally) for label, tally in self.tallies.items()}
        return _Made(written, copied, tallies, meter.images, meter.waited)

    def seal(self, copied: Mapping[int, Mapping[Key, int]]) -> None:
        """Seal what is whole; `copied` are how many rows came from where, for the provenance."""
        for place, job in enumerate(self.jobs):
            if not job.writer.missing():
                rows = {str(key): count for key, count in sorted(copied.get(place, {}).items())}
                job.writer.seal({"rows_copied": rows} if rows else {})


def _failures(store: FeatureStore, wanted: Sequence[_Wanted]) -> dict[str, str]:
    """Reasons of the images that could not be decoded, from the first whole artifact; all of them agree."""
    key = next((w.identity.key for w in wanted if store.is_sealed(w.identity.key)), None)
    if key is None:
        return {}
    blocks = store.get(key).blocks("ids", "reasons")
    return {i: r for _, (ids, reasons) in blocks for i, r in zip(ids, reasons, strict=True) if r not in ("", NOT_ASKED)}


def _bytes(images: ImageList, looks: Sequence[Look]) -> int:
    return sum(4 * int(np.prod(look.shapes(len(images))["vectors"])) for look in looks)
