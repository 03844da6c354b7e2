"""Embed a data set's images with each encoder: every image is read and decoded once for all of them."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cgd.config import ExtractConfig
from cgd.data.images import read_image
from cgd.data.loading import ahead
from cgd.data.transforms import full_pixels, view_pixels
from cgd.data.views import CROP, CROPPED, FIXED, ViewPolicy, draw_view, to_row, view_kind
from cgd.errors import InputError, StoreError
from cgd.models.encoder import Encoder, EncoderSource
from cgd.progress import progress
from cgd.stages.images import check_same_images, store_images
from cgd.store import layout
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, canonical, identify, ids_digest, sha256
from cgd.store.writer import Writer
from cgd.types import ImageList, InputSpec, Key

VERSION = 1
SAMPLE_IMAGES = 16
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compute:
    """Where and how fast; nothing here changes what a result means."""

    device: torch.device
    workers: int = 2
    batch_size: int = 32
    shard_rows: int | None = None
    part: tuple[int, int] = (1, 1)


@dataclass
class EncoderReport:
    """What happened to one encoder's artifacts; `seconds` are those inside its network."""

    keys: dict[str, Key] = field(default_factory=dict)
    shards_written: int = 0
    shards_skipped: int = 0
    embedded: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.embedded / self.seconds if self.seconds else 0.0


@dataclass
class ExtractReport:
    """Counts of the images, the failures with their reasons, and a report per encoder's label."""

    images: int
    failed: dict[str, str]
    encoders: dict[str, EncoderReport]
    images_per_second: float = 0.0

    @property
    def valid(self) -> int:
        return self.images - len(self.failed)


@dataclass
class _Job:
    """One artifact to make: one encoder, one view."""

    source: EncoderSource
    view: str
    identity: Identity
    encoder: Encoder
    writer: Writer
    missing: set[int]

    @property
    def number(self) -> int:
        return int(self.view.removeprefix(f"{CROP}-"))

    @property
    def pixels_key(self) -> tuple[InputSpec, str]:
        """Encoders that want the same pixels share them."""
        return dataclasses.replace(self.encoder.input_spec, combine="mean"), self.view


def embeddings_identity(images: ImageList, source: EncoderSource, view: str, config: ExtractConfig) -> Identity:
    """What determines one encoder's vectors of one view: ids, weights, options, the view's policy, precision."""
    settings: dict[str, Any] = {
        "dataset": images.name,
        "split": images.split,
        "ids": ids_digest(images),
        "encoder": source.identity,
        "view": view,
        "precision": config.precision,
    }
    if view_kind(view) == CROP:
        settings["policy"] = {**dataclasses.asdict(policy_of(config)), "size": config.crop_size}
    if view == CROPPED:
        settings["boxes"] = sha256(canonical(list(images.boxes or ())))
    return identify("embeddings", [images.title, source.label, view], VERSION, settings)


def policy_of(config: ExtractConfig) -> ViewPolicy:
    return ViewPolicy(config.crop_area, config.crop_aspect, config.flip)


def extract(
    *,
    store: FeatureStore,
    images: ImageList,
    sources: Sequence[EncoderSource],
    views: Sequence[str],
    config: ExtractConfig,
    compute: Compute,
) -> ExtractReport:
    """Make the embeddings of `images` by every source under every view; finished shards are skipped.

    Views are `fixed`, `cropped` (queries cut to their boxes) and `crop-1`, `crop-2`, … . Raises `CgdError` where an
    image is missing, the disk is too small, or stored vectors belong to other images of the same name.
    """
    if CROPPED in views and images.boxes is None:
        raise InputError(f"{images.title} has no boxes to cut its queries to.")
    labels = [s.label for s in sources]
    if len(set(labels)) != len(labels):
        raise InputError(f"two of the models have the same name: {', '.join(sorted(labels))}.")
    store_images(store, images)
    report = ExtractReport(len(images), {}, {s.label: EncoderReport() for s in sources})
    wanted = [(s, v, embeddings_identity(images, s, v, config)) for s in sources for v in views]
    for source, view, identity in wanted:
        report.encoders[source.label].keys[view] = identity.key
    unsealed = [w for w in wanted if not store.is_sealed(w[2].key)]
    _check_finished(store, images, [w for w in wanted if w not in unsealed], report)
    if unsealed:
        jobs = _open_jobs(store, images, unsealed, config, compute)
        _run(jobs, images, config, compute, report)
    _collect_failures(store, wanted, report)
    return report


def _check_finished(
    store: FeatureStore, images: ImageList, finished: Sequence[tuple[EncoderSource, str, Identity]], report: ExtractReport
) -> None:
    for source, _, identity in finished:
        report.encoders[source.label].shards_skipped += store.get(identity.key).shard_count
    if finished:
        check_same_images(images, store.get(finished[0][2].key))


def _open_jobs(
    store: FeatureStore,
    images: ImageList,
    unsealed: Sequence[tuple[EncoderSource, str, Identity]],
    config: ExtractConfig,
    compute: Compute,
) -> list[_Job]:
    """Build the networks still needed and open a writer for each artifact, all cut at the same rows."""
    encoders: dict[str, Encoder] = {}
    for source, _, _ in unsealed:
        if source.label not in encoders:
            log.info("loading %s", source.text)
            encoder = source.build().to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            encoders[source.label] = encoder.eval()
    sizes = [_shapes(images, encoders[s.label], v) for s, v, _ in unsealed]
    needed = sum(4 * int(np.prod(shapes["vectors"])) for shapes in sizes)
    _check_disk(store, needed)
    rows = compute.shard_rows or min(layout.shard_rows(len(images), 4 * int(np.prod(s["vectors"][1:]))) for s in sizes)
    jobs = []
    for (source, view, identity), shapes in zip(unsealed, sizes, strict=True):
        encoder = encoders[source.label]
        about = {"label": source.label, "input": dataclasses.asdict(encoder.input_spec), "dim": encoder.embed_dim}
        writer = store.writer(identity, shapes, attributes=about, shard_rows=rows)
        jobs.append(_Job(source, view, identity, encoder, writer, set(writer.missing())))
    return jobs


def _shapes(images: ImageList, encoder: Encoder, view: str) -> dict[str, tuple[int, ...]]:
    count = len(images)
    scales = len(encoder.input_spec.scales) if view_kind(view) == FIXED else 1
    shapes: dict[str, tuple[int, ...]] = {
        "ids": (count,),
        "vectors": (count, scales, encoder.embed_dim),
        "valid": (count,),
        "digests": (count, 32),
        "reasons": (count,),
    }
    return shapes if view_kind(view) == FIXED else {**shapes, "views": (count, 5)}


def _check_disk(store: FeatureStore, needed: int) -> None:
    free = _free(store)
    if needed > free:
        raise StoreError(
            f"these embeddings need {needed / 1e9:.1f} GB, the store {store.files.root} has {free / 1e9:.1f} GB free; nothing was written."
        )


def _free(store: FeatureStore) -> int:
    """Bytes free where the store is or will be."""
    root = store.files.root.absolute()
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free


def _run(jobs: list[_Job], images: ImageList, config: ExtractConfig, compute: Compute, report: ExtractReport) -> None:
    """Shard by shard: embed for every artifact that lacks it, publish, and seal what is whole."""
    index, count = compute.part
    cuts: dict[int, list[_Job]] = defaultdict(list)  # artifacts begun with another cut keep theirs
    for job in jobs:
        cuts[job.writer.shard_rows].append(job)
    started, done = time.perf_counter(), 0
    for group in cuts.values():
        writer = group[0].writer
        mine = [s for s in range(writer.shard_count) if s % count == index - 1]
        for job in group:
            report.encoders[job.source.label].shards_skipped += len([s for s in mine if s not in job.missing])
        todo = [s for s in mine if any(s in j.missing for j in group)]
        total = sum(len(writer.shard_range(s)) for s in todo)
        with progress(total, f"{images.title}: {len({j.source.label for j in group})} models, {len(group)} artifacts") as bar:
            for shard in todo:
                needing = [j for j in group if shard in j.missing]
                blocks = _embed_shard(writer.shard_range(shard), needing, images, config, compute, report, bar)
                for job in needing:
                    job.writer.write(shard, blocks[job.identity.key])
                    report.encoders[job.source.label].shards_written += 1
                done += len(writer.shard_range(shard))
        for job in group:
            if not job.writer.missing():
                job.writer.seal()
    seconds = time.perf_counter() - started
    report.images_per_second = done / seconds if seconds else 0.0
    log.info("%s: %d images in %.1f s, %.1f images/s for %d artifacts", images.title, done, seconds, report.images_per_second, len(jobs))


def _embed_shard(
    rows: range,
    jobs: Sequence[_Job],
    images: ImageList,
    config: ExtractConfig,
    compute: Compute,
    report: ExtractReport,
    bar: Any,
) -> dict[Key, dict[str, np.ndarray]]:
    """All arrays of one shard for each job."""
    blocks = {job.identity.key: _empty(rows, job, images) for job in jobs}
    waiting: dict[tuple[Key, tuple[tuple[int, ...], ...]], list[tuple[int, list[np.ndarray]]]] = defaultdict(list)
    policy = policy_of(config)

    def load(row: int) -> tuple[np.ndarray, str, dict[Any, list[np.ndarray]], dict[str, np.ndarray]]:
        decoded = read_image(images.root, images.paths[row])
        pixels: dict[Any, list[np.ndarray]] = {}
        geometry: dict[str, np.ndarray] = {}
        if decoded.image is not None:
            for job in jobs:
                if job.pixels_key in pixels:
                    continue
                spec = job.encoder.input_spec
                if view_kind(job.view) == CROP:
                    view = draw_view(policy, images.ids[row], job.number, *decoded.image.size)
                    geometry[job.view] = to_row(view)
                    pixels[job.pixels_key] = [view_pixels(decoded.image, spec, view, config.crop_size)]
                else:
                    box = images.boxes[row] if job.view == CROPPED and images.boxes else None
                    pixels[job.pixels_key] = full_pixels(decoded.image, spec, box)
        return decoded.digest, decoded.reason, pixels, geometry

    def flush(job: _Job, items: list[tuple[int, list[np.ndarray]]]) -> None:
        places = [place for place, _ in items]
        started = time.perf_counter()
        try:
            vectors = _embed(job.encoder, [a for _, a in items], config.precision, compute.device)
        except torch.OutOfMemoryError as error:
            raise InputError(f"{job.source.text} needs more memory than {compute.device} has: lower --batch-size ({compute.batch_size}).") from error
        except RuntimeError as error:  # a network refuses an image that its strides shrink to nothing
            height, width = items[0][1][0].shape[1:]
            raise InputError(
                f"{job.source.text} cannot take the image '{images.ids[rows[places[0]]]}' at {width} x {height} pixels "
                f"({str(error).splitlines()[0]}): give it another size, or enlarge=true."
            ) from error
        report.encoders[job.source.label].seconds += time.perf_counter() - started
        report.encoders[job.source.label].embedded += len(items)
        if not np.isfinite(vectors).all():
            worst = images.ids[rows[places[int(np.argmin(np.isfinite(vectors).all(axis=(1, 2))))]]]
            raise InputError(f"{job.source.text} gives values that are not finite for the image '{worst}': use --precision fp32.")
        blocks[job.identity.key]["vectors"][places] = vectors

    by_key = {job.identity.key: job for job in jobs}
    for place, (digest, reason, pixels, geometry) in enumerate(ahead(load, rows, compute.workers, 2 * compute.workers)):
        for job in jobs:
            block = blocks[job.identity.key]
            block["digests"][place] = digest
            block["reasons"][place] = reason
            if reason:
                continue
            block["valid"][place] = True
            if job.view in geometry:
                block["views"][place] = geometry[job.view]
            arrays = pixels[job.pixels_key]
            bucket = (job.identity.key, tuple(a.shape for a in arrays))
            waiting[bucket].append((place, arrays))
            if len(waiting[bucket]) == compute.batch_size:
                flush(job, waiting.pop(bucket))
        bar.update(1)
    for (key, _), items in waiting.items():
        flush(by_key[key], items)
    return blocks


def _empty(rows: range, job: _Job, images: ImageList) -> dict[str, np.ndarray]:
    shapes = _shapes(images, job.encoder, job.view)
    block: dict[str, np.ndarray] = {
        "ids": np.array([images.ids[r] for r in rows], dtype=object),
        "vectors": np.full((len(rows), *shapes["vectors"][1:]), np.nan, np.float32),
        "valid": np.zeros(len(rows), bool),
        "digests": np.zeros((len(rows), 32), np.uint8),
        "reasons": np.full(len(rows), "", dtype=object),
    }
    if "views" in shapes:
        block["views"] = np.full((len(rows), 5), np.nan, np.float32)
    return block


_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _embed(encoder: Encoder, items: Sequence[list[np.ndarray]], precision: str, device: torch.device) -> np.ndarray:
    """(B, S, D) float32 of B images that each bring one array, or one per scale."""
    tensors = [
        torch.from_numpy(np.stack([arrays[i] for arrays in items])).to(device, non_blocking=True, memory_format=torch.channels_last)
        for i in range(len(items[0]))
    ]
    kind = _PRECISIONS.get(precision)
    with torch.inference_mode(), torch.autocast(device.type, dtype=kind, enabled=kind is not None):
        return encoder.embed(tensors).float().cpu().numpy()


def _collect_failures(store: FeatureStore, wanted: Sequence[tuple[EncoderSource, str, Identity]], report: ExtractReport) -> None:
    """Reasons of the images that could not be decoded, from the first whole artifact; all of them agree."""
    key = next((w[2].key for w in wanted if store.is_sealed(w[2].key)), None)
    if key is None:
        return
    for _, (ids, reasons) in store.get(key).blocks("ids", "reasons"):
        report.failed.update({i: r for i, r in zip(ids, reasons, strict=True) if r})


def estimate(
    *,
    store: FeatureStore,
    images: ImageList,
    sources: Sequence[EncoderSource],
    views: Sequence[str],
    config: ExtractConfig,
    compute: Compute,
) -> dict[str, Any]:
    """Bytes to write, bytes free and seconds to expect for what is not stored yet; measured on a few images."""
    unsealed = [(s, v, i) for s in sources for v in views if not store.is_sealed((i := embeddings_identity(images, s, v, config)).key)]
    if not unsealed:
        return {"images": len(images), "artifacts": 0, "bytes": 0, "free_bytes": _free(store), "seconds": 0.0}
    encoders = {s.label: s.build().to(compute.device, memory_format=torch.channels_last) for s, _, _ in unsealed}  # type: ignore[call-overload]
    jobs = [_Job(s, v, i, encoders[s.label], None, set()) for s, v, i in unsealed]  # type: ignore[arg-type]
    sample = min(len(images), SAMPLE_IMAGES)
    with progress(2 * sample, "measuring") as bar:
        for _ in range(2):  # the first pass warms up
            started = time.perf_counter()
            _embed_shard(range(sample), jobs, images, config, compute, ExtractReport(0, {}, defaultdict(EncoderReport)), bar)
            seconds = time.perf_counter() - started
    needed = sum(4 * int(np.prod(_shapes(images, encoders[s.label], v)["vectors"])) for s, v, _ in unsealed)
    return {
        "images": len(images),
        "artifacts": len(unsealed),
        "bytes": needed,
        "free_bytes": _free(store),
        "images_per_second": sample / seconds,
        "seconds": seconds * len(images) / sample,
    }
