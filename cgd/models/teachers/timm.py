"""Any timm network with pooling as a teacher: `timm:NAME?weights=FILE&pool=gem`."""

from __future__ import annotations

from typing import Literal

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, pooling
from cgd.models.trunks import timm_network
from cgd.registry import plugin
from cgd.types import InputSpec


@plugin
def timm(
    name: str | None,
    checkpoint: Checkpoint | None,
    *,
    weights: str = "",
    pool: Literal["gem", "avg", "mac", "cls"] = "gem",
    pad_type: Literal["same"] | None = None,
) -> Encoder:
    """Pooled trunk (patch tokens of a ViT), or its class token with `pool=cls`; not normalised.

    Size, mean and deviation are those of timm's pretrained configuration.
    """
    trunk, channels, config = timm_network(name, checkpoint, pad_type, pool)
    spec = InputSpec(
        size=int(config["input_size"][-1]),
        resize="square",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        filter="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )
    return Encoder(f"timm:{name}", Descriptor(trunk, channels, pooling(pool), 0), spec, channels)
