"""Distillation methods, one file each, and the three questions all of them answer.

Nothing else in the package knows which method runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from cgd.types import Batch, Target

if TYPE_CHECKING:  # targets are built without torch
    from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What a method asks of the store: which vectors of the teachers, and how many views of a pair it looks at."""

    space: Literal["raw", "whitened", "none"]
    images_per_row: Literal[1, 2]


class Method(Protocol):
    """A target without gradient from the teachers' vectors, and a loss between it and the student."""

    needs: Needs

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """From K arrays (B, 2, D_k), whose widths may differ, to named arrays."""

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """A scalar from the student's descriptors (B, 2, D), not normalised."""
