"""What the losses over softmaxed similarities share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Rows along the last axis divided by max(norm, 1e-12)."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def divergence(target: Tensor, student: Tensor) -> Tensor:
    """KL(target || student) between softmaxes over the last axis of logits, summed over everything."""
    q, p = target.log_softmax(dim=-1), student.log_softmax(dim=-1)
    return (q.exp() * (q - p)).sum()
