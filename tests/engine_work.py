"""Work that tells what was done where, for the tests of engines; in a module, as workers import it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from cgd.engines import Work, Worker
from cgd.errors import InputError


@dataclass(frozen=True)
class Counting(Work["Counter"]):
    """Opens to a counter of units; `refused` stands for what a machine lacks."""

    refused: str = ""
    seconds: float = 0.0

    def check(self) -> None:
        if self.refused:
            raise InputError(self.refused)

    def open(self, worker: Worker) -> Counter:
        return Counter(worker, self.seconds)


@dataclass
class Counter:
    worker: Worker
    seconds: float
    done: int = 0

    def square(self, unit: int) -> tuple[int, int, int]:
        """The square, the process, and how many units it has done."""
        time.sleep(self.seconds)
        self.done += 1
        self.worker.bar.update(2)
        return unit * unit, os.getpid(), self.done

    def refuse(self, unit: int) -> None:
        raise InputError(f"{unit} is refused: take another.")

    def stumble(self, unit: int) -> float:
        return unit / 0

    def warn(self, unit: int) -> int:
        logging.getLogger("cgd.engine_work").warning("%d is odd", unit)
        return unit

    def die(self, _: int) -> None:
        os._exit(3)
