"""Encoder: a network with the pixels it wants and the size of its descriptor; teacher and student alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cgd.models.checkpoints import WeightsFile
from cgd.types import InputSpec


class Encoder(nn.Module):
    """`network` maps (B, 3, H, W) float32 to descriptors (B, `embed_dim`), normalised or not as published.

    `single_scale` says that descriptors of several scales cannot be joined.
    """

    def __init__(
        self, name: str, network: nn.Module, input_spec: InputSpec, embed_dim: int, *, single_scale: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.input_spec = input_spec
        self.embed_dim = embed_dim
        self.single_scale = single_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def embed(self, pixels: Sequence[Tensor]) -> Tensor:
        """Descriptors at every scale, (B, S, D): `pixels` holds one tensor, or one per scale of the image.

        The tensor is scaled here, the image before.
        """
        if self.input_spec.scale_on == "tensor" and len(pixels) == 1:
            pixels = [_scaled(pixels[0], scale, self.input_spec.scale_rounding) for scale in self.input_spec.scales]
        return torch.stack([self(x) for x in pixels], dim=1)


def _scaled(x: Tensor, scale: float, rounding: str) -> Tensor:
    """`floor` hands the factor itself to `interpolate`: a target size would sample another grid."""
    if scale == 1:
        return x
    if rounding == "floor":
        return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    size = [max(1, round(side * scale)) for side in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that is not built yet, so that finished work can be skipped without building it.

    `text` is the name as typed, `label` its slug, `identity` what enters marks (never a path), `weights` the file
    it will read, or none where it is drawn at random. It may travel to another process, so `build` is picklable.
    """

    text: str
    label: str
    identity: Mapping[str, Any]
    weights: WeightsFile | None
    build: Callable[[], Encoder]


def gmacs(encoder: Encoder) -> float:
    """Multiply-accumulates in units of 1e9 for one image of the encoder's size at scale 1.

    torch counts every multiply-add twice.
    """
    size = encoder.input_spec.centre_crop or encoder.input_spec.size
    device = next(encoder.parameters()).device
    was_training = encoder.training
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder.eval()(torch.zeros(1, 3, size, size, device=device))
    encoder.train(was_training)
    return float(counter.get_total_flops()) / 2 / 1e9
