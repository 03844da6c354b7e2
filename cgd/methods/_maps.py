"""Hint and attention layers: a method's loss, and beside it that of feature maps (methods.md 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from cgd.methods import Method
from cgd.methods._softmax import unit
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor

FEATURES, ATTENTION = "features", "attention"
"""Entries of a target: teachers' maps (B, V, C g g) and (B, V, g g), as `maps` teachers give them."""


class WithMaps:
    """`method` for the first `dim` values of what the student gives, the rest being its maps, in the target's order."""

    def __init__(self, method: Method, dim: int, hint: float, attention: float) -> None:
        self.method, self.dim, self.hint, self.attention = method, dim, hint, attention
        self.needs, self.tells = method.needs, method.tells

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """The method's own; maps join it where vectors are read."""
        return self.method.target(teachers, batch, generator)

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """The method's, plus the weighted mean distances of features over sqrt(C g g) and of unit attention maps."""
        total = self.method.loss(student[..., : self.dim], target)
        start = self.dim
        if FEATURES in target:
            theirs = target[FEATURES]
            own = student[..., start : start + theirs.shape[-1]]
            total = total + self.hint * _distance(own, theirs) / sqrt(theirs.shape[-1])
            start += theirs.shape[-1]
        if ATTENTION in target:
            total = total + self.attention * _distance(unit(student[..., start:]), unit(target[ATTENTION]))
        return total


def _distance(own: Tensor, theirs: Tensor) -> Tensor:
    """Mean Euclidean distance along the last axis."""
    return (own - theirs).square().sum(dim=-1).clamp(min=1e-24).sqrt().mean()
