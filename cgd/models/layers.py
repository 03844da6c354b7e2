"""Layers that several networks share: GeM pooling, normalisation, and a trunk with a pooled head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GeM(nn.Module):
    """Generalised-mean pooling, `(mean of max(x, 1e-6)^p)^(1/p)`: (B, C, H, W) to (B, C).

    Exponent 1 is plain average pooling, without the clamp. A `learned` exponent is a parameter of shape [1].
    """

    def __init__(self, p: float = 3.0, *, learned: bool = False) -> None:
        super().__init__()
        self.p: Any = nn.Parameter(torch.tensor([p])) if learned else p

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.p, Tensor) and self.p == 1:
            return x.mean(dim=(-2, -1))
        return x.clamp(min=1e-6).pow(self.p).mean(dim=(-2, -1)).pow(1 / self.p)


def pooling(name: str) -> GeM:
    """`gem` (exponent 3) or `avg`."""
    return GeM({"gem": 3.0, "avg": 1.0}[name])


class Descriptor(nn.Module):
    """Trunk, pooling, and optionally l2 and a linear head of `dim` outputs with bias: (B, 3, H, W) to (B, D).

    This is the student of Whiten-MTD (methods.md 1.2); the output is not normalised. With `dim` 0 the pooled
    trunk is the descriptor.
    """

    def __init__(self, trunk: nn.Module, channels: int, pool: nn.Module, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = pool
        self.head = nn.Linear(channels, dim) if dim else None

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.trunk(x))  # (B, C)
        return pooled if self.head is None else self.head(F.normalize(pooled, dim=1, eps=1e-12))


class TimmTrunk(nn.Module):
    """The feature map of a timm network, (B, 3, H, W) to (B, C, h, w), whatever layout the network has inside."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.prefix = int(getattr(network, "num_prefix_tokens", 0))
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> Tensor:
        features = self.network.forward_features(x)
        if features.ndim == 3:  # tokens (B, T, C): a map of one column, without class and register tokens
            return features[:, self.prefix :].transpose(1, 2).unsqueeze(-1)
        return features.permute(0, 3, 1, 2) if self.channels_last else features
