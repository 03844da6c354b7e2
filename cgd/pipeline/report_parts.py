"""What a report is made of: rows of its table, figures and examples; `values_of` reads a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cgd.pipeline.reported import Epoch, Place, Teaching
from cgd.types import Benchmark, Key

if TYPE_CHECKING:
    import numpy as np

    from cgd.models.speed import Cost
    from cgd.stages.report import Choice, Ranking, Similarities

Result = Mapping[str, Any]
Kind = Literal["baseline", "teacher", "ensemble", "before", "after", "asymmetric"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `score` is as `cgd evaluate --json` gives it, `distracted` the same with distractors, or none were asked for.
    `cost` is None where the network is not on this machine.
    """

    kind: Kind
    name: str
    whitened: bool
    score: Result
    distracted: Result | None = None
    cost: Cost | None = None

    def as_json(self) -> dict[str, Any]:
        """One entry of `rows` of `cgd report --json`."""
        cost = self.cost
        return {
            "kind": self.kind,
            "model": self.name,
            "whitened": self.whitened,
            "parameters": cost and cost.parameters,
            "gmacs": cost and cost.gmacs,
            "images_per_second": cost and cost.images_per_second,
            "mAP": values_of(self.score),
            "mAP_with_distractors": self.distracted and values_of(self.distracted),
            "keys": [score["key"] for score in (self.score, self.distracted) if score],
        }


@dataclass(frozen=True)
class Shown:
    """A query's average precision and the gallery rows (k,) nearest to it, -1 where there are fewer."""

    precision: float
    rows: np.ndarray


@dataclass(frozen=True)
class Example:
    """A query with what the student finds before and after training."""

    choice: Choice
    before: Shown | None
    after: Shown


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    place: Place
    key: Key | None
    benchmark: Benchmark
    cropped: bool | None
    teaching: Teaching
    rows: tuple[Row, ...]
    similarities: Mapping[str, tuple[Similarities, Similarities | None]]
    curves: Mapping[str, tuple[str, Ranking]]
    examples: tuple[Example, ...]
    epochs: tuple[Epoch, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    device: str
    out: Path

    def one(self, kind: Kind) -> Row | None:
        """The best row of a kind by the benchmark's main protocol, in the space the student learnt from; or None."""
        whitened = self.place.about["distill"].get("space") != "raw"
        rows = [row for row in self.rows if row.kind == kind]
        return max(rows, key=lambda row: (row.whitened == whitened, main_value(row.score) or 0.0), default=None)


def values_of(score: Result) -> dict[str, float | None]:
    """mAP in percent by protocol."""
    return {protocol: values["mAP"] for protocol, values in score["protocols"].items()}


def main_value(score: Result) -> float | None:
    """mAP in percent under Medium, or by label."""
    values = values_of(score)
    return values["medium" if "medium" in values else "labels"]
