"""Contrastive learning (CL of Whiten-MTD): each image finds its partner in the batch; no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import ContrastiveConfig
from cgd.methods import Fusion, Needs
from cgd.methods._softmax import unit
from cgd.registry import plugin
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class Contrastive:
    """Section 1.6 of methods.md: Whiten-MTD's loss with the identity as its target."""

    config: ContrastiveConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="pairs", teachers=False)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Nothing: the partners are the target."""
        return {}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of rows plus that of columns, over cosines at the temperature."""
        normed = unit(student)
        logits = normed[:, 0] @ normed[:, 1].T / self.config.temperature  # (B, B)
        rows = -logits.log_softmax(dim=1).diagonal().mean()
        return rows - logits.T.log_softmax(dim=1).diagonal().mean() if self.config.symmetric else rows
