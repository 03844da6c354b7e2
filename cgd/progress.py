"""One progress bar with rate and time left, silent when standard error is not a terminal."""

from __future__ import annotations

import sys
from typing import Any

from cgd import launch


def progress(total: int, what: str, unit: str = "images", initial: int = 0) -> Any:
    """A `tqdm` bar over `total` units; leave it as a context manager and call `update(n)`."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=f" {unit}",
        file=sys.stderr,
        disable=not (sys.stderr.isatty() and launch.first()),
        dynamic_ncols=True,
        smoothing=0.1,
    )
