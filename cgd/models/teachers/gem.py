"""R101-GeM, `gl18-tl-resnet101-gem-w` of filipradenovic/cnnimageretrieval-pytorch."""

from __future__ import annotations

from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cgd.errors import WeightsError
from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.models.layers import GeM
from cgd.models.trunks import torchvision_resnet
from cgd.registry import plugin
from cgd.types import InputSpec


class ResNetGeM(nn.Module):
    """ResNet-101, GeM with the stored exponent, l2, a linear layer of 2048, l2; tensor names as published."""

    def __init__(self, form: Literal["faithful", "whiten-mtd"]) -> None:
        super().__init__()
        trunk, channels = torchvision_resnet("resnet101", None)
        self.features = nn.Sequential(*trunk.children())
        self.pool = GeM(3.0, learned=True)
        self.whiten = nn.Linear(channels, channels)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "whiten-mtd":  # exponent 3 whatever the file says, other epsilons, no last l2
            pooled = nn.functional.normalize(GeM(3.0)(self.features(x)), dim=1)
            return self.whiten(pooled)
        return _l2(self.whiten(_l2(self.pool(self.features(x)))))


def _l2(x: Tensor) -> Tensor:
    """The reference adds its epsilon to the norm."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-6)


@plugin
def gem(
    argument: str | None,
    checkpoint: Checkpoint | None,
    *,
    weights: str = "gl18-tl-resnet101-gem-w-a4d43db.pth",
    form: Literal["faithful", "whiten-mtd"] = "faithful",
) -> Encoder:
    """2048 values; longer side at most 1024 (Lanczos), scales 1, sqrt 2, 1/sqrt 2; a cut query keeps its scale.

    Mean and deviation are read from the file. `form=whiten-mtd` is the network of that paper: exponent 3, scales
    1, 1/sqrt 2, 1/2 on the unresized image, queries not cropped.
    """
    network = ResNetGeM(form)
    meta = {}
    if checkpoint is not None:
        fill(network, checkpoint)
        meta = dict(checkpoint.meta)
        if meta.get("architecture", "resnet101") != "resnet101" or meta.get("pooling", "gem") != "gem":
            raise WeightsError(
                f"{checkpoint.path} says it holds {meta.get('architecture')} with {meta.get('pooling')}, not R101-GeM."
            )
    normal: dict[str, Any] = {name: tuple(float(v) for v in meta[name]) for name in ("mean", "std") if name in meta}
    if form == "whiten-mtd":
        spec = InputSpec(size=1024, resize="none", scales=(1.0, 1 / sqrt(2), 0.5), query_crop="none", **normal)
    else:
        spec = InputSpec(size=1024, resize="longest", filter="lanczos", scales=(1.0, sqrt(2), 1 / sqrt(2)), **normal)
    return Encoder("gem", network, spec, 2048)
