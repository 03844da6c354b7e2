"""Batch norm that was folded into the convolutions: recognised, frozen or un-folded, never silently destroyed.

Such a layer's running statistics are the identity. Let it re-estimate them in training and the network is lost,
because its weights expect un-normalised activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from cgd.errors import InputError

Mode = Literal["auto", "train", "freeze", "unfold"]


def norms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """The batch norms of `network`, timm's subclasses with a built-in activation included."""
    yield from (m for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def is_folded(network: nn.Module) -> bool:
    """Whether all batch norms hold identity statistics, as a converted inference network does."""
    statistics = [
        (m.running_mean, m.running_var)
        for m in norms(network)
        if m.running_mean is not None and m.running_var is not None
    ]
    return bool(statistics) and all(bool((mean == 0).all()) and bool((var == 1).all()) for mean, var in statistics)


def decide(network: nn.Module, mode: Mode, pretrained: bool) -> Literal["train", "freeze", "unfold"]:
    """What `mode` means for this network; `auto` freezes folded batch norm and trains any other."""
    folded = pretrained and is_folded(network)
    if mode == "auto":
        return "freeze" if folded else "train"
    if mode == "train" and folded:
        raise InputError(
            "the batch norm of these weights was folded away, so training it would destroy them: "
            "set distill.batch_norm to freeze or unfold."
        )
    if mode == "unfold" and not folded:
        raise InputError(
            "distill.batch_norm=unfold is for weights whose batch norm was folded away; these have theirs: use train."
        )
    return mode


def freeze(network: nn.Module) -> None:
    """Keep the statistics (scale and shift still learn); call it after every `train()`."""
    for norm in norms(network):
        norm.eval()


@torch.no_grad()
def unfold(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give folded batch norms the statistics of their inputs on `batches`, leaving the network's output as it is.

    Mean m and variance v of each input are measured in float64 over all batches in one pass; then
    running_mean = m, running_var = v, weight *= sqrt(v + eps) / sqrt(1 + eps), bias += old weight * m / sqrt(1 + eps).
    """
    totals: dict[nn.BatchNorm2d, list[Tensor]] = {}
    counts: dict[nn.BatchNorm2d, int] = {}

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        x = inputs[0].double()
        sums = [x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3))]
        totals[module] = [a + b for a, b in zip(totals[module], sums, strict=True)] if module in totals else sums
        counts[module] = counts.get(module, 0) + x.numel() // x.shape[1]

    network.eval()
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms(network)]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, (first, second) in totals.items():
        mean = first / counts[norm]
        variance = (second / counts[norm] - mean.square()).clamp(min=0)
        before, bias = norm.weight.double().clone(), norm.bias.double().clone()
        identity = (1 + norm.eps) ** 0.5
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(before * (variance + norm.eps).sqrt() / identity)
        norm.bias.copy_(bias + before * mean / identity)


@contextmanager
def without_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block batch norms in training leave their running statistics as they are."""
    kept = [(norm, norm.momentum) for norm in network.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    for norm, _ in kept:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in kept:
            norm.momentum = momentum
