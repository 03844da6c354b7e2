"""Where networks run and how fast; nothing here changes what a result means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cgd import launch
from cgd.engines import Worker
from cgd.errors import InputError


@dataclass(frozen=True)
class Compute:
    """Device, decoding threads, images per forward pass, and which part of the shards (i of n) is this process's.

    `curves` is whether training also writes TensorBoard's event files.
    """

    device: torch.device
    workers: int = 2
    batch_size: int = 32
    shard_rows: int | None = None
    part: tuple[int, int] = (1, 1)
    curves: bool = False

    def of(self, worker: Worker) -> Compute:
        """The same for one of several workers: a GPU of its own, and its share of the cores."""
        if worker.threads is not None:
            torch.set_num_threads(worker.threads)
        if str(self.device) != "cuda":
            return self
        number = 0 if worker.elsewhere else worker.number % torch.cuda.device_count()
        return replace(self, device=pick_device(f"cuda:{number}"))


def pick_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:i`; under torchrun `cuda` is each process's own.

    Single precision means single, not TF32.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (number := launch.local_rank()) is not None:
        name = f"cuda:{number}"
    try:
        if name.partition(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError("there are cpu, cuda and cuda:i")
        device = torch.device(name)
        if device.type == "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use the device '{name}': {str(error).splitlines()[0]}; use --device cpu.") from error
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return device


def device_elsewhere(name: str) -> torch.device:
    """The device called `name` (cpu or cuda) of another machine; nothing is asked of this one."""
    return torch.device(name)
