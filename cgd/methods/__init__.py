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

    A batch is of `pairs` (of images, or of views of one), of single `images`, or of single images of a few `classes`,
    several of each. `fusion` is the kind it combines teachers with, if it does (see `cgd.fusion`); `codebook` is
    whether one is fitted on the fused vectors before training; `width` is whether the student must be as wide as the
    teachers' vectors; `labels` is whether the target is made with the batch's labels; `classes` is whether the method
    is made with a table of the classes that each label names; `raw` is whether it makes sense only of vectors as they
    came from the teachers; `maps` is whether `hint` and `attention` of its settings weigh layers of feature maps.
    """

    batches: Literal["pairs", "images", "classes"]
    fusion: Literal["similarities", "vectors"] | None = None
    teachers: bool = True
    codebook: bool = False
    width: bool = False
    labels: bool = False
    classes: bool = False
    raw: bool = False
    maps: bool = False

    @property
    def images_per_row(self) -> int:
        """Images, or views of one, in a row of a batch."""
        return 2 if self.batches == "pairs" else 1


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
