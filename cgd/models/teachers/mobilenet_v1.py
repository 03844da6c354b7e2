"""MobileNetV1 at any width as a teacher: `mobilenet-v1?width=0.75&weights=FILE`."""

from __future__ import annotations

from typing import Literal

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, pooling
from cgd.models.trunks import TENSORFLOW_MEAN, TENSORFLOW_STD
from cgd.models.trunks import mobilenet_v1 as trunk_of
from cgd.registry import plugin
from cgd.types import InputSpec


@plugin
def mobilenet_v1(
    argument: str | None,
    checkpoint: Checkpoint | None,
    *,
    weights: str = "",
    width: float = 1.0,
    pool: Literal["gem", "avg"] = "gem",
) -> Encoder:
    """Pooled trunk of 1024 x width channels, not normalised; RGB in -1 to 1 at 224 pixels."""
    trunk, channels = trunk_of(width, checkpoint)
    spec = InputSpec(size=224, resize="square", mean=TENSORFLOW_MEAN, std=TENSORFLOW_STD, filter="bicubic")
    return Encoder("mobilenet-v1", Descriptor(trunk, channels, pooling(pool), 0), spec, channels)
