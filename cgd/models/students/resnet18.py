"""ResNet-18 with the head of Whiten-MTD: GeM, l2, linear."""

from __future__ import annotations

from typing import Literal

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.students._heads import whiten_mtd_student
from cgd.models.trunks import torchvision_resnet
from cgd.registry import plugin


@plugin
def resnet18(
    argument: str | None, checkpoint: Checkpoint | None, *, dim: int = 512, pool: Literal["gem", "avg"] = "gem"
) -> Encoder:
    """11.44 M parameters at 512 dimensions (methods.md 1.7); `dim` is free, the head's input is the trunk's width.

    `pool=avg` and `dim=0`, the trunk alone, are the form for videos (methods.md 1.11).
    """
    return whiten_mtd_student("resnet18", *torchvision_resnet("resnet18", checkpoint), dim, pool)
