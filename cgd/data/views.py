"""Replayable augmentation: a crop that depends on nothing but the policy, the image's id and the view's number.

The law is that of methods.md 6.3: up to ten tries at an area uniform in its range and a log-aspect uniform in
its range, else the largest centred box. Random numbers come from SHA-256, so no library version enters.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from cgd.types import View

FIXED, CROPPED, CROP = "fixed", "cropped", "crop"  # full image; query cut to its box; replayable crops


@dataclass(frozen=True)
class ViewPolicy:
    """Ranges a crop is drawn from; `version` rises when the law itself changes."""

    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: float
    version: int = 1


def crop_name(number: int) -> str:
    """Name of crop `number`, counted from 1."""
    return f"{CROP}-{number}"


def view_kind(name: str) -> str:
    """What a whitening is fitted on and refuses to mix: `crop` for every crop, else `fixed`."""
    return CROP if name.startswith(f"{CROP}-") else FIXED


def draw_view(policy: ViewPolicy, image_id: str, number: int, width: int, height: int) -> View:
    """Crop `number` of an image decoded to `width` x `height` pixels."""
    low, high = math.log(policy.aspect[0]), math.log(policy.aspect[1])
    for attempt in range(10):
        area, aspect, x, y, flip = _uniform(policy, image_id, number, attempt)
        pixels = width * height * (policy.area[0] + area * (policy.area[1] - policy.area[0]))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _relative(
                int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, width, height, flip < policy.flip
            )
    ratio = min(max(width / height, policy.aspect[0]), policy.aspect[1])
    w, h = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    *_, flip = _uniform(policy, image_id, number, 0)
    return _relative((width - w) // 2, (height - h) // 2, w, h, width, height, flip < policy.flip)


def to_row(view: View) -> np.ndarray:
    """(5,) float32: top, left, height, width, flip; as stored."""
    return np.array([view.top, view.left, view.height, view.width, view.flip], np.float32)


def from_row(row: np.ndarray) -> View:
    """The view stored as (5,) float32."""
    top, left, height, width, flip = (float(v) for v in row)
    return View(top, left, height, width, flip > 0.5)


def _relative(left: int, top: int, w: int, h: int, width: int, height: int, flip: bool) -> View:
    # Through float32 at once, so that the view drawn and the view read back are the same.
    return from_row(np.array([top / height, left / width, h / height, w / width, flip], np.float32))


def _uniform(policy: ViewPolicy, image_id: str, number: int, attempt: int) -> list[float]:
    """Five numbers in [0, 1) from a hash of what names this draw."""
    text = f"cgd-view-{policy.version}\0{image_id}\0{number}\0{attempt}".encode()
    digest = hashlib.sha512(text).digest()
    return [int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in range(0, 40, 8)]
