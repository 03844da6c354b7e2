"""The processes of one training: one alone, or as many as torchrun started, which together do what one would."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cgd import launch
from cgd.errors import CgdError, ElsewhereError, InputError
from cgd.stages.meeting import meeting_place

PATIENCE = timedelta(hours=12)  # the first may build targets for long, and a machine may read a long list of images
STEP_PATIENCE = timedelta(minutes=15)  # to meet, and for what all do at one time; a machine that vanished is silent
WATCH_SECONDS = 1.0
Value = TypeVar("Value")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; the first one has the targets, the loss and whatever is written.

    Tensors travel through the default group, whose patience is short; plain values through `patient`, where one waits
    for another's work.
    """

    rank: int = 0
    count: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def place(self) -> str:
        """Which process this is, for people."""
        return f"rank {self.rank} on {socket.gethostname()}"

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

    def told_by(self, rank: int, value: Value) -> Value:
        """The `value` of the process `rank`, any picklable object; the others wait for it with patience."""
        if self.count == 1:
            return value
        told: list[Any] = [value]
        dist.broadcast_object_list(told, rank, group=self.patient)
        return told[0]

    def told_by_first(self, value: Value) -> Value:
        """The first process's `value`."""
        return self.told_by(0, value)

    def told_by_all(self, value: Value) -> list[Value]:
        """The `value` of every process, by rank."""
        if self.count == 1:
            return [value]
        told: list[Any] = [None] * self.count
        dist.all_gather_object(told, value, group=self.patient)
        return told

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
    def all_ready(self) -> Iterator[None]:
        """Every process runs the block; where it fails in one, none goes on, and every machine says where and why."""
        failure: CgdError | None = None
        try:
            yield
        except CgdError as error:
            if self.count == 1:
                raise
            failure = error
        own = None if failure is None or isinstance(failure, ElsewhereError) else str(failure)
        told = self.told_by_all((socket.gethostname(), own))
        failed: dict[tuple[str, str], int] = {}
        for rank, (host, reason) in enumerate(told):
            if reason is not None:
                failed.setdefault((host, reason), rank)
        if failure is None and not failed:
            return
        if failure is not None and self.first and len({reason for _, reason in told}) == 1:
            raise failure  # nothing that is of one machine
        if failed and launch.first_here() and len({reason for _, reason in told}) > 1:
            text = " ".join(f"rank {rank} on {host}: {reason}" for (host, reason), rank in failed.items())
            raise InputError(text) from failure
        raise ElsewhereError("another process failed.") from failure


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those that torchrun started (or that have met already), or alone.

    They meet before anything else is done: whoever fails later leaves the group, which the others notice. Raises
    `InputError` where they cannot meet, and `ElsewhereError` where another ended.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if not launch.several():
        yield Processes()
        return
    _end_with_parent()
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = meeting_place(rank, count, STEP_PATIENCE)
        dist.init_process_group(_backends(), store=store, rank=rank, world_size=count, timeout=STEP_PATIENCE)
        patient: Any = dist.new_group(timeout=PATIENCE, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes of torchrun cannot meet: {str(error).splitlines()[0]}: every machine must run the same "
            "command, and reach the others by the network interface that GLOO_SOCKET_IFNAME names."
        ) from error
    try:
        yield Processes(rank, count, patient)
    except CgdError:
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            if launch.hosts() > 1 and launch.first_here():
                log.error("another process of this training ended or cannot be reached; its machine says why.")
            raise ElsewhereError("another process of this training ended.") from error
        raise
    finally:
        dist.destroy_process_group()


def _backends() -> str:
    """Values travel from memory to memory by gloo, and so do tensors of the CPU."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"


def _end_with_parent() -> None:
    """End when torchrun is killed, which would leave this process training beside the one that takes its place."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
