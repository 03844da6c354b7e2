"""What the published teachers share: their preprocessing and the form that Whiten-MTD gave them."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, Literal

from torch import nn

from cgd.errors import WeightsError
from cgd.models.checkpoints import Checkpoint
from cgd.models.layers import GeM
from cgd.types import InputSpec

Form = Literal["faithful", "whiten-mtd"]


def whiten_mtd_input(**changes: Any) -> InputSpec:
    """Unresized images at scales 1, 1/sqrt 2, 1/2 of the tensor, normalised by ImageNet's constants (methods.md 8.1).

    The paper's queries were not cropped: evaluate with `--queries full` to score as it did.
    """
    return InputSpec(size=1024, resize="none", scales=(1.0, 1 / sqrt(2), 0.5), **changes)


def stored_exponent(checkpoint: Checkpoint | None, form: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The pooling of a form, and which tensors of the file it has no use for.

    The faithful form has the exponent of the file; Whiten-MTD set it to 3 whatever the file says.
    """
    if form == "whiten-mtd":
        return GeM(3.0), ("pool.",)
    if checkpoint is not None and "pool.p" not in checkpoint.state:
        raise WeightsError(
            f"{checkpoint.path} comes from Whiten-MTD's copy, which has no pooling exponent: "
            "use form=whiten-mtd, or import the file its authors published."
        )
    return GeM(3.0, learned=True), ()


def normalisation(facts: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation where the file has them."""
    return {name: tuple(facts[name]) for name in ("mean", "std") if name in facts}


def three_numbers(values: Any, what: str) -> list[float]:
    """A mean or deviation of a published file as plain numbers."""
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(_is_number(v) for v in values):
        raise ValueError(f"its {what} is not three numbers")
    if what == "std" and not min(values) > 0:
        raise ValueError("its std is not positive")
    return [float(v) for v in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def expect(said: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse a file whose `where` says something else than `wanted`; what it does not say is as wanted."""
    for name, value in wanted.items():
        found = said.get(name, value)
        if type(found) is not type(value) or found != value:
            shown = repr(found)[:60] if isinstance(found, (str, bool, int, float)) else f"a {type(found).__name__}"
            raise ValueError(f"its {where} says {name} = {shown}")
