"""Whiten-MTD: pull the student's similarity matrix towards the fused one of its teachers (AAAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import WhitenMtdConfig
from cgd.methods import Fusion, Needs
from cgd.methods._softmax import divergence, unit
from cgd.registry import plugin
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class WhitenMtd:
    """Sections 1.2 to 1.5 of methods.md; `strongest` tells how often each teacher found positives most similar."""

    config: WhitenMtdConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="pairs", fusion="similarities")
    tells = ("strongest",)

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Fused cosines `row` (B, B), first views against second, and `col` (B, B), its counterpart for the transposes.

        Computed in the precision of `teachers`. A random fusion draws again for `col`, as the released code does,
        unless `shared_mask`.
        """
        normed = [l2(t) for t in teachers]
        similarities = np.stack([t[:, 0] @ t[:, 1].T for t in normed])  # (K, B, B)
        row = self.fusion(similarities, generator)
        shared = self.config.shared_mask
        col = row.T.copy() if shared else self.fusion(similarities.transpose(0, 2, 1), generator)
        winners = similarities.diagonal(axis1=1, axis2=2).argmax(axis=0)
        share = np.bincount(winners, minlength=len(teachers)) / len(winners)
        return {"row": row, "col": col, "strongest": share.astype(row.dtype)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Row term plus column term, each a KL divergence over softmaxed cosines, divided by the rows only."""
        normed = unit(student)
        similarity = normed[:, 0] @ normed[:, 1].T  # (B, B)
        total = self._term(similarity, target["row"])
        if self.config.symmetric:
            total = total + self._term(similarity.T, target["col"])
        return total

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Divergence between row-wise softmaxes at their temperatures, divided by the number of rows."""
        p, q = student / self.config.student_temperature, teacher / self.config.teacher_temperature
        forward = self.config.kl_direction == "teacher-student"
        return (divergence(q, p) if forward else divergence(p, q)) / len(student)
