"""Feature regression (the first step of CUKDFIR): the student's vector equal to the one the teacher's network gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import FeatureRegressionConfig
from cgd.methods import Fusion, Needs
from cgd.methods._widths import of_one_width
from cgd.registry import plugin
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class FeatureRegression:
    """Section 5.1 of methods.md; the paper has one teacher, of several the squares are averaged."""

    config: FeatureRegressionConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="images", width=True, raw=True)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """The vectors themselves, `vectors` (B, K, D), not normalised; different widths are refused."""
        of_one_width("feature-regression", teachers)
        return {"vectors": np.concatenate(teachers, axis=1)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Mean squared difference over images, teachers and dimensions."""
        return (student - target["vectors"]).square().mean()
