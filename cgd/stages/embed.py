"""Embed a run of images under several views with several encoders, decoding each image once."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cgd.config import ExtractConfig
from cgd.data.images import DecodedImage, ImageFile, image_bytes
from cgd.data.loading import ahead
from cgd.data.transforms import crop_spec, full_pixels, view_pixels
from cgd.data.views import CROP, CROPPED, FIXED, ViewPolicy, draw_view, to_row, view_kind
from cgd.errors import InputError
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder
from cgd.stages.growth import Known, Stock
from cgd.types import ImageList, InputSpec

Block = dict[str, np.ndarray]
NOT_ASKED = "not asked for: beyond the budget of the extraction"  # the reason of an image that no teacher was shown
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Descriptors an encoder has made, seconds inside its network, and the batch that fits into memory, if known."""

    embedded: int = 0
    seconds: float = 0.0
    fits: int | None = None

    def add(self, other: Tally) -> None:
        """Count in what another worker did."""
        self.embedded += other.embedded
        self.seconds += other.seconds


@dataclass
class Meter:
    """A progress bar or none, images done, and the seconds in which networks waited for some to be read and decoded."""

    bar: Any = None
    images: int = 0
    waited: float = 0.0

    def next(self, loaded: Iterator[_Loaded]) -> _Loaded:
        started = time.perf_counter()
        one = next(loaded)
        self.waited += time.perf_counter() - started
        return one

    def done(self, images: int) -> None:
        self.images += images
        self.skip(images)

    def skip(self, images: int) -> None:
        """Move the bar past images that were done elsewhere."""
        if self.bar is not None:
            self.bar.update(images)


@dataclass(frozen=True)
class Look:
    """One encoder looking at one view; looks of one encoder share a tally. Rows in `stock` are copied."""

    encoder: Encoder
    view: str
    tally: Tally = field(default_factory=Tally)
    stock: Stock = field(default_factory=Stock)

    @property
    def pixels_key(self) -> tuple[InputSpec, str]:
        """Encoders that want the same pixels share them."""
        return dataclasses.replace(self.encoder.input_spec, combine="mean"), self.view

    @property
    def crop_number(self) -> int:
        return int(self.view.removeprefix(f"{CROP}-"))

    def shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of `count` images under this look; a crop has one scale."""
        scales = len(self.encoder.input_spec.scales) if view_kind(self.view) == FIXED else 1
        shapes: dict[str, tuple[int, ...]] = {
            "ids": (count,),
            "vectors": (count, scales, self.encoder.embed_dim),
            "valid": (count,),
            "digests": (count, 32),
            "reasons": (count,),
        }
        return shapes if view_kind(self.view) == FIXED else {**shapes, "views": (count, 5)}


@dataclass(frozen=True)
class _Loaded:
    """One image read: its digest, rows to be copied by a look's number, else why it is invalid, pixels and geometry."""

    digest: np.ndarray
    known: dict[int, Known]
    reason: str
    pixels: dict[tuple[InputSpec, str], list[np.ndarray]]
    geometry: dict[str, np.ndarray]


def policy_of(config: ExtractConfig) -> ViewPolicy:
    return ViewPolicy(config.crop_area, config.crop_aspect, config.flip)


def policy_settings(config: ExtractConfig) -> dict[str, Any]:
    """The policy as settings; a filter for all came after stores whose networks had each their own."""
    settings = dataclasses.asdict(policy_of(config))
    return settings if config.crop_filter == "own" else {**settings, "filter": config.crop_filter}


def read_row(images: ImageList, row: int) -> ImageFile:
    """The image file of a row."""
    return ImageFile(image_bytes(images.root, images.paths[row]))


def embed_rows(
    rows: Sequence[int],
    looks: Sequence[Look],
    images: ImageList,
    config: ExtractConfig,
    compute: Compute,
    meter: Meter,
    read: Callable[[ImageList, int], DecodedImage | ImageFile] = read_row,
    asked: np.ndarray | None = None,
) -> list[Block]:
    """The arrays of an `embeddings` shard for each look. Batches never cross the borders of `rows`.

    Images of one shape share a forward pass. An image that cannot be decoded is invalid and holds NaN. An image that
    every look has in stock is read and digested, not decoded. One that is not `asked` (N,) for is not read.
    """
    blocks = [_empty(rows, look, images) for look in looks]
    known: list[dict[int, Known]] = [{} for _ in looks]
    waiting: dict[tuple[int, tuple[tuple[int, ...], ...]], list[tuple[int, list[np.ndarray]]]] = defaultdict(list)

    def load(row: int) -> _Loaded:
        return _load(read(images, row), row, looks, images, config)

    places = [place for place, row in enumerate(rows) if asked is None or asked[row]]
    for block in blocks if len(places) < len(rows) else []:
        block["reasons"][np.setdiff1d(np.arange(len(rows)), places)] = NOT_ASKED
    meter.skip(len(rows) - len(places))
    stream = ahead(load, [rows[place] for place in places], compute.workers, 2 * compute.workers)
    for place in places:
        loaded = meter.next(stream)
        for number, (look, block) in enumerate(zip(looks, blocks, strict=True)):
            block["digests"][place] = loaded.digest
            if number in loaded.known:
                known[number][place] = loaded.known[number]
                continue
            block["reasons"][place] = loaded.reason
            if loaded.reason:
                continue
            block["valid"][place] = True
            if look.view in loaded.geometry:
                block["views"][place] = loaded.geometry[look.view]
            arrays = loaded.pixels[look.pixels_key]
            bucket = (number, tuple(a.shape for a in arrays))
            waiting[bucket].append((place, arrays))
            if len(waiting[bucket]) == compute.batch_size:
                _flush(look, block, waiting.pop(bucket), config.precision, compute)
        meter.done(1)
    for (number, _), items in waiting.items():
        _flush(looks[number], blocks[number], items, config.precision, compute)
    for look, block, found in zip(looks, blocks, known, strict=True):
        if left := look.stock.copy(block, found):
            again = dataclasses.replace(look, stock=Stock())
            (anew,) = embed_rows([rows[place] for place in left], [again], images, config, compute, Meter(), read)
            for name, values in anew.items():
                block[name][left] = values
    return blocks


def _load(
    file: DecodedImage | ImageFile, row: int, looks: Sequence[Look], images: ImageList, config: ExtractConfig
) -> _Loaded:
    found = {number: look.stock.find(file.digest, images.ids[row]) for number, look in enumerate(looks)}
    known = {number: where for number, where in found.items() if where is not None}
    new = [look for number, look in enumerate(looks) if number not in known]
    loaded = _Loaded(file.digest, known, file.reason if new else "", {}, {})
    for look in new:
        if file.image is not None and look.pixels_key not in loaded.pixels:
            loaded.pixels[look.pixels_key] = _pixels(file, row, look, images, config, loaded.geometry)
    return loaded


def _pixels(
    file: DecodedImage | ImageFile,
    row: int,
    look: Look,
    images: ImageList,
    config: ExtractConfig,
    geometry: dict[str, np.ndarray],
) -> list[np.ndarray]:
    """What one look sees; a crop's geometry is noted in `geometry`."""
    assert file.image is not None
    spec = look.encoder.input_spec
    if view_kind(look.view) == CROP:
        view = draw_view(policy_of(config), images.ids[row], look.crop_number, *file.image.size)
        geometry[look.view] = to_row(view)
        return [view_pixels(file.image, crop_spec(spec, config.crop_filter), view, config.crop_size)]
    box = images.boxes[row] if look.view == CROPPED and images.boxes else None
    return full_pixels(file.image, spec, box)


def _flush(
    look: Look, block: Block, items: Sequence[tuple[int, list[np.ndarray]]], precision: str, compute: Compute
) -> None:
    """Embed a batch and put it in its places; where memory runs out, in halves, and so from then on."""
    started = time.perf_counter()
    while items:
        size = min(len(items), look.tally.fits or compute.batch_size)
        places, arrays = zip(*items[:size], strict=True)
        vectors = _try_forward(look, block["ids"][places[0]], arrays, precision, compute)
        if vectors is None:
            continue
        items = items[size:]
        look.tally.embedded += size
        finite = np.isfinite(vectors).all(axis=(1, 2))
        if not finite.all():
            worst = block["ids"][places[int(np.argmin(finite))]]
            raise InputError(
                f"{look.encoder.name} gives values that are not finite for the image '{worst}': use --precision fp32."
            )
        block["vectors"][list(places)] = vectors
    look.tally.seconds += time.perf_counter() - started


def _try_forward(
    look: Look, first: str, arrays: Sequence[list[np.ndarray]], precision: str, compute: Compute
) -> np.ndarray | None:
    """(B, S, D) float32, or None where memory ran out and a smaller batch is to be tried."""
    name = look.encoder.name
    try:
        return _forward(look, arrays, precision, compute.device)
    except (RuntimeError, AssertionError) as error:
        if not _out_of_memory(error):  # a network refuses an image of a size it was not made for
            height, width = arrays[0][0].shape[1:]
            raise InputError(
                f"{name} cannot take the image '{first}' at {width} x {height} pixels ({str(error).splitlines()[0]}): "
                "give it another size, or enlarge=true."
            ) from error
        if len(arrays) == 1:
            raise InputError(
                f"{name} needs more memory than {compute.device} has for one image, '{first}': give it a smaller size."
            ) from error
    look.tally.fits = len(arrays) // 2
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()
    log.warning("%s: out of memory with %d images at once; going on with %d", name, len(arrays), look.tally.fits)
    return None


def _out_of_memory(error: Exception) -> bool:
    """A GPU says so by a type of its own; its libraries and the CPU's allocator say it in words."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _forward(look: Look, items: Sequence[list[np.ndarray]], precision: str, device: torch.device) -> np.ndarray:
    """(B, S, D) float32 of B images that each bring one array, or one per scale; a crop is seen at one scale."""
    tensors = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*items, strict=True)]
    if device.type == "cuda":
        tensors = [t.pin_memory() for t in tensors]  # copied faster, and without a buffer in between
    tensors = [t.to(device, non_blocking=True, memory_format=torch.channels_last) for t in tensors]
    kind = _PRECISIONS.get(precision)
    with torch.inference_mode(), torch.autocast(device.type, dtype=kind, enabled=kind is not None):
        crop = view_kind(look.view) == CROP
        vectors = look.encoder(tensors[0])[:, None] if crop else look.encoder.embed(tensors)
        found: np.ndarray = vectors.float().cpu().numpy()
    if found.ndim != 3 or found.shape[2] != look.encoder.embed_dim:
        raise InputError(
            f"{look.encoder.name} says its descriptors have {look.encoder.embed_dim} values, they are {found.shape}."
        )
    return found


def _empty(rows: Sequence[int], look: Look, images: ImageList) -> Block:
    """The arrays of a shard before anything is known of its images."""
    shapes = look.shapes(len(rows))
    block: Block = {
        "ids": np.array([images.ids[r] for r in rows], dtype=object),
        "vectors": np.full(shapes["vectors"], np.nan, np.float32),
        "valid": np.zeros(shapes["valid"], bool),
        "digests": np.zeros(shapes["digests"], np.uint8),
        "reasons": np.full(shapes["reasons"], "", dtype=object),
    }
    if "views" in shapes:
        block["views"] = np.full(shapes["views"], np.nan, np.float32)
    return block
