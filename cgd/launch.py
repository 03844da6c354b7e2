"""Which of the processes that torchrun started this one is, alone where it started none; and what it may use."""

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


def first_here() -> bool:
    """Whether this is the one that reads and writes what belongs to its machine, and speaks for it."""
    return local_rank() in (None, 0)


def hosts() -> int:
    """How many machines torchrun was started on."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1)) if several() else 1


def started_again() -> bool:
    """Whether torchrun started this process in the place of one that had ended."""
    return several() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
