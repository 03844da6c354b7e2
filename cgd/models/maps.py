"""Feature maps for hint and attention layers: a trunk's last one, brought to a grid, of teachers and of students."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgd.errors import InputError
from cgd.models.encoder import Encoder

GRID = 4
LOOKED_AT = 224  # pixels; a network that takes any size has as many channels at this one


def trunk_of(encoder: Encoder) -> nn.Module:
    """The part of the network that gives its last feature map."""
    trunk = getattr(encoder.network, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise InputError(f"{encoder.name} has no single trunk with a last feature map: leave hint and attention out.")
    return trunk


def channels_of(encoder: Encoder) -> int:
    """Channels of the last feature map; found by a look at nothing, which leaves no trace. Refuses tokens."""
    spec, was_training = encoder.input_spec, encoder.training
    size = spec.size if spec.resize == "square" else min(spec.size, LOOKED_AT)
    with torch.inference_mode():
        pixels = torch.zeros(1, 3, size, size, device=next(encoder.parameters()).device)
        _, channels, height, width = trunk_of(encoder.eval())(pixels).shape
    encoder.train(was_training)
    if width < height:
        raise InputError(f"{encoder.name} gives tokens in a row, no feature map: leave hint and attention out.")
    return int(channels)


def to_grid(features: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) averaged to (B, C, grid, grid)."""
    return F.adaptive_avg_pool2d(features, grid)


def attention(features: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) to the sum over channels of squares, averaged to (B, grid x grid) (methods.md 3.4)."""
    return to_grid(features.square().sum(dim=1, keepdim=True), grid).flatten(1)


class MapNetwork(nn.Module):
    """A trunk whose map is the descriptor: (B, 3, H, W) to (B, C grid grid), or (B, grid grid) of attention."""

    def __init__(self, trunk: nn.Module, kind: str, grid: int) -> None:
        super().__init__()
        self.trunk, self.kind, self.grid = trunk, kind, grid

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        return attention(features, self.grid) if self.kind == "attention" else to_grid(features, self.grid).flatten(1)


class Mapped(nn.Module):
    """A student in training whose output is followed by its own map: (B, 3, H, W) to (B, D + features + attention).

    `hint` are the teacher's channels and grid: a 1x1 convolution `adapter` takes the student's map to these. It is
    trained along and is no part of the student. `attention_grid` is the side of the teacher's attention map, or 0.
    """

    def __init__(self, encoder: Encoder, hint: tuple[int, int] | None, attention_grid: int, seed: int) -> None:
        super().__init__()
        self.encoder, self.hint, self.attention_grid = encoder, hint, attention_grid
        self.name, self.input_spec = encoder.name, encoder.input_spec
        self.adapter: nn.Module = nn.Identity()
        if hint:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.adapter = nn.Conv2d(channels_of(encoder), hint[0], 1)
        self.adapter.to(next(encoder.parameters()).device)
        self.embed_dim = encoder.embed_dim + (hint[0] * hint[1] ** 2 if hint else 0) + attention_grid**2

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = trunk_of(self.encoder).register_forward_hook(lambda _, __, found: seen.append(found))
        try:
            parts = [self.encoder(x)]
        finally:
            handle.remove()
        (features,) = seen
        if self.hint:
            parts.append(self.adapter(to_grid(features, self.hint[1])).flatten(1))
        if self.attention_grid:
            parts.append(attention(features, self.attention_grid))
        return torch.cat(parts, dim=1)
