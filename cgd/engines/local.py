"""This machine: its units are done by this very process, or by several beside it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from cgd.engines import Engine, Opened, Pool, Result, Ticks, Unit, Work, Worker
from cgd.engines.worker import Done, Hand
from cgd.errors import EngineError
from cgd.launch import available_cores


@dataclass(frozen=True)
class Local(Engine):
    """`processes` of this machine with `threads` each (none: a share of the cores); one is this very process."""

    processes: int = 1
    threads: int | None = None

    def start(self, work: Work[Opened], *, gpus: bool = False, apart: bool = False) -> Pool[Opened]:  # noqa: ARG002
        if self.processes > 1 or apart:
            return Processes(work, self.processes, self.threads or max(1, available_cores() // self.processes))
        return Here(work, self.threads)


LOCAL = Local()


class Here(Pool[Opened]):
    """This process, without a copy of anything."""

    def __init__(self, work: Work[Opened], threads: int | None = None) -> None:
        self._work = work
        self._worker = Worker(threads=threads)
        self._opened: list[Opened] = []

    def run(
        self, do: Callable[[Opened, Unit], Result], units: Iterable[Unit], bar: Any = None
    ) -> Iterator[tuple[Unit, Result]]:
        if not self._opened:
            self._opened.append(self._work.open(self._worker))
        for unit in units:
            self._worker.bar = Ticks() if bar is None else bar
            yield unit, do(self._opened[0], unit)


class Processes(Pool[Opened]):
    """Processes beside this one, which share its cores; they end with it."""

    def __init__(self, work: Work[Opened], count: int, threads: int) -> None:
        self.workers = count
        context = multiprocessing.get_context("spawn")
        waiting, self._alive = context.Pipe(duplex=False)  # closed when workers are to end, or by this process's end
        self._pool = ProcessPoolExecutor(count, context, _begin, (work, context.Value("i", 0), threads, waiting))
        self._busy: dict[Future[Done], Any] = {}

    def run(
        self, do: Callable[[Opened, Unit], Result], units: Iterable[Unit], bar: Any = None
    ) -> Iterator[tuple[Unit, Result]]:
        busy, left = self._busy, iter(units)
        try:
            while True:
                for unit in islice(left, self.workers - len(busy)):
                    busy[self._pool.submit(_do, do, unit)] = unit
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    unit, done = busy.pop(future), future.result()
                    for following in islice(left, self.workers - len(busy)):  # before anybody looks at the result
                        busy[self._pool.submit(_do, do, following)] = following
                    yield unit, done.tell(bar)
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker process was ended from outside, perhaps because memory ran out: repeat the command, it "
                "continues; fewer --processes need less memory."
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._busy:
            self._alive.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._alive.close()


_hand: Hand | None = None  # of this worker's process


def _begin(work: Work[Any], begun: Any, threads: int, alive: Connection) -> None:
    """Make ready for units; Ctrl-C is the parent's, and the worker ends with the parent or when told so."""
    global _hand
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    threading.Thread(target=_end_with, args=(alive, work), daemon=True).start()
    _hand = Hand(work, Worker(number, threads))


def _end_with(alive: Connection, work: Work[Any]) -> None:
    with suppress(EOFError, OSError):
        alive.recv()
    with suppress(Exception):
        work.abandon()
    os._exit(1)


def _do(function: Callable[[Any, Any], Any], unit: Any) -> Done:
    assert _hand is not None
    return _hand.do(function, unit)
