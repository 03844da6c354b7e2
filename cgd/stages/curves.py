"""Loss, learning rate and validation as TensorBoard's event files, for those who ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cgd.errors import InputError


class Curves(AbstractContextManager["Curves"]):
    """Event files in `out`, or nothing where it is None."""

    def __init__(self, out: Path | None) -> None:
        self.writer: Any = None
        if out is not None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise InputError("--tensorboard needs one more package: pip install 'cgd[tensorboard]'.") from error
            self.writer = SummaryWriter(str(out / "tensorboard"))

    def add(self, first: int, losses: Sequence[float], rates: Sequence[float], line: Mapping[str, Any]) -> None:
        """A finished epoch, whose steps are numbered from `first`: an epoch is added once, resumed or not."""
        if self.writer is None:
            return
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), first):
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("learning_rate", rate, step)
        last = first + len(losses) - 1
        for name in ("validation", "images_per_second"):
            if name in line:
                self.writer.add_scalar(name, line[name], last)
        self.writer.flush()

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
