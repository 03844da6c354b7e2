"""What makes a drawn landmark itself: its body, windows, roof and ornaments, as coloured faces in space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cgd.data.drawn_parts import (
    GLASS,
    Colour,
    Dice,
    Face,
    Outline,
    Point,
    Side,
    Window,
    angles,
    box,
    ellipse,
    mixed,
    rhythm,
    sides,
)

WALLS: list[Colour] = [
    (224, 208, 176), (203, 166, 126), (178, 96, 78), (212, 212, 206), (152, 164, 156), (224, 188, 112), (172, 142, 134),
    (126, 116, 112), (196, 138, 122),
]  # fmt: skip
ROOFS: list[Colour] = [(84, 90, 102), (164, 82, 62), (112, 160, 142), (134, 134, 130), (70, 62, 60)]
ACCENTS: list[Colour] = [(58, 92, 74), (58, 78, 128), (140, 46, 46), (92, 70, 50), (236, 232, 220), (60, 60, 64)]
_EAVES = 0.4  # metres that a roof reaches beyond the walls


class Building:
    """A building from `seed` and `label`: `faces` from the back to the front, `size` as width, height, depth."""

    def __init__(self, seed: int, label: int) -> None:
        dice = Dice(f"building {seed} {label}")
        self.faces: list[Face] = []
        self._wall = dice.near(dice.one(WALLS), 10)
        lighter = dice.chance(0.6)
        self._trim = mixed(self._wall, (246, 242, 232) if lighter else (60, 54, 52), 0.55)
        self._roof = dice.near(dice.one(ROOFS), 10)
        self._accent = dice.near(dice.one(ACCENTS), 8)
        self._bays = rhythm(dice)
        self._storeys = [dice.between(3.9, 5.2), *[dice.between(3.1, 4.0)] * dice.whole(1, 4)]
        if dice.chance(0.35):
            self._storeys[-1] *= 0.72
        self.width, self.body, self.depth = sum(self._bays), sum(self._storeys), dice.between(8, 15)
        self._shapes = [Window(dice) for _ in range(3)]  # of the ground floor, the upper ones, the last one
        self._build(dice)
        points = [p for face in self.faces for p in face.points]
        self.height = max(y for _, y, _ in points)

    def _build(self, dice: Dice) -> None:
        w, h = self.width / 2, self.body
        pattern = dice.one(["plain", "plain", "courses", "stripes", "timber", "quoins"])
        roof = dice.one(["flat", "balustrade", "gable", "steps", "hip", "mansard", "dome"])
        towers = dice.one([(), (), (), (-0.82,), (0.82,), (0.0,), (-0.82, 0.82), (dice.between(-0.5, 0.5),)])
        if roof in ("hip", "mansard", "dome"):
            self._crown(roof, dice)
        self._plane("right", dice, pattern)
        self._plane("left", dice, pattern)
        if roof in ("gable", "steps"):
            self._crown(roof, dice)
        self._facade(dice, pattern)
        if roof in ("flat", "balustrade"):
            self._crown(roof, dice)
        self._rectangle(-w - 0.5, h - 0.5, w + 0.5, h + dice.between(0.1, 0.5), self._trim)  # cornice
        reach, cap = dice.between(0.25, 0.7), dice.one(["spire", "flat", "onion", "pyramid"])
        wide = min(dice.between(0.13, 0.24) * self.width, 6.5)
        for place in towers:
            self._tower(place * (w - wide / 2), wide, h * (1 + reach), cap)
        self._ornaments(dice)

    def _facade(self, dice: Dice, pattern: str) -> None:
        """The front: its wall, bay by bay the windows, and what lies upon it."""
        w, h = self.width / 2, self.body
        self._rectangle(-w, 0, w, h, self._wall)
        self._texture(pattern, -w, w, self._flat)
        plinth = dice.between(0.4, 1.2)
        self._rectangle(-w, 0, w, plinth, mixed(self._wall, (70, 66, 64), 0.4))
        if dice.chance(0.25):  # a ground floor of another colour
            self._rectangle(-w, plinth, w, self._storeys[0], mixed(self._wall, self._accent, 0.45))
        door, pilasters = dice.whole(0, len(self._bays) - 1), dice.chance(0.4)
        odd = {(dice.whole(1, 5), dice.whole(0, 8)): dice.one(["blank", "balcony", "round"]) for _ in range(4)}
        balconies = dice.one([None, None, "row", "middle"])
        row, shutters = dice.whole(1, max(1, len(self._storeys) - 1)), dice.chance(0.25)
        courses = {n for n in range(1, len(self._storeys)) if dice.chance(0.45)}
        y = 0.0
        for floor, storey in enumerate(self._storeys):
            if floor in courses:
                self._rectangle(-w, y - 0.18, w, y + 0.18, self._trim)
            x = -w
            for bay, wide in enumerate(self._bays):
                shape = self._shapes[0 if floor == 0 else 2 if floor == len(self._storeys) - 1 else 1]
                what = odd.get((floor, bay), "window")
                if floor == 0 and bay == door:
                    self._door(x + wide / 2, min(wide * 0.6, 2.6), storey)
                elif what != "blank":
                    if what == "round":
                        shape = self._shapes[1].like("round")
                    self._window(shape, x, y, wide, storey, shutters and floor > 0, self._flat)
                    middle = balconies == "middle" and bay == len(self._bays) // 2 and floor > 0
                    if floor and (what == "balcony" or middle or (balconies == "row" and floor == row)):
                        self._balcony(x, y, wide)
                x += wide
                if pilasters and bay < len(self._bays) - 1:
                    self._rectangle(x - 0.22, plinth, x + 0.22, h, self._trim)
            y += storey

    def _plane(self, side: Side, dice: Dice, pattern: str) -> None:
        """A side wall, with windows of the upper floors' kind."""
        x = self.width / 2 if side == "right" else -self.width / 2

        def place(outline: Outline, colour: Colour, kind: Any = "solid") -> None:
            self.faces.append(Face(tuple((x, v, u) for u, v in outline), colour, side, kind))

        place([(0, 0), (self.depth, 0), (self.depth, self.body), (0, self.body)], self._wall)
        self._texture(pattern if pattern != "timber" else "plain", 0, self.depth, place)
        count = dice.whole(2, 4)
        y = 0.0
        for floor, storey in enumerate(self._storeys):
            for n in range(count):
                shape = self._shapes[1 if floor else 0]
                self._window(shape, n * self.depth / count, y, self.depth / count, storey, False, place)
            y += storey

    def _flat(self, outline: Outline, colour: Colour, kind: Any = "solid") -> None:
        """A face upon the facade."""
        self.faces.append(Face(tuple((x, y, 0.0) for x, y in outline), colour, "front", kind))

    def _rectangle(self, x1: float, y1: float, x2: float, y2: float, colour: Colour, kind: Any = "solid") -> None:
        self._flat(box(x1, y1, x2, y2), colour, kind)

    def _texture(self, pattern: str, start: float, end: float, place: Callable[..., None]) -> None:
        h = self.body
        if pattern == "courses":
            shade = mixed(self._wall, (40, 36, 34), 0.16)
            for n in range(1, int(h / 0.9)):
                place(box(start, n * 0.9, end, n * 0.9 + 0.22), shade)
        elif pattern == "stripes":
            for n in range(1, int(h / 1.8), 2):
                place(box(start, n * 1.8, end, n * 1.8 + 0.9), mixed(self._wall, self._roof, 0.5))
        elif pattern == "timber":
            beam, foot = mixed(self._accent, (50, 38, 30), 0.5), self._storeys[0]
            for n in range(2 * len(self._bays) + 1):
                x = start + n * (end - start) / (2 * len(self._bays))
                place(box(x - 0.14, foot, x + 0.14, h), beam)
            for storey in self._storeys[1:]:
                place(box(start, foot - 0.16, end, foot + 0.16), beam)
                foot += storey
        elif pattern == "quoins":
            for n in range(int(h / 1.2)):
                wide = 1.3 if n % 2 else 0.8
                for x1, x2 in ((start, start + wide), (end - wide, end)):
                    place(box(x1, n * 1.2 + 0.08, x2, n * 1.2 + 1.1), self._trim)

    def _window(
        self, shape: Window, x: float, y: float, wide: float, storey: float, shutters: bool, place: Callable[..., None]
    ) -> None:
        """One window (or a pair) in a bay that begins at `x` on a floor that begins at `y`."""
        width, height = shape.width * wide, shape.height * storey
        foot = y + (storey - height) * 0.42
        parts = 2 if shape.kind == "pair" else 1
        each = width / parts
        for n in range(parts):
            x1 = x + (wide - width) / 2 + n * each + (0.12 if n else 0)
            x2 = x1 + each - (0.12 if parts == 2 and not n else 0)
            if shutters and shape.kind in ("plain", "arch"):
                for edge in (x1 - 0.3 * each, x2):
                    place(box(edge, foot, edge + 0.3 * each, foot + height), self._accent)
            place(shape.outline(x1 - 0.16, foot - 0.16, x2 + 0.16, foot + height + 0.16), self._trim)
            place(shape.outline(x1, foot, x2, foot + height), GLASS, "glass")
            if shape.bars in ("cross", "upright") and shape.kind != "round":
                middle = (x1 + x2) / 2
                place(box(middle - 0.05, foot, middle + 0.05, foot + height), self._trim)
            if shape.bars in ("cross", "level"):
                place(box(x1, foot + 0.6 * height, x2, foot + 0.6 * height + 0.1), self._trim)
        if shape.crest and place == self._flat:
            x1, x2, top = x + (wide - width) / 2 - 0.3, x + (wide + width) / 2 + 0.3, foot + height + 0.25
            peak = [(x1, top), (x2, top), ((x1 + x2) / 2, top + 0.5)]
            place(peak if shape.crest == "peak" else box(x1, top, x2, top + 0.22), self._trim)

    def _door(self, centre: float, width: float, storey: float) -> None:
        height = 0.78 * storey
        shape = self._shapes[0]
        self._flat(shape.outline(centre - width / 2 - 0.35, 0, centre + width / 2 + 0.35, height + 0.35), self._trim)
        self._flat(shape.outline(centre - width / 2, 0, centre + width / 2, height), self._accent)
        self._rectangle(centre - 0.05, 0, centre + 0.05, height * 0.8, mixed(self._accent, (20, 20, 20), 0.5))
        self._rectangle(centre - width / 2 - 0.8, 0, centre + width / 2 + 0.8, 0.35, self._trim)

    def _balcony(self, x: float, y: float, wide: float) -> None:
        self._rectangle(x + 0.08 * wide, y + 0.1, x + 0.92 * wide, y + 0.34, self._trim)
        self._rectangle(x + 0.08 * wide, y + 1.1, x + 0.92 * wide, y + 1.22, (52, 52, 56))
        for n in range(7):
            post = x + (0.1 + 0.8 * n / 6) * wide
            self._rectangle(post - 0.05, y + 0.3, post + 0.05, y + 1.15, (52, 52, 56))

    def _crown(self, kind: str, dice: Dice) -> None:
        """The roof, or what hides a flat one."""
        rise = dice.between(0.16, 0.34) * self.width if kind in ("gable", "steps") else dice.between(2.5, 5.5)
        rise = min(rise, 0.75 * self.body)
        if kind in ("flat", "balustrade"):
            self._parapet(kind, dice)
        elif kind in ("gable", "steps"):
            self._gable(kind, rise, dice)
        elif kind == "dome":
            self._dome(dice)
        else:
            self._slopes(kind, rise, dice)
        if kind in ("hip", "mansard", "gable") and dice.chance(0.6):
            x, h = dice.between(-0.6, 0.6) * (self.width / 2 + _EAVES), self.body
            self._rectangle(x - 0.6, h + 0.4 * rise, x + 0.6, h + rise + 1.4, mixed(self._wall, (90, 60, 50), 0.4))

    def _parapet(self, kind: str, dice: Dice) -> None:
        w, h = self.width / 2 + _EAVES, self.body
        if kind == "flat":
            self._rectangle(-w, h, w, h + dice.between(0.6, 1.6), self._trim)
            return
        self._rectangle(-w, h + 1.0, w, h + 1.3, self._trim)
        posts = dice.whole(8, 20)
        for n in range(posts + 1):
            x = -w + 2 * w * n / posts
            self._rectangle(max(-w, x - 0.2), h, min(w, x + 0.2), h + 1.1, self._trim)

    def _gable(self, kind: str, rise: float, dice: Dice) -> None:
        """The street sees the end of the roof, straight or in steps."""
        w, h, d = self.width / 2 + _EAVES, self.body, self.depth
        for side, x in sides(0.0, w):
            self._roof_face(((x, h, 0.0), (x, h, d), (0.0, h + rise, d), (0.0, h + rise, 0.0)), side)
        if kind == "gable":
            self._flat([(-w, h), (w, h), (0, h + rise)], self._trim)
            self._flat([(-0.88 * w, h + 0.2), (0.88 * w, h + 0.2), (0, h + 0.9 * rise)], self._wall)
        else:
            steps = dice.whole(3, 6)
            for n in range(steps):
                edge = w * (1 - n / steps)
                self._rectangle(-edge, h, edge, h + rise * (n + 1) / steps, self._trim)
            for n in range(steps):
                inner = w * (1 - n / steps) - 0.35
                self._rectangle(-inner, h, inner, h + rise * (n + 1) / steps - 0.3, self._wall)
        if dice.chance(0.7):
            self._flat(ellipse(0, h + 0.36 * rise, min(1.3, 0.14 * w), min(1.3, 0.2 * rise)), GLASS, "glass")

    def _dome(self, dice: Dice) -> None:
        w, h = self.width / 2 + _EAVES, self.body
        drum, radius = dice.between(0.3, 0.55) * w, dice.between(0.36, 0.6) * w
        self._rectangle(-radius, h, radius, h + drum, self._wall)
        for n in range(5):
            x = radius * (-0.8 + 0.4 * n)
            self._rectangle(x - 0.06 * radius, h + 0.2 * drum, x + 0.06 * radius, h + 0.8 * drum, self._trim)
        half = [(radius * 1.06 * math.cos(a), h + drum + radius * math.sin(a)) for a in angles(0, math.pi, 24)]
        self._flat(half, self._roof, "roof")
        self._rectangle(-0.09 * radius, h + drum + radius, 0.09 * radius, h + drum + 1.35 * radius, self._trim)

    def _slopes(self, kind: str, rise: float, dice: Dice) -> None:
        """A roof that leans towards the street, with dormers."""
        w, h, d = self.width / 2 + _EAVES, self.body, self.depth
        inset = 0.82 if kind == "mansard" else dice.between(0.35, 0.7)
        back = d / 2 if kind == "hip" else 0.18 * d
        for side, x in sides(0.0, w):
            self._roof_face(
                ((x, h, 0.0), (x, h, d), (inset * x, h + rise, d - back), (inset * x, h + rise, back)), side
            )
        front = ((-w, h, 0.0), (w, h, 0.0), (inset * w, h + rise, back), (-inset * w, h + rise, back))
        self._roof_face(front, "front")
        dormers = dice.whole(0, 5) if kind == "mansard" else dice.one([0, 0, 1, 3])
        for n in range(dormers):
            x = (2 * n + 1 - dormers) * 1.5 * inset * w / max(dormers, 2)
            self._rectangle(x - 0.8, h + 0.15 * rise, x + 0.8, h + 0.6 * rise, self._trim)
            self._rectangle(x - 0.5, h + 0.2 * rise, x + 0.5, h + 0.55 * rise, GLASS, "glass")
            self._flat([(x - 1, h + 0.6 * rise), (x + 1, h + 0.6 * rise), (x, h + 0.8 * rise)], self._roof, "roof")

    def _roof_face(self, points: tuple[Point, ...], side: Side) -> None:
        self.faces.append(Face(points, self._roof, side, "roof"))

    def _tower(self, x: float, wide: float, height: float, cap: str) -> None:
        r, foot = wide / 2, min(self.body, height)  # below, the body hides its sides
        for side, edge in sides(x, r):
            wall = ((edge, foot, 0.0), (edge, foot, wide), (edge, height, wide), (edge, height, 0.0))
            self.faces.append(Face(wall, self._wall, side))
        self._rectangle(x - r, 0, x + r, height, self._wall)
        for n in range(1, 1 + int(height / 4.4)):
            shape = self._shapes[n % 3]
            self._window(shape, x - 0.7 * r, n * 4.4 - 3.4, 1.4 * r, 3.6, False, self._flat)
        self._rectangle(x - 1.1 * r, height - 0.5, x + 1.1 * r, height + 0.1, self._trim)
        if cap in ("spire", "pyramid"):
            peak = (x, height + wide * (2.0 if cap == "spire" else 0.8), r)
            for side, edge in sides(x, 1.1 * r):
                self._roof_face(((edge, height, 0.0), (edge, height, wide), peak), side)
            self._roof_face(((x - 1.1 * r, height, 0.0), (x + 1.1 * r, height, 0.0), peak), "front")
        elif cap == "onion":
            self._flat(ellipse(x, height + 0.75 * r, 1.05 * r, 0.85 * r), self._roof, "roof")
            tip = [(x - 0.5 * r, height + 1.3 * r), (x + 0.5 * r, height + 1.3 * r), (x, height + 2.6 * r)]
            self._flat(tip, self._roof, "roof")
        else:
            for n in range(4):  # battlements
                left = x - 1.1 * r + n * 0.6 * r
                self._rectangle(left, height, left + 0.38 * r, height + 0.9, self._trim)

    def _ornaments(self, dice: Dice) -> None:
        """Up to two signs that hardly anybody else has in that place."""
        for _ in range(dice.whole(0, 2)):
            x, y = dice.between(-0.7, 0.7) * self.width / 2, dice.between(0.45, 0.95) * self.body
            size, kind = dice.between(0.8, 1.6), dice.one(["clock", "rose", "shield", "banner", "sign"])
            {"clock": self._clock, "rose": self._rose, "shield": self._shield, "banner": self._banner}.get(
                kind, self._sign
            )(x, y, size)

    def _clock(self, x: float, y: float, size: float) -> None:
        self._flat(ellipse(x, y, size * 1.15, size * 1.15), self._trim)
        self._flat(ellipse(x, y, size, size), (240, 238, 226))
        self._rectangle(x - 0.08, y, x + 0.08, y + 0.8 * size, (30, 30, 30))
        self._rectangle(x, y - 0.08, x + 0.55 * size, y + 0.08, (30, 30, 30))

    def _rose(self, x: float, y: float, size: float) -> None:
        self._flat(ellipse(x, y, 1.4 * size, 1.4 * size), self._trim)
        for n in range(8):
            a, r = n * math.pi / 4, 0.85 * size
            self._flat(ellipse(x + r * math.cos(a), y + r * math.sin(a), 0.36 * size, 0.36 * size), GLASS, "glass")
        self._flat(ellipse(x, y, 0.4 * size, 0.4 * size), GLASS, "glass")

    def _shield(self, x: float, y: float, size: float) -> None:
        outline = [(x - size, y + size), (x + size, y + size), (x + 0.8 * size, y - 0.3 * size)]
        self._flat([*outline, (x, y - size), (x - 0.8 * size, y - 0.3 * size)], self._accent)
        self._rectangle(x - 0.2 * size, y - 0.6 * size, x + 0.2 * size, y + size, (232, 206, 120))

    def _banner(self, x: float, y: float, size: float) -> None:
        self._rectangle(x - 0.5 * size, y - 2.4 * size, x + 0.5 * size, y + size, self._accent)
        self._flat(ellipse(x, y - 0.5 * size, 0.36 * size, 0.36 * size), (240, 236, 220))

    def _sign(self, x: float, y: float, size: float) -> None:
        self._rectangle(x - 2.2 * size, y - 0.5 * size, x + 2.2 * size, y + 0.5 * size, self._accent)
        for n in range(6):
            left = x - 1.9 * size + n * 0.65 * size
            self._rectangle(left, y - 0.22 * size, left + 0.4 * size, y + 0.22 * size, (240, 236, 220))
