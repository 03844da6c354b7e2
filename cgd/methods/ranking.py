"""Ranking distillation (Laskar and Kannala, ACCV 2020): few images, and virtual ones between them, drawn at no cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import RankingConfig
from cgd.methods import Fusion, Needs
from cgd.methods._softmax import unit
from cgd.registry import plugin
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class Ranking:
    """Chapter 4 of methods.md, its reading of a paper without code; of several teachers the terms are averaged."""

    config: RankingConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="images")
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Cosines `cosines` (K, M, M) of M images, and which are mixed: `first`, `second`, `share` (A,).

        Virtual vectors are not kept: their cosines follow from those of the images they lie between.
        """
        images = len(batch)
        drawn = self.config.virtual or images
        first = generator.integers(0, images, drawn)
        second = (first + generator.integers(1, images, drawn)) % images
        share = generator.beta(self.config.alpha, self.config.alpha, drawn)
        unit_vectors = [l2(t[:, 0]) for t in teachers]
        cosines = np.stack([t @ t.T for t in unit_vectors])
        pairs = {"first": first, "second": second, "share": share}
        return {"cosines": cosines} | {name: values.astype(cosines.dtype) for name, values in pairs.items()}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """The chosen difference between teachers' and student's cosines of n = M + A vectors, virtual ones included."""
        import torch

        mixing = _mixing(target, len(student))  # (n, M)
        joint = unit(mixing @ unit(student[:, 0]))
        own = joint @ joint.T  # (n, n)
        theirs = mixing @ target["cosines"] @ mixing.T  # (K, n, n), of vectors not normalised
        norms = theirs.diagonal(dim1=1, dim2=2).clamp(min=1e-24).sqrt()
        theirs = theirs / (norms[:, :, None] * norms[:, None, :])
        others = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        rows = own[others].view(len(own), -1), theirs[:, others].view(len(theirs), len(own), -1)  # without the diagonal
        return {"rank_mse": _mse, "rank_listkl": self._listwise, "rank_rkd": _rkd}[self.config.loss](*rows)

    def _listwise(self, own: Tensor, theirs: Tensor) -> Tensor:
        """KL(teacher || student) of every row's softmax at the temperature, its mean."""
        q = (theirs / self.config.temperature).log_softmax(dim=-1)
        p = (own / self.config.temperature).log_softmax(dim=-1)
        return (q.exp() * (q - p)).sum(dim=-1).mean()


def _mixing(target: dict[str, Tensor], images: int) -> Tensor:
    """(M + A, M): the identity, and below it the shares of two images in each virtual one."""
    import torch

    like = target["cosines"]
    first, second = (torch.nn.functional.one_hot(target[name].long(), images).to(like) for name in ("first", "second"))
    share = target["share"][:, None]
    return torch.cat([torch.eye(images, dtype=like.dtype, device=like.device), share * first + (1 - share) * second])


def _mse(own: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of cosines."""
    return (theirs - own).square().mean()


def _rkd(own: Tensor, theirs: Tensor) -> Tensor:
    """Mean Huber difference of Euclidean distances, each matrix divided by its own mean."""
    import torch

    student, teacher = ((2 - 2 * cosines).clamp(min=1e-12).sqrt() for cosines in (own, theirs))
    scaled = student / student.mean(), teacher / teacher.mean(dim=(1, 2), keepdim=True)
    return torch.nn.functional.huber_loss(scaled[0].expand_as(teacher), scaled[1])
