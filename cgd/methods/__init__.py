"""Distillation methods, one file each, and the questions all of them answer.

Nothing else in the package knows which method runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cgd.types import Batch, Target

if TYPE_CHECKING:  # targets are built without torch
    from torch import Tensor

Fusion = Callable[[np.ndarray, np.random.Generator], Any]


@dataclass(frozen=True)
class Needs:
    """What a method asks for.

    `fusion` is the kind it combines teachers with, if it does (see `cgd.fusion`); `images_per_row` says whether a
    batch is of pairs (of images, or of views of one) or of single images; `codebook` is whether one is fitted on the
    fused vectors before training; `width` is whether the student must be as wide as the teachers' vectors.
    """

    images_per_row: Literal[1, 2]
    fusion: Literal["similarities", "vectors"] | None = None
    teachers: bool = True
    codebook: bool = False
    width: bool = False


class Method(Protocol):
    """A target without gradient from the teachers' vectors, and a loss between it and the student.

    `tells` names entries of the target that say something of the teachers; their mean is reported with every epoch.
    """

    needs: Needs
    tells: tuple[str, ...]

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """From K arrays (B, V, D_k), whose widths may differ, to named arrays; V is `needs.images_per_row`."""

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """A scalar from the student's descriptors (B, V, D), not normalised."""
