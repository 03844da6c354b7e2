"""Deep Cauchy hashing: images that share a class within a small Hamming ball, the others outside (CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import DchConfig
from cgd.methods import Fusion, Needs
from cgd.registry import plugin
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class Dch:
    """Section 5.2 of methods.md; the student's dimensions are the bits of its codes. No teacher takes part."""

    config: DchConfig
    fusion: Fusion
    codebook: None = None
    classes: np.ndarray | None = None  # (L, C) bool: the classes that each label names
    needs = Needs(batches="images", teachers=False, labels=True, classes=True)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Which two images share a class: `similar` (B, B) of 0 and 1."""
        assert self.classes is not None, "made with the table of classes"
        assert batch.labels is not None, "the batch has labels"
        members = self.classes[batch.labels[:, 0]].astype(np.int64)
        return {"similar": (members @ members.T > 0).astype(np.float32)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of Cauchy-distributed pairs, both kinds weighted alike, and how far outputs are from +-1."""
        codes, similar = student[:, 0], target["similar"].to(student)  # (B, bits), (B, B)
        gamma, other = self.config.gamma, 1 - similar
        apart = _distance(codes, codes)
        pairs = similar * (apart / gamma).log() + (gamma / apart).log1p()
        if similar.any() and other.any():
            pairs = pairs * (similar / similar.mean() + other / other.mean())
        from_signs = _distance(codes.abs(), codes.new_ones(1, codes.shape[1]))  # (B, 1)
        quantisation = (from_signs / gamma).log1p().mean()
        return pairs.mean() + self.config.quantisation * quantisation


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(A, B): Hamming distances that cosines stand for, of cosines up to 0.99, so that none is 0."""
    cosine = a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1)).clamp(min=1e-4)
    return a.shape[1] / 2 * (1 - cosine.clamp(max=0.99))
