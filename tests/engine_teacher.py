"""A teacher that takes its time, for the tests and measurements of engines; named `engine_teacher:slow`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from cgd.models.encoder import Encoder
from cgd.types import InputSpec


class Slow(nn.Module):
    """Means of a grid of cells, after so many `seconds` per image."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(x))
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) * self.scale


def slow(argument: None, checkpoint: Any, *, seconds: float = 0.01, weights: str = "random") -> Encoder:  # noqa: ARG001
    spec = InputSpec(size=32, resize="square", mean=(0.5,) * 3, std=(0.5,) * 3)
    return Encoder("slow", Slow(seconds), spec, 48)
