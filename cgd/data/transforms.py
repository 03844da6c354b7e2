"""Pixels as an `InputSpec` asks for them: cut, resized, normalised, in the network's channel order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from cgd.types import InputSpec, View

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Box = tuple[float, float, float, float]
Change = Callable[[Image.Image], Image.Image]


def full_pixels(image: Image.Image, spec: InputSpec, box: Box | None = None) -> list[np.ndarray]:
    """The whole image, or a query cut to `box`: (3, H, W) float32, one per scale where `spec` scales the image."""
    limit = float(spec.size)
    if box is not None and spec.query_crop != "none":
        whole = max(image.size)
        corners = [int(v) if spec.query_crop == "integer" else round(v) for v in box]
        image = image.crop((corners[0], corners[1], max(corners[0] + 1, corners[2]), max(corners[1] + 1, corners[3])))
        if spec.query_crop == "scaled" and spec.resize == "longest":
            limit = max(1.0, limit * max(image.size) / whole)  # a cut query keeps the scale of its full image
    image = _degraded(_centre(_resize(image, spec, limit), spec.centre_crop), spec)
    if spec.scale_on == "tensor":
        return [normalise(image, spec)]
    return [normalise(_scaled(image, scale, spec), spec) for scale in spec.scales]


def view_pixels(image: Image.Image, spec: InputSpec, view: View, size: int, change: Change | None = None) -> np.ndarray:
    """One replayable view as a square of `size` pixels, then under `change`: (3, size, size) float32."""
    cut = _degraded(image.crop(view.box(*image.size)).resize((size, size), _FILTERS[spec.filter]), spec)
    if view.flip:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return normalise(change(cut) if change else cut, spec)


def crop_spec(spec: InputSpec, crop_filter: str) -> InputSpec:
    """`spec` as crops are made: with the policy's filter, unless that is each network's own."""
    return spec if crop_filter == "own" else dataclasses.replace(spec, filter=crop_filter)  # type: ignore[arg-type]


def normalise(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """(3, H, W) float32, C-contiguous: `(x / 255 - mean) / std` in RGB, then the channel order of `spec`."""
    scale = 1.0 / (255.0 * np.asarray(spec.std, np.float64))
    shift = np.asarray(spec.mean, np.float64) / np.asarray(spec.std, np.float64)
    pixels = np.asarray(image, np.float32) * scale.astype(np.float32) - shift.astype(np.float32)
    if spec.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize(image: Image.Image, spec: InputSpec, limit: float) -> Image.Image:
    """Sides as Pillow's `thumbnail` (longest) and torchvision's `Resize` (shortest) make them."""
    width, height = image.size
    if spec.resize == "none":
        return image
    if spec.resize == "square":
        target = (spec.size, spec.size)
    elif spec.resize == "longest":
        if max(width, height) <= limit and not spec.enlarge:
            return image
        if max(width, height) > limit:
            small = image.copy()
            small.thumbnail((limit, limit), _FILTERS[spec.filter], reducing_gap=None)  # no shortcut by whole factors
            return small
        factor = limit / max(width, height)
        target = (max(1, round(width * factor)), max(1, round(height * factor)))
    else:
        side = min(width, height)
        if limit > side and not spec.enlarge:
            return image
        target = (int(limit * width / side), int(limit * height / side))
    return image if target == image.size else image.resize(target, _FILTERS[spec.filter])


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The middle `side` pixels square (0: all of it), black where the image is smaller."""
    if not side:
        return image
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _degraded(image: Image.Image, spec: InputSpec) -> Image.Image:
    """The image as if it had been `spec.degrade` pixels on the longer side (methods.md 3.4); never enlarged for it."""
    longer = max(image.size)
    if not spec.degrade or longer <= spec.degrade:
        return image
    width, height = (max(1, round(side * spec.degrade / longer)) for side in image.size)
    return image.resize((width, height), _FILTERS[spec.filter]).resize(image.size, _FILTERS[spec.filter])


def _scaled(image: Image.Image, scale: float, spec: InputSpec) -> Image.Image:
    rounding = round if spec.scale_rounding == "round" else math.floor
    target = tuple(max(1, rounding(side * scale)) for side in image.size)
    return image if target == image.size else image.resize((target[0], target[1]), _FILTERS[spec.filter])
