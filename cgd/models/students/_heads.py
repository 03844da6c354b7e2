"""The heads that the students of one paper share."""

from __future__ import annotations

from math import sqrt

from torch import nn

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, GeM, pooling, unit
from cgd.models.trunks import timm_network
from cgd.types import InputSpec


def whiten_mtd_student(name: str, trunk: nn.Module, channels: int, dim: int, pool: str = "gem") -> Encoder:
    """GeM with exponent 3 (videos: 1), l2, linear with bias; unresized at scales 1, 1/sqrt 2, 1/2 (methods.md 8.1)."""
    network = Descriptor(trunk, channels, pooling(pool), dim)
    return Encoder(
        name, network, InputSpec(size=1024, resize="longest", scales=(1.0, 1 / sqrt(2), 0.5)), dim or channels
    )


def cgd_student(name: str, network: str, checkpoint: Checkpoint | None, stu_dim: int, dim: int) -> Encoder:
    """1x1 convolution to `stu_dim` without bias, ReLU, GeM with exponent 3, linear with bias, l2 (methods.md 2.5).

    Longer side at most 1024 (bicubic), scales 1, sqrt 2, 1/sqrt 2.
    """
    features, channels, _ = timm_network(network, checkpoint, None)
    trunk = nn.Sequential(features, nn.Conv2d(channels, stu_dim, 1, bias=False), nn.ReLU())
    descriptor = Descriptor(trunk, stu_dim, GeM(3.0), dim, before=None, after=unit)
    spec = InputSpec(size=1024, resize="longest", filter="bicubic", scales=(1.0, sqrt(2), 1 / sqrt(2)))
    return Encoder(name, descriptor, spec, dim or stu_dim)
