"""MobileNetV2 with the head of CGD: 1x1 convolution, GeM, linear, l2."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.students._heads import cgd_student
from cgd.registry import plugin


@plugin
def mobilenetv2(argument: str | None, checkpoint: Checkpoint | None, *, stu_dim: int = 2048, dim: int = 512) -> Encoder:
    """5.89 M parameters with the defaults (methods.md 2.5)."""
    return cgd_student("mobilenetv2", "mobilenetv2_100", checkpoint, stu_dim, dim)
