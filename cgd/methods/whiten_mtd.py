"""Whiten-MTD: pull the student's similarity matrix towards the fused one of whitened teachers (AAAI 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import WhitenMtdConfig
from cgd.methods import Needs
from cgd.registry import plugin
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class WhitenMtd:
    """Sections 1.2 to 1.5 of methods.md; `fusion` is a similarity fusion, (K, B, B) to (B, B)."""

    config: WhitenMtdConfig
    fusion: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    needs = Needs(space="whitened", images_per_row=2)

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Fused cosines `row` (B, B), first views against second, and `col` (B, B), its counterpart for the transposes.

        Computed in the precision of `teachers`. A random fusion draws again for `col`, as the released code does.
        """
        unit = [l2(t) for t in teachers]
        similarities = np.stack([t[:, 0] @ t[:, 1].T for t in unit])  # (K, B, B)
        row = self.fusion(similarities, generator)
        col = self.fusion(similarities.transpose(0, 2, 1), generator)
        return {"row": row, "col": col}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Row term plus column term, each a KL divergence over softmaxed cosines, divided by the rows only."""
        unit = student / student.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        similarity = unit[:, 0] @ unit[:, 1].T  # (B, B)
        total = self._divergence(similarity, target["row"])
        if self.config.symmetric:
            total = total + self._divergence(similarity.T, target["col"])
        return total

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL between row-wise softmaxes at their temperatures, summed, divided by the number of rows."""
        q = (teacher / self.config.teacher_temperature).log_softmax(dim=1)
        p = (student / self.config.student_temperature).log_softmax(dim=1)
        if self.config.kl_direction == "student-teacher":
            p, q = q, p
        return (q.exp() * (q - p)).sum() / len(student)
