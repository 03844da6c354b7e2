"""Layers that several networks share: GeM pooling, normalisation, and a trunk with a pooled head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

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


class MAC(nn.Module):
    """Maximum activations of convolutions, the largest value of each channel: (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(-2, -1))


def pooling(name: str) -> nn.Module:
    """`gem` (exponent 3), `avg`, `mac`, or `cls`: the mean of the class token alone."""
    return MAC() if name == "mac" else GeM({"gem": 3.0, "avg": 1.0, "cls": 1.0}[name])


def unit(x: Tensor) -> Tensor:
    """Rows (B, D) divided by max(norm, 1e-12)."""
    return F.normalize(x, dim=1, eps=1e-12)


def unit_cirtorch(x: Tensor) -> Tensor:
    """Rows (B, D) divided by norm + 1e-6, as cnnimageretrieval-pytorch and SOLAR do."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-6)


Normalise = Callable[[Tensor], Tensor]


class Descriptor(nn.Module):
    """Trunk, pooling, and optionally a linear head of `dim` outputs with bias: (B, 3, H, W) to (B, D).

    The pooled map goes through `before` on its way to the head, the head's output through `after`. As it stands this
    is the student of Whiten-MTD (methods.md 1.2): l2 before, nothing after. With `dim` 0 the pooled trunk is the
    descriptor.
    """

    def __init__(
        self,
        trunk: nn.Module,
        channels: int,
        pool: nn.Module,
        dim: int,
        *,
        before: Normalise | None = unit,
        after: Normalise | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = pool
        self.head = nn.Linear(channels, dim) if dim else None
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.trunk(x))  # (B, C)
        if self.head is None:
            return pooled
        projected = self.head(pooled if self.before is None else self.before(pooled))  # (B, D)
        return projected if self.after is None else self.after(projected)


class TimmTrunk(nn.Module):
    """The feature map of a timm network, (B, 3, H, W) to (B, C, h, w), whatever layout the network has inside.

    Tokens become a map of one column: the patches, or the class token alone.
    """

    def __init__(self, network: Any, tokens: Literal["patches", "class"] = "patches") -> None:
        super().__init__()
        self.network = network
        prefix = int(getattr(network, "num_prefix_tokens", 0))  # class and register tokens stand in front
        self.chosen = slice(0, 1) if tokens == "class" else slice(prefix, None)
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> Tensor:
        features = self.network.forward_features(x)
        if not isinstance(features, Tensor):
            raise RuntimeError("this network has no single feature map")
        if features.ndim == 3:  # (B, T, C)
            return features[:, self.chosen].transpose(1, 2).unsqueeze(-1)
        return features.permute(0, 3, 1, 2) if self.channels_last else features
