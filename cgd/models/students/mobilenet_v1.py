"""MobileNetV1 at any width as a student; width 0.25 is the compact student of Yu et al. (CVPR 2019)."""

from __future__ import annotations

from typing import Literal

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, pooling, unit
from cgd.models.trunks import TENSORFLOW_MEAN, TENSORFLOW_STD
from cgd.models.trunks import mobilenet_v1 as trunk_of
from cgd.registry import plugin
from cgd.types import InputSpec


@plugin
def mobilenet_v1(
    argument: str | None,
    checkpoint: Checkpoint | None,
    *,
    width: float = 0.25,
    pool: Literal["gem", "avg"] = "gem",
    dim: int = 512,
    normalise: bool = True,
) -> Encoder:
    """Trunk of 1024 x width channels, pooling, l2, linear of `dim` (0: the pooled trunk itself); RGB in -1 to 1.

    Without `normalise` there is no l2 in front of the linear layer, as hash codes want it.
    """
    trunk, channels = trunk_of(width, checkpoint)
    spec = InputSpec(size=224, resize="square", mean=TENSORFLOW_MEAN, std=TENSORFLOW_STD, filter="bicubic")
    network = Descriptor(trunk, channels, pooling(pool), dim, before=unit if normalise else None)
    return Encoder("mobilenet-v1", network, spec, dim or channels)
