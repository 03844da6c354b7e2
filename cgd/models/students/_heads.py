"""What the ResNet students share."""

from __future__ import annotations

from math import sqrt

from torch import nn

from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, GeM
from cgd.types import InputSpec


def whiten_mtd_student(name: str, trunk: nn.Module, channels: int, dim: int) -> Encoder:
    """GeM with exponent 3, l2, linear with bias; unresized images at scales 1, 1/sqrt 2, 1/2 (methods.md 8.1)."""
    network = Descriptor(trunk, channels, GeM(3.0), dim)
    return Encoder(
        name, network, InputSpec(size=1024, resize="longest", scales=(1.0, 1 / sqrt(2), 0.5)), dim or channels
    )
