"""What drawn buildings are made of: numbers from a text, faces in space, outlines, windows and colours."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Colour = tuple[int, int, int]
Point = tuple[float, float, float]
Side = Literal["front", "left", "right"]
Outline = Sequence[tuple[float, float]]

GLASS: Colour = (62, 74, 88)


class Dice:
    """Numbers that a text decides, the same with every version of Python and on every machine.

    Python promises that of `Random.random` alone, so everything else is made from it.
    """

    def __init__(self, text: str) -> None:
        self._random = random.Random(text).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """`low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def one(self, choices: Sequence[Any]) -> Any:
        return choices[self.whole(0, len(choices) - 1)]

    def near(self, colour: Colour, spread: int) -> Colour:
        """A colour beside another."""
        r, g, b = (max(0, min(255, c + self.whole(-spread, spread))) for c in colour)
        return r, g, b


@dataclass(frozen=True)
class Face:
    """A polygon in space: metres, x to the right, y up, z away from the street; the facade is z = 0."""

    points: tuple[Point, ...]
    colour: Colour
    side: Side = "front"  # where it looks to: what looks away from the camera is not drawn
    kind: Literal["solid", "glass", "roof"] = "solid"


class Window:
    """The windows of a floor: their share of a bay, their form, bars and crest."""

    def __init__(self, dice: Dice) -> None:
        self.kind: str = dice.one(["plain", "plain", "arch", "pointed", "round", "pair"])
        self.width, self.height = dice.between(0.34, 0.66), dice.between(0.5, 0.72)
        self.bars: str = dice.one(["none", "cross", "upright", "level"])
        self.crest: str | None = dice.one([None, None, "peak", "lintel"])

    def like(self, kind: str) -> Window:
        other = Window(Dice(kind))
        other.kind, other.width, other.height, other.crest = kind, self.width, self.height, None
        return other

    def outline(self, x1: float, y1: float, x2: float, y2: float) -> Outline:
        middle, r = (x1 + x2) / 2, (x2 - x1) / 2
        if self.kind == "round":
            r = min(r, (y2 - y1) / 2)
            return ellipse(middle, (y1 + y2) / 2, r, r)
        if self.kind == "arch":
            spring = max(y1, y2 - r)
            bow = [(middle + r * math.cos(a), spring + (y2 - spring) * math.sin(a)) for a in angles(0, math.pi, 10)]
            return [(x1, y1), (x2, y1), *bow]
        if self.kind == "pointed":
            return [(x1, y1), (x2, y1), (x2, y2 - r), (middle, y2 + 0.3 * r), (x1, y2 - r)]
        return box(x1, y1, x2, y2)


def rhythm(dice: Dice) -> list[float]:
    """Widths of the bays, by one of a few rhythms."""
    count, wide = dice.whole(3, 8), dice.between(2.4, 3.9)
    kind = dice.one(["even", "even", "middle", "ends", "turns"])
    factor = dice.between(1.3, 1.8)
    chosen = {"even": (), "middle": (count // 2,), "ends": (0, count - 1), "turns": range(0, count, 2)}[kind]
    return [wide * (factor if n in chosen else 1.0) for n in range(count)]


def sides(x: float, reach: float) -> tuple[tuple[Side, float], tuple[Side, float]]:
    """The two sides of what is centred at `x`, and where they are."""
    return ("right", x + reach), ("left", x - reach)


def box(x1: float, y1: float, x2: float, y2: float) -> Outline:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def ellipse(x: float, y: float, rx: float, ry: float) -> Outline:
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles(0, 2 * math.pi, 20)]


def angles(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * n / count for n in range(count + 1)]


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    r, g, b = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return r, g, b
