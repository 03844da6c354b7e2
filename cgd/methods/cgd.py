"""CGD: the student's soft code, sub-vector by sub-vector, like that of the fused teachers (IP&M 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import CgdConfig
from cgd.errors import InputError
from cgd.methods import Fusion, Needs
from cgd.methods._softmax import divergence, unit
from cgd.methods._widths import of_one_width
from cgd.registry import plugin
from cgd.types import Batch, Codebook, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class Cgd:
    """Sections 2.2 to 2.4 of methods.md; `weights` tells each teacher's share of fused vectors, `rho` their |rho|."""

    config: CgdConfig
    fusion: Fusion
    codebook: Codebook
    needs = Needs(batches="images", fusion="vectors", codebook=True, width=True)
    tells = ("weights", "rho")

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """The fused vector `vector` (B, D) of un-normalised whitened ones, aligned where the codebook says how."""
        fused, weights, rho = fuse_vectors([t[:, 0] for t in teachers], self.codebook, self.fusion, generator)
        shares = weights / np.maximum(np.abs(weights).sum(axis=1, keepdims=True), 1e-12)
        return {"vector": fused, "weights": shares.mean(axis=0), "rho": np.array([rho], fused.dtype)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """KL(teacher || student) over the anchors of each position, mean over images and positions."""
        import torch

        anchors = torch.tensor(self.codebook.centroids).to(student)  # (m, n, c)
        own = unit(student[:, 0])
        logits = [self._logits(v, anchors) for v in (target["vector"].to(student), own)]  # (B, m, n) each
        loss = divergence(*logits) / (len(own) * len(anchors))
        if self.config.direct:
            loss = loss + self.config.direct * (1 - (own * unit(target["vector"].to(student))).sum(dim=-1)).mean()
        return loss

    def _logits(self, vectors: Tensor, anchors: Tensor) -> Tensor:
        positions, _, width = anchors.shape
        if vectors.shape[-1] != positions * width:
            raise InputError(
                f"the codebook is for {positions * width} dimensions, these vectors have {vectors.shape[-1]}: "
                f"give the student ?dim={positions * width}, or whiten to that --dim."
            )
        parts = unit(vectors.unflatten(-1, (positions, width)))  # (B, m, c)
        return self.config.multiplier * parts.transpose(0, 1).bmm(anchors.transpose(1, 2)).transpose(0, 1)


def fuse_vectors(
    teachers: Sequence[np.ndarray], codebook: Codebook | None, fusion: Fusion, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """K arrays (B, D) to the fused (B, D), weights (B, K), and the mean |rho| between teachers."""
    from cgd.fusion._correlation import correlations

    of_one_width("fusing vectors", teachers)
    vectors = np.stack(teachers)  # (K, B, D)
    if codebook is not None and codebook.rotations is not None:
        vectors = vectors @ codebook.rotations.transpose(0, 2, 1).astype(vectors.dtype)
    fused, weights = fusion(vectors, generator)
    pairs = len(teachers) * (len(teachers) - 1)
    rho = float(correlations(vectors).sum() / (pairs * vectors.shape[1])) if pairs else 0.0
    return fused.astype(vectors.dtype), weights, rho
