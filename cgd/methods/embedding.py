"""Embedding distillation (ED of Whiten-MTD): the student's vector near every teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import EmbeddingConfig
from cgd.methods import Fusion, Needs
from cgd.methods._softmax import unit
from cgd.methods._widths import of_one_width
from cgd.registry import plugin
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class Embedding:
    """Section 1.6 of methods.md; details the paper leaves open are that section's defaults."""

    config: EmbeddingConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="pairs", width=True)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Unit vectors `vectors` (B, K, 2, D); teachers of different widths are refused."""
        of_one_width("embedding distillation", teachers)
        return {"vectors": np.stack([l2(t) for t in teachers], axis=1)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Mean Euclidean distance (or its square) over images, views and teachers."""
        difference = unit(student)[:, None] - target["vectors"]  # (B, K, 2, D)
        squared = difference.square().sum(dim=-1)
        return (squared if self.config.squared else squared.clamp(min=1e-24).sqrt()).mean()
