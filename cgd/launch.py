"""Which of the processes that torchrun started this one is; alone where it started none."""

from __future__ import annotations

import os


def several() -> bool:
    """Whether torchrun started this process beside others; its variables count only together."""
    numbers = [os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")]
    return all(number.isdigit() for number in numbers) and int(numbers[0]) > 1


def first() -> bool:
    """Whether this is the one that speaks and writes."""
    return not several() or os.environ["RANK"] == "0"


def local_rank() -> int | None:
    """Its number on this machine, where there are several."""
    return int(os.environ["LOCAL_RANK"]) if several() else None
