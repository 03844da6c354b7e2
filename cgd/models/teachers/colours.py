"""No network at all: the image's colour histogram, the other floor that a benchmark has to be above."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.registry import plugin
from cgd.types import InputSpec

BINS = 8  # per channel


class Colours(nn.Module):
    """Square roots of the shares of 8 x 8 x 8 colours, (B, 3, H, W) in 0 to 1 to (B, 512).

    The cosine of two such vectors is the Bhattacharyya coefficient of the histograms.
    """

    def forward(self, x: Tensor) -> Tensor:
        cells = (x * BINS).long().clamp(0, BINS - 1)  # (B, 3, H, W)
        colour = (cells[:, 0] * BINS + cells[:, 1]) * BINS + cells[:, 2]
        return torch.stack([torch.bincount(each.flatten(), minlength=BINS**3) for each in colour]).sqrt()


@plugin
def colours(argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "random") -> Encoder:
    """What similarity of colour histograms finds; nothing is learnt, so there are no weights."""
    spec = InputSpec(size=64, resize="square", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), filter="bilinear")
    return Encoder("colours", Colours(), spec, BINS**3)
