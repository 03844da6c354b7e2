"""What a network costs: parameters, multiply-accumulates, and how many images a second it embeds here and now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cgd.models.encoder import Encoder, gmacs
from cgd.progress import progress

BATCH = 32
LONGEST = 6.0  # seconds that a batch may take; a heavier network gets fewer images at once
ROUNDS = 4


@dataclass(frozen=True)
class Cost:
    """Parameters, GMACs for one image at scale 1, and images per second in the network in batches of `batch`."""

    parameters: int
    gmacs: float
    images_per_second: float
    batch: int


def costs_of(encoders: Sequence[Encoder], device: torch.device, seconds: float = 1.0) -> list[Cost]:
    """What each of some networks costs, measured on square images of its own size for about `seconds`.

    After a warm-up the networks take turns, and the fastest pass of each counts: other work on the machine only slows
    passes down. On a CPU it is one thread, as several wait for each other where cores are shared. An encoder without
    parameters, which only looks at pixels, has no multiply-adds worth counting.
    """
    sizes = [sum(p.numel() for p in encoder.parameters()) for encoder in encoders]
    macs = [gmacs(encoder) if size else 0.0 for encoder, size in zip(encoders, sizes, strict=True)]
    placed = [e.to(device, memory_format=torch.channels_last).eval() for e in encoders]  # type: ignore[call-overload]
    best = [float("inf")] * len(placed)
    with _one_thread(device), progress((1 + ROUNDS) * len(placed), "speed", "networks") as bar:
        batches = []
        for encoder in placed:
            batches.append(_batch(encoder, device))
            bar.update(1)
        for _ in range(ROUNDS):
            for number, encoder in enumerate(placed):
                best[number] = min(best[number], _fastest(encoder, batches[number], device, seconds / ROUNDS))
                bar.update(1)
    return [Cost(*each[:2], each[2] / each[3], each[2]) for each in zip(sizes, macs, batches, best, strict=True)]


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batch(encoder: Encoder, device: torch.device) -> int:
    """How many images to pass forward at once; the network is warm then."""
    single = _images(encoder, 1, device)
    _forward(encoder, single)  # libraries load and choose their kernels
    batch = max(1, min(BATCH, int(LONGEST / min(_forward(encoder, single) for _ in range(3)))))
    while True:
        try:
            _forward(encoder, _images(encoder, batch, device))
            return batch
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2


def _fastest(encoder: Encoder, batch: int, device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of some passes, which take `seconds` together."""
    pixels = _images(encoder, batch, device)
    taken = [_forward(encoder, pixels)]
    while sum(taken) < seconds:
        taken.append(_forward(encoder, pixels))
    return min(taken)


def _images(encoder: Encoder, count: int, device: torch.device) -> torch.Tensor:
    size = encoder.input_spec.centre_crop or encoder.input_spec.size
    return torch.full((count, 3, size, size), 0.5, device=device).contiguous(memory_format=torch.channels_last)


def _forward(encoder: Encoder, pixels: torch.Tensor) -> float:
    """Seconds of one forward pass."""
    started = time.perf_counter()
    with torch.inference_mode():
        encoder(pixels)
        if pixels.device.type == "cuda":
            torch.cuda.synchronize(pixels.device)
    return max(time.perf_counter() - started, 1e-9)


def together(costs: Sequence[Cost]) -> Cost:
    """What several networks cost that look at every image one after the other."""
    seconds = sum(1 / cost.images_per_second for cost in costs)
    return Cost(
        sum(cost.parameters for cost in costs),
        sum(cost.gmacs for cost in costs),
        1 / seconds,
        min(cost.batch for cost in costs),
    )


def device_name(device: torch.device) -> str:
    """What speed was measured on, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "one thread of the CPU"
