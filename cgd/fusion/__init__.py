"""Ways to combine teachers, one file each, of two kinds.

Of similarities: K matrices (K, B, B) to one (B, B). Of vectors: (K, B, D) to one (B, D), with the weight (B, K) that
each teacher got. A fusion gets a generator, for those that draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
SIMILARITIES, VECTORS = "similarities", "vectors"


def of_similarities(function: F) -> F:
    """Declare that a fusion combines similarity matrices."""
    function.combines = SIMILARITIES  # type: ignore[attr-defined]
    return function


def of_vectors(function: F) -> F:
    """Declare that a fusion combines vectors of equal width."""
    function.combines = VECTORS  # type: ignore[attr-defined]
    return function
