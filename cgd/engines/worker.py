"""What a worker's process does: opens the work once, does units, and brings back what a person should be told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cgd.engines import Ticks, Work, Worker


@dataclass(frozen=True)
class Done:
    """A unit's result, what its bar was told, and warnings."""

    result: Any
    ticks: int
    warnings: tuple[str, ...]

    def tell(self, bar: Any) -> Any:
        """Pass on what is for a person, and give the result."""
        for warning in self.warnings:
            logging.getLogger("cgd").warning("%s", warning)
        if bar is not None:
            bar.update(self.ticks)
        return self.result


class Hand:
    """One worker's process: the work, opened when it is first needed."""

    def __init__(self, work: Work[Any], worker: Worker) -> None:
        self.work = work
        self.worker = worker
        self._opened: Any = None
        self._is_open = False
        self._warnings = _Kept()
        logger = logging.getLogger("cgd")
        logger.handlers[:] = [self._warnings]
        logger.propagate = False

    def open(self) -> Done:
        """Be ready for units."""
        if not self._is_open:
            self._opened, self._is_open = self.work.open(self.worker), True
        return self._done(None)

    def do(self, function: Callable[[Any, Any], Any], unit: Any) -> Done:
        self.open()
        return self._done(function(self._opened, unit))

    def _done(self, result: Any) -> Done:
        ticks, self.worker.bar = self.worker.bar.count, Ticks()
        texts, self._warnings.texts = tuple(self._warnings.texts), []
        return Done(result, ticks, texts)


class _Kept(logging.Handler):
    """Warnings, until somebody takes them to a screen."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
