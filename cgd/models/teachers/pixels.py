"""No network at all: the image as 16 x 16 pixels, the floor that a benchmark has to be above."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.registry import plugin
from cgd.types import InputSpec

SIDE = 16


class Pixels(nn.Module):
    """Pixels less their mean: (B, 3, H, W) to (B, 768)."""

    def forward(self, x: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(x, SIDE).flatten(1)
        return small - small.mean(dim=1, keepdim=True)


@plugin
def pixels(argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "random") -> Encoder:
    """What similarity of raw pixels finds; nothing is learnt, so there are no weights."""
    spec = InputSpec(size=64, resize="square", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), filter="bilinear")
    return Encoder("pixels", Pixels(), spec, 3 * SIDE * SIDE)
