"""What methods that compare vectors with vectors require of their teachers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgd.errors import InputError


def of_one_width(what: str, teachers: Sequence[np.ndarray]) -> None:
    """Refuse teachers (…, D_k) of different widths; `what` needs them equal."""
    widths = sorted({t.shape[-1] for t in teachers})
    if len(widths) > 1:
        raise InputError(f"{what} needs teachers of one width, not {widths}: whiten them to one --dim.")
