"""How fast networks run here: teachers on a few images through the code that embeds them all, a step of the student."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cgd.config import ExtractConfig
from cgd.data.views import FIXED, crop_name
from cgd.errors import InputError
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder
from cgd.progress import progress
from cgd.stages.embed import Look, Meter, Tally, embed_rows
from cgd.types import ImageList, InputSpec

MOST_IMAGES = 256
STEP_IMAGES = 8


@dataclass(frozen=True)
class Measured:
    """Images a second of each encoder, full and as crops if there are any, and the seconds that one is waited for."""

    full: tuple[float, ...]
    crops: tuple[float, ...]
    waiting: float


def measure_encoders(
    encoders: Sequence[Encoder], images: ImageList, config: ExtractConfig, compute: Compute, seconds: float
) -> Measured:
    """Embed some `images` spread over the list as an extraction does, for about `seconds` after a warm-up."""
    placed = [e.to(compute.device, memory_format=torch.channels_last).eval() for e in encoders]  # type: ignore[call-overload]
    _embed(placed, images, [0], config, compute)  # libraries load and choose their kernels
    tallies, rows, rounds = _tallies(placed), [0], 1
    taken = _embed(placed, images, rows, config, compute, tallies)
    if taken < seconds:  # otherwise one image has to do
        count = int(min(seconds / taken, MOST_IMAGES, len(images)))
        rows = np.unique(np.linspace(0, len(images) - 1, count).astype(int)).tolist()
        rounds, tallies = max(1, round(seconds / (taken * len(rows)))), _tallies(placed)
        with progress(rounds * len(rows), "measuring") as bar:
            passes = [_embed(placed, images, rows, config, compute, tallies, bar) for _ in range(rounds)]
        taken = sum(passes)
    if not all(full.embedded for full, _ in tallies):
        raise InputError(f"none of the {len(rows)} images of {images.title} that were tried can be decoded.")
    inside = sum(full.seconds + crops.seconds for full, crops in tallies)
    return Measured(
        tuple(full.embedded / full.seconds for full, _ in tallies),
        tuple(crops.embedded / crops.seconds for _, crops in tallies if crops.embedded),
        max(0.0, taken - inside) / (rounds * len(rows)),
    )


def _tallies(encoders: Sequence[Encoder]) -> list[tuple[Tally, Tally]]:
    """Of full images and of crops."""
    return [(Tally(), Tally()) for _ in encoders]


def _embed(
    encoders: Sequence[Encoder],
    images: ImageList,
    rows: Sequence[int],
    config: ExtractConfig,
    compute: Compute,
    tallies: Sequence[tuple[Tally, Tally]] = (),
    bar: object = None,
) -> float:
    """Seconds in which every encoder looks at `rows` under every view."""
    tallies = tallies or _tallies(encoders)
    looks = []
    for encoder, (full, crops) in zip(encoders, tallies, strict=True):
        looks.append(Look(encoder, FIXED, full))
        looks += [Look(encoder, crop_name(number), crops) for number in range(1, config.views + 1)]
    started = time.perf_counter()
    embed_rows(rows, looks, images, config, compute, Meter(bar))
    return time.perf_counter() - started


class _Blind(nn.Module):
    """Sees nothing, at once: what is left is reading, decoding and resizing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.dim)


def measure_loading(
    specs: Sequence[InputSpec], images: ImageList, config: ExtractConfig, compute: Compute, seconds: float
) -> float:
    """Images a second that are read, decoded and cut for encoders with these `specs`, which then do nothing."""
    blind = [Encoder("blind", _Blind(1), spec, 1) for spec in specs]
    here = Compute(torch.device("cpu"), compute.workers, compute.batch_size)
    measured = measure_encoders(blind, images, config, here, seconds)
    looks = sum(1 / full for full in measured.full) + sum(config.views / crops for crops in measured.crops)
    return 1 / (measured.waiting + looks)


def measure_training(encoder: Encoder, images: ImageList, size: int, compute: Compute, seconds: float) -> float:
    """Images a second of a student's steps on square crops of `size` pixels, which are loaded meanwhile."""
    encoder = encoder.to(compute.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    pixels = torch.full((STEP_IMAGES, 3, size, size), 0.5, device=compute.device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    _step(encoder, pixels)  # libraries load and choose their kernels
    taken = [_step(encoder, pixels)]
    while sum(taken) < seconds:
        taken.append(_step(encoder, pixels))
    config = ExtractConfig(views=1, crop_size=size)
    loaded = measure_loading([InputSpec(size, "square")], images, config, compute, seconds)
    return min(STEP_IMAGES / min(taken), loaded)


def _step(encoder: Encoder, pixels: Tensor) -> float:
    started = time.perf_counter()
    encoder(pixels).square().sum().backward()
    encoder.zero_grad(set_to_none=True)
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)
    return max(time.perf_counter() - started, 1e-9)
