"""Any timm network as a student: `timm:NAME?dim=512`."""

from __future__ import annotations

from typing import Literal

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, pooling, unit
from cgd.models.trunks import timm_network
from cgd.registry import plugin
from cgd.types import InputSpec


@plugin
def timm(
    name: str | None,
    checkpoint: Checkpoint | None,
    *,
    pool: Literal["gem", "avg", "mac", "cls"] = "gem",
    dim: int = 512,
    normalise: bool = True,
    pad_type: Literal["same"] | None = None,
) -> Encoder:
    """Trunk, pooling, l2 unless told not to `normalise`, linear of `dim` (0: the pooled trunk itself)."""
    trunk, channels, config = timm_network(name, checkpoint, pad_type, pool)
    spec = InputSpec(
        size=int(config["input_size"][-1]), resize="square", mean=tuple(config["mean"]), std=tuple(config["std"])
    )
    network = Descriptor(trunk, channels, pooling(pool), dim, before=unit if normalise else None)
    return Encoder(f"timm:{name}", network, spec, dim or channels)
