"""Engines: who does a stage's units of work, be it this process, several on this machine, or a cluster.

A stage says once what its units are and how their results merge. It hands over a `Work`, which every worker opens once,
and then units, which any worker may do, and do again where one was lost. The store makes that safe: a shard that is
written twice is written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cgd.errors import unknown

Opened = TypeVar("Opened")
Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass
class Ticks:
    """Stands in for a progress bar where there is no screen; counts what the screen's has yet to be told."""

    count: int = 0

    def update(self, count: int) -> None:
        self.count += count


@dataclass
class Worker:
    """Who does units: the `number` among those of one machine, its `threads` (none: as many as there are cores).

    `elsewhere` is whether it may be on another machine than who asked; `bar` takes `update(n)` while a unit is done.
    """

    number: int = 0
    threads: int | None = None
    elsewhere: bool = False
    bar: Any = field(default_factory=Ticks)


class Work(Generic[Opened]):
    """What workers are to do; picklable, as it may travel."""

    def check(self) -> None:
        """Raise `CgdError` where this machine lacks what the work needs; asked of every machine before any work."""

    def open(self, worker: Worker) -> Opened:
        """What units are done with: networks, open artifacts. Once per worker; raises `CgdError`."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Remove what the work keeps on this machine: whoever asked for it was killed."""


class Pool(AbstractContextManager["Pool[Opened]"], Generic[Opened]):
    """Workers for one `Work`, until the end of the `with` block."""

    workers: int = 1  # to divide work by; there may be more or fewer later

    @abstractmethod
    def run(
        self, do: Callable[[Opened, Unit], Result], units: Iterable[Unit], bar: Any = None
    ) -> Iterator[tuple[Unit, Result]]:
        """`do` of every unit with what some worker opened, in the order of completion.

        Units are drawn as workers become free, one each ahead of whoever reads the results. `do` is a function of a
        module (or of a class), so that it can travel. `bar` is told of what workers tell theirs.
        """

    def ask(self, do: Callable[[Opened, Unit], Result], unit: Unit) -> Result:
        """One unit's result."""
        ((_, result),) = self.run(do, [unit])
        return result

    def __exit__(self, *_: object) -> None:
        """Let the workers go, at once where a unit is still in hand."""


class Engine(ABC):
    """Where pools come from."""

    elsewhere: bool = False  # whether workers may be on other machines

    @abstractmethod
    def start(self, work: Work[Opened], *, gpus: bool = False, apart: bool = False) -> Pool[Opened]:
        """Workers for `work`, each with a GPU of its own where `gpus`; never this very process where `apart`."""

    def device(self, name: str) -> str:
        """The device that workers will have, where a user asked for `name`: auto, cpu, cuda or cuda:i."""
        return name


def engine_of(text: str, processes: int | None = None, threads: int | None = None) -> Engine:
    """The engine a user names: `local`, `ray` or `ray://HOST[:PORT]`, with how many workers of how many cores."""
    from cgd.engines.local import Local

    name, _, address = text.partition("://")
    if name == "ray":
        from cgd.engines.ray import Ray

        return Ray(address or None, processes, threads or 1)
    if text != "local":
        raise unknown("engine", text, ["local", "ray", f"ray://{address or 'HOST:PORT'}"])
    return Local(processes or 1, threads)
