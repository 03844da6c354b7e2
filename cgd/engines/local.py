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
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from cgd.engines import Engine, Opened, Pool, Result, Ticks, Unit, Work, Worker
from cgd.engines.worker import Done, Hand
from cgd.errors import EngineError
from cgd.launch import available_cores


class Local(Engine):
    """`processes` of this machine with `threads` each (none: a share of the cores); one is this very process.

    Several stay until the engine is forgotten, so that stage after stage finds them ready.
    """

    def __init__(self, processes: int = 1, threads: int | None = None) -> None:
        self.processes = processes
        self.threads = threads
        self._crew: _Crew | None = None

    def start(self, work: Work[Opened], *, gpus: bool = False, apart: bool = False) -> Pool[Opened]:  # noqa: ARG002
        if self.processes == 1:
            return Processes(work, _Crew(1, self.threads), last=True) if apart else Here(work, self.threads)
        if self._crew is None or self._crew.ended:
            self._crew = _Crew(self.processes, self.threads)
        return Processes(work, self._crew)


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


class _Crew:
    """Processes beside this one, which share its cores; they end with it, and at once when `alive` is closed."""

    def __init__(self, count: int, threads: int | None) -> None:
        self.count = count
        context = multiprocessing.get_context("spawn")
        waiting, self.alive = context.Pipe(duplex=False)
        threads = threads or max(1, available_cores() // count)
        numbers = context.SimpleQueue()  # a shared number would want a file, which a full disk refuses
        for number in range(count):
            numbers.put(number)
        self.pool = ProcessPoolExecutor(count, context, _begin, (numbers, threads, waiting))
        self.works = 0
        self.ended = False

    def end(self, *, at_once: bool) -> None:
        self.ended = True
        if at_once:
            self.alive.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.alive.close()


class Processes(Pool[Opened]):
    """A crew at one work; the crew ends with its `last`."""

    def __init__(self, work: Work[Opened], crew: _Crew, *, last: bool = False) -> None:
        self.workers = crew.count
        self._work, self._crew, self._last = work, crew, last
        crew.works += 1
        self._number, self._sent = crew.works, 0
        self._busy: dict[Future[Done | None], tuple[Any, Any]] = {}

    def run(
        self, do: Callable[[Opened, Unit], Result], units: Iterable[Unit], bar: Any = None
    ) -> Iterator[tuple[Unit, Result]]:
        busy, left = self._busy, iter(units)

        def hand_out() -> None:
            for unit in islice(left, self.workers - len(busy)):
                self._submit(do, unit, with_work=self._sent < self.workers)

        try:
            hand_out()
            while busy:
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    (asked, unit), done = busy.pop(future), future.result()
                    if done is None:
                        self._submit(asked, unit, with_work=True)
                        continue
                    hand_out()  # before anybody looks at the result
                    yield unit, done.tell(bar)
                hand_out()
        except BrokenProcessPool as error:
            self._last = True
            raise EngineError(
                "a worker process was ended from outside, perhaps because memory ran out: repeat the command, it "
                "continues; fewer --processes need less memory."
            ) from error

    def _submit(self, do: Callable[[Opened, Any], Any], unit: Any, *, with_work: bool) -> None:
        """Hand out a unit; the work may be large, so it travels once per process, and again where that went wrong."""
        self._sent += with_work
        work = self._work if with_work else None
        self._busy[self._crew.pool.submit(_do, self._number, work, do, unit)] = do, unit

    def __exit__(self, *_: object) -> None:
        if self._busy or self._last:
            self._crew.end(at_once=bool(self._busy))


_worker: Worker | None = None  # of this process, where it is one of a crew
_hand: tuple[int, Hand] | None = None  # and which work it is at


def _begin(numbers: Any, threads: int, alive: Connection) -> None:
    """Make ready for units; Ctrl-C is the parent's, and the worker ends with the parent or when told so."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Worker(numbers.get(), threads)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    with suppress(EOFError, OSError):
        alive.recv()
    if _hand is not None:
        with suppress(Exception):
            _hand[1].work.abandon()
    os._exit(1)


def _do(number: int, work: Work[Any] | None, function: Callable[[Any, Any], Any], unit: Any) -> Done | None:
    """What a unit gives; None where this process has yet to be given the work of this number."""
    global _hand
    assert _worker is not None
    if _hand is None or _hand[0] != number:
        _hand = None  # what the last work opened goes before more is opened
        if work is None:
            return None
        _hand = number, Hand(work, _worker)
    return _hand[1].do(function, unit)
