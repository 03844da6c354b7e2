"""What the demonstration's small teachers share: a tiny timm network, trained on drawn buildings."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, pooling
from cgd.models.trunks import timm_network
from cgd.types import InputSpec

SIZE = 128  # pixels, the whole image as a square


def drawn(network: str, pool: str, checkpoint: Checkpoint | None) -> Encoder:
    """The pooled trunk, not normalised."""
    trunk, channels, config = timm_network(network, checkpoint, None, pool)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    spec = InputSpec(size=SIZE, resize="square", mean=mean, std=std, filter="bilinear")
    return Encoder(network, Descriptor(trunk, channels, pooling(pool), 0), spec, channels)
