"""R101-DOLG, `r101_dolg_512` of feymanpriv/DOLG (Yang et al., ICCV 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.models.layers import GeM, unit
from cgd.models.published import Layout, Publication, facts_of, published
from cgd.models.teachers.delg import feymanpriv_input
from cgd.models.trunks import pycls_names, torchvision_resnet
from cgd.registry import plugin

_DROPPED = {"pool1.p": (1,), "pool_g.p": (1,), "desc_cls.weight": (None, 512), "desc_cls.t": (1,)}
DolgForm = Literal["faithful", "whiten-mtd", "cgd"]


class LocalBranch(nn.Module):
    """Attended local features of the third stage: (B, 1024, H, W) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1024, 1024, 1)
        self.bn = nn.BatchNorm2d(1024)
        self.conv2 = nn.Conv2d(1024, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.bn(self.conv1(x))
        attention = F.softplus(self.conv2(F.relu(local)))  # (B, 1, H, W)
        return attention * unit(local)


def orthogonal(local: Tensor, along: Tensor) -> Tensor:
    """What of `local` (B, C, H, W) at every position is orthogonal to `along` (B, C), averaged: (B, C)."""
    direction = along[:, :, None, None]
    share = (direction * local).sum(dim=1, keepdim=True) / direction.square().sum(dim=1, keepdim=True)
    return (local - share * direction).mean(dim=(-2, -1))


class DolgNetwork(nn.Module):
    """(B, 3, H, W) to (B, 512); to (B, 1024) in Whiten-MTD's form, which stops at the global branch."""

    def __init__(self, form: DolgForm) -> None:
        super().__init__()
        self.trunk, channels = torchvision_resnet("resnet101", None)
        self.pool = GeM(3.0)  # the published loader ignores the exponent in the file (pool1.p)
        self.global_head = nn.Linear(channels, 1024)
        self.local = LocalBranch()
        self.head = nn.Linear(2048, 512)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        *stages, last = self.trunk
        for stage in stages:
            x = stage(x)  # in the end the third stage: (B, 1024, h, w)
        pooled = self.pool(last(x))  # (B, 2048)
        if self.form == "cgd":
            return self.head(pooled)
        overall = self.global_head(pooled)  # (B, 1024)
        if self.form == "whiten-mtd":
            return overall
        return self.head(torch.cat([overall, orthogonal(self.local(x), overall)], dim=1))


@plugin
@published(
    Publication(
        file="r101_dolg_512.pyth",
        where="https://github.com/feymanpriv/DOLG (r101_dolg_512)",
        layouts=(
            Layout(
                ("model_state", None),
                (
                    *pycls_names("globalmodel."),
                    ("fc_t.", "global_head."),
                    ("fc.", "head."),
                    ("localmodel.", "local."),
                ),
                dropped=_DROPPED,
                absent=("pool_g.", "desc_cls."),
            ),
        ),
    )
)
def dolg(
    argument: str | None,
    checkpoint: Checkpoint | None,
    *,
    weights: str = "dolg.safetensors",
    form: DolgForm = "faithful",
) -> Encoder:
    """512 values, not normalised: global branch and orthogonal local branch, concatenated, linear.

    BGR, unresized; scales 0.3535, 0.5, 0.7071, 1, 1.4142 without antialias, sides rounded; queries cut at whole
    pixels. `form=whiten-mtd`: the global branch's 1024 values, scales 1, 1/sqrt 2, 1/2. `form=cgd` repeats a defect
    of that code, the last layer on the pooled trunk; with `channels=RGB` it is what CGD ran.
    """
    facts_of(checkpoint, "dolg")
    network = DolgNetwork(form)
    if checkpoint is not None:
        fill(network, checkpoint)
    spec = feymanpriv_input(form, (0.3535, 0.5, 0.7071, 1.0, 1.4142))
    return Encoder("dolg", network, spec, 1024 if form == "whiten-mtd" else 512)
