"""Absolute teacher (Yu et al., CVPR 2019): metric learning by triplets, the student's vector near every teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import AbsoluteTeacherConfig
from cgd.methods import Fusion, Needs
from cgd.methods._metric import numbered, student_distances, triplet
from cgd.methods._softmax import unit
from cgd.methods._widths import of_one_width
from cgd.registry import plugin
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class AbsoluteTeacher:
    """Section 3.2 of methods.md; the paper has one teacher, of several the distances are averaged."""

    config: AbsoluteTeacherConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="classes", width=True, labels=True, maps=True)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Unit vectors `vectors` (B, K, D), and `labels` (B,), -1 of none; teachers of different widths are refused."""
        of_one_width("absolute-teacher", teachers)
        vectors = np.stack([l2(t[:, 0]) for t in teachers], axis=1)
        return {"vectors": vectors, "labels": numbered(batch.labels, vectors)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Weighted triplet term, plus the weighted mean Euclidean distance over all images and teachers."""
        own = unit(student[:, 0])
        squared = (own[:, None] - target["vectors"]).square().sum(dim=-1)  # (B, K)
        total = self.config.weight * squared.clamp(min=1e-24).sqrt().mean()
        if self.config.triplet:
            hard = triplet(student_distances(own), target["labels"], self.config.margin)
            total = total + self.config.triplet * hard
        return total
