"""A teacher of the demonstration: maximum pooling, trained with a contrastive loss on drawn buildings."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.teachers._drawn import drawn
from cgd.registry import plugin


@plugin
def drawn_efficientnet(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "drawn-efficientnet.safetensors"
) -> Encoder:
    """timm's `test_efficientnet` without its classifier, pooling by maximum; its weights come with the package."""
    return drawn("test_efficientnet", "mac", checkpoint)
