"""The processes of one training: one alone, or as many as torchrun started, which together do what one would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cgd import launch
from cgd.errors import ElsewhereError, InputError

PATIENCE = timedelta(hours=12)  # the first may build targets for long; torchrun ends them all when one fails
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; the first one has the targets, the loss and whatever is written."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, size: int, rank: int | None = None) -> slice:
        """Which of `size` rows are this process's (or those of `rank`): contiguous, equal to within one."""
        place = self.rank if rank is None else rank
        return slice(size * place // self.count, size * (place + 1) // self.count)

    def gather(self, own: torch.Tensor, size: int) -> torch.Tensor:
        """All `size` rows in order, from each process's share of them; no gradient passes."""
        if self.count == 1:
            return own
        padded = own.new_zeros((-(-size // self.count), *own.shape[1:]))
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(found, padded)
        shares = [self.share(size, rank) for rank in range(self.count)]
        return torch.cat([part[: s.stop - s.start] for part, s in zip(found, shares, strict=True)])

    def from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Fill `tensors` with those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                sent = tensor.contiguous()  # not so in channels-last memory
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def told_by_first(self, value: Value) -> Value:
        """The first process's `value`, any picklable object."""
        if self.count == 1:
            return value
        told: list[Any] = [value]
        dist.broadcast_object_list(told, 0)
        return told[0]

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the sum of all gradients; what has one in no process keeps none."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        having = torch.tensor([float(p.grad is not None) for p in trained], device=flat.device)
        dist.all_reduce(flat)
        dist.all_reduce(having)
        sums = flat.split([p.numel() for p in trained])
        for p, part, present in zip(trained, sums, having.tolist(), strict=True):
            p.grad = part.view_as(p) if present else None

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The first process runs the block before the others, who find what it stored, or end where it failed."""
        if not self.first and self.told_by_first(""):
            raise ElsewhereError("the first process failed.")
        try:
            yield
        except BaseException as error:
            if self.first:
                self.told_by_first(repr(error))
            raise
        if self.first:
            self.told_by_first("")


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """This process among those that torchrun started (or that have met already), or alone."""
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if not launch.several():
        yield Processes()
        return
    bound: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        bound = {"device_id": device}
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE, **bound)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes of torchrun cannot meet: {str(error).splitlines()[0]}.") from error
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or "gloo" in str(error):
            raise ElsewhereError("another process of this training ended.") from error
        raise
    finally:
        dist.destroy_process_group()
