"""A teacher of the demonstration: generalised-mean pooling, trained with ArcFace on drawn buildings."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.teachers._drawn import drawn
from cgd.registry import plugin


@plugin
def drawn_resnet(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "drawn-resnet.safetensors"
) -> Encoder:
    """timm's `test_resnet` without its classifier, GeM pooling; its weights come with the package."""
    return drawn("test_resnet", "gem", checkpoint)
