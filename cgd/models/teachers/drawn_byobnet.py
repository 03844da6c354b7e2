"""A teacher of the demonstration: average pooling, trained with a softmax on drawn buildings."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.teachers._drawn import drawn
from cgd.registry import plugin


@plugin
def drawn_byobnet(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "drawn-byobnet.safetensors"
) -> Encoder:
    """timm's `test_byobnet` without its classifier, average pooling; its weights come with the package."""
    return drawn("test_byobnet", "avg", checkpoint)
