"""One update of a student: forward in one piece or several, the loss over the whole batch, backward, one step.

The loss is taken of the descriptors alone, whichever process and piece they come from, and its gradient with respect
to them is what each piece then continues backwards. So the number of processes and of pieces does not enter the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cgd.config import DistillConfig
from cgd.errors import InputError
from cgd.methods import Method
from cgd.models import batchnorm
from cgd.models.encoder import Encoder
from cgd.models.maps import Mapped
from cgd.stages.processes import Processes
from cgd.types import Target


@dataclass
class Clock:
    """Seconds by what they were spent on, and the number of steps."""

    spent: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "targets", "forward", "backward"), 0.0)
    )
    steps: int = 0
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, what: str | None = None) -> None:
        """Add the time since the last lap to `what`, or to nothing."""
        now = time.perf_counter()
        if what:
            self.spent[what] += now - self._last
        self._last = now

    def per_step(self) -> dict[str, float]:
        return {what: seconds / max(self.steps, 1) for what, seconds in self.spent.items()}


class Update:
    """The student with its optimiser, what its loss is, and how it is computed."""

    def __init__(self, encoder: Encoder | Mapped, method: Method, config: DistillConfig, processes: Processes) -> None:
        self.encoder, self.method, self.config, self.processes = encoder, method, config, processes
        self.parameters = list(encoder.parameters())
        self.device = self.parameters[0].device
        kind = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[config.optimiser]
        self.optimiser = kind(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)

    def step(self, pixels: Tensor, target: Target | None, size: int, clock: Clock) -> float:
        """One update by a batch of `size` rows; the loss before it, the same in every process.

        `pixels` (B' V, 3, H, W) are those of this process's share of the rows, a row's views in a row; `target` is
        the first process's, of all rows.
        """
        pieces = pixels.split(self.config.chunk_images or max(len(pixels), 1))
        cached = len(pieces) > 1
        states, embedded = [], []
        first_of_two = batchnorm.without_statistics(self.encoder) if cached else nullcontext()
        with torch.set_grad_enabled(not cached), first_of_two:
            for piece in pieces:
                states.append(_random_state(self.device) if cached else [])
                embedded.append(self._embed(piece))
        views = self.method.needs.images_per_row
        own = torch.cat(embedded).detach().unflatten(0, (-1, views))
        value, gradient = self._loss(self.processes.gather(own, size), target)
        clock.lap("forward")
        if not math.isfinite(value):
            raise InputError(f"the loss of {self.encoder.name} became {value}: lower distill.learning_rate.")
        self.optimiser.zero_grad(set_to_none=True)
        mine = gradient[self.processes.share(size)].flatten(0, 1)
        for number, part in enumerate(mine.split([len(e) for e in embedded])):
            if cached:
                _set_random_state(self.device, states[number])
                embedded[number] = self._embed(pieces[number])
            if len(part):
                embedded[number].backward(part)
        self.processes.add_gradients(self.parameters)
        self.optimiser.step()
        clock.lap("backward")
        clock.steps += 1
        return value

    def _embed(self, pixels: Tensor) -> Tensor:
        """Descriptors (B, D), computed in the configured precision; the loss is always computed in the full one."""
        if not len(pixels):  # a batch smaller than the number of processes
            return pixels.new_zeros((0, self.encoder.embed_dim))
        reduced = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            found: Tensor = self.encoder(pixels)
        return found.float() if reduced else found

    def _loss(self, descriptors: Tensor, target: Target | None) -> tuple[float, Tensor]:
        """The loss of all rows (B, V, D) and its gradient, by the first process."""
        told = descriptors.new_zeros((1,), dtype=torch.float64)
        gradient = torch.zeros_like(descriptors)
        if target is not None:
            goal = {name: torch.from_numpy(values).to(self.device) for name, values in target.items()}
            leaf = descriptors.requires_grad_()
            loss = self.method.loss(leaf, goal)
            loss.backward()
            assert leaf.grad is not None, "a loss depends on the descriptors"
            told, gradient = loss.detach().double().reshape(1), leaf.grad
        self.processes.from_first([told, gradient])
        return told.item(), gradient


def _random_state(device: torch.device) -> Sequence[Tensor]:
    """What dropout draws from, to draw the same again."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(device: torch.device, state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
