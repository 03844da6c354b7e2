"""A photograph of a drawn building: camera, light, season, what stands in front, and the faults of the camera."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cgd.data.drawn_buildings import Building
from cgd.data.drawn_parts import Colour, Dice

WIDTH, HEIGHT = 192, 144
_FINE = 3  # drawn so many times larger, then every block of pixels is averaged: in whole numbers, alike everywhere
_EYE = 1.7  # metres above the ground

_Place = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Light:
    """What one time of day does: sky above and at the horizon, factors of what faces the street and the sides."""

    sky: tuple[Colour, Colour]
    colour: tuple[float, float, float]
    sides: tuple[float, float]  # right wall, left wall
    lit: float = 0.0  # share of windows with light in them


_LIGHTS = {
    "noon": _Light(((96, 152, 220), (196, 220, 240)), (1.02, 1.0, 0.97), (0.82, 0.62)),
    "cloudy": _Light(((168, 176, 186), (214, 218, 220)), (0.88, 0.9, 0.94), (0.84, 0.84)),
    "evening": _Light(((118, 128, 186), (250, 190, 130)), (1.12, 0.88, 0.66), (0.5, 0.95), 0.08),
    "morning": _Light(((150, 178, 214), (246, 224, 214)), (1.0, 0.93, 0.92), (0.98, 0.56)),
    "fog": _Light(((204, 208, 210), (216, 218, 218)), (0.92, 0.94, 0.96), (0.92, 0.92)),
    "dusk": _Light(((44, 52, 98), (206, 120, 112)), (0.5, 0.46, 0.6), (0.72, 0.88), 0.35),
    "night": _Light(((10, 14, 34), (40, 42, 66)), (0.34, 0.32, 0.4), (0.7, 0.7), 0.5),
}
_SEASONS = {"spring": (108, 168, 70), "summer": (62, 118, 52), "autumn": (190, 112, 40), "winter": (96, 84, 76)}
_EASY, _HARD = ("noon", "noon", "cloudy", "morning", "evening"), tuple(_LIGHTS)


def photograph(
    building: Building, difficulty: str, dice: Dice
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """One view (WIDTH x HEIGHT, RGB) and the box of the building in it, x1 y1 x2 y2 in pixels.

    `easy` is a tourist's view; `hard` is from the side, far, near, at night, in fog or behind trees; `junk` shows
    hardly anything of the building.
    """
    hard = difficulty != "easy"
    light = _LIGHTS[dice.one(_HARD if hard else _EASY)]
    season = dice.one(list(_SEASONS))
    place, turned, horizon = _camera(building, difficulty, dice)
    canvas = Image.new("RGB", (_FINE * WIDTH, _FINE * HEIGHT))
    pen = ImageDraw.Draw(canvas)
    _surroundings(pen, horizon, light, season, dice)
    outline = _paint(pen, building, place, turned, light, season, dice)
    street = float(place(np.array([[0.0, 0.0, 0.0]]))[0, 1])
    for _ in range(dice.whole(1, 4) if hard else dice.whole(0, 2)):
        _obstacle(pen, street, light, season, dice, large=hard)
    if difficulty == "junk":
        _hide(pen, outline, light, dice)
    picture = _developed(canvas.reduce(_FINE), light is _LIGHTS["fog"], hard, dice)
    x1, y1 = np.clip(outline.min(axis=0) / _FINE - 2, 0, (WIDTH - 12, HEIGHT - 12))
    x2, y2 = np.clip(outline.max(axis=0) / _FINE + 2, (x1 + 12, y1 + 12), (WIDTH, HEIGHT))
    return picture, (float(x1), float(y1), float(x2), float(y2))


def _camera(building: Building, difficulty: str, dice: Dice) -> tuple[_Place, float, _Place]:
    """Points (N, 3) to fine pixels (N, 2), the angle to the facade, and the horizon's height by pixel column."""
    hard = difficulty != "easy"
    sign = 1 if dice.chance(0.5) else -1
    turn = math.radians(sign * (dice.between(18, 52) if hard and dice.chance(0.7) else dice.between(0, 17)))
    roll = math.radians(dice.between(-6, 6) if hard else dice.between(-1.5, 1.5))
    style = dice.one(["near", "middle", "far"]) if hard else "middle"
    fill = {"near": dice.between(1.05, 1.6), "middle": dice.between(0.66, 0.92), "far": dice.between(0.38, 0.6)}[style]
    distance = max(building.width, building.height) * dice.between(1.15, 2.2)
    tilt = math.atan2(0.45 * building.height - _EYE, distance) * dice.between(0.5, 1.0)

    def seen(points: np.ndarray) -> np.ndarray:
        x, y, z = points[:, 0], points[:, 1] - _EYE, points[:, 2]
        across = x * math.cos(turn) + z * math.sin(turn)
        ahead = -x * math.sin(turn) + z * math.cos(turn) + distance
        up = y * math.cos(tilt) - ahead * math.sin(tilt)
        ahead = np.maximum(y * math.sin(tilt) + ahead * math.cos(tilt), 1.0)
        u, v = across / ahead, -up / ahead
        return np.stack([u * math.cos(roll) - v * math.sin(roll), u * math.sin(roll) + v * math.cos(roll)], axis=1)

    w, h, d = building.width / 2, building.height, building.depth
    corners = seen(np.array([[x, y, z] for x in (-w, w) for y in (0, h) for z in (0.0, d)]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    zoom = fill * min(_FINE * WIDTH / (high[0] - low[0]), _FINE * HEIGHT / (high[1] - low[1]))
    reach = 0.9 if difficulty == "junk" else 0.3 if style == "near" else 0.5 * (1 - fill)
    away = np.array([dice.between(-1, 1), dice.between(-0.4, 0.4)])
    if difficulty == "junk":
        away[0] = sign * dice.between(0.75, 1.0)
    middle = np.array([0.5, 0.52]) + away * reach
    origin = middle * (_FINE * WIDTH, _FINE * HEIGHT) - zoom * (low + high) / 2

    def place(points: np.ndarray) -> np.ndarray:
        return seen(points) * zoom + origin

    def horizon(columns: np.ndarray) -> np.ndarray:
        base = origin[1] + zoom * math.tan(tilt)
        return base + (columns - origin[0]) * math.tan(roll)

    return place, turn, horizon


def _surroundings(pen: ImageDraw.ImageDraw, horizon: _Place, light: _Light, season: str, dice: Dice) -> None:
    """Sky with clouds, distant houses or hills, and the ground."""
    w, h = _FINE * WIDTH, _FINE * HEIGHT
    top, low = light.sky
    left, right = (round(float(v)) for v in horizon(np.array([0.0, w])))
    end = max(1, min(h, max(left, right)))
    for y in range(0, end, 6):
        share = y * 256 // end
        blend = tuple((a * (256 - share) + b * share) >> 8 for a, b in zip(top, low, strict=True))
        pen.rectangle((0, y, w, y + 6), fill=blend)
    for _ in range(dice.whole(0, 5)):
        middle, up, r = dice.between(0, w), dice.between(0, 0.6) * end, dice.between(20, 70)
        pale = _scaled(low, 1.06)
        for n in range(4):
            _disc(pen, middle + (n - 1.5) * r, up, r * dice.between(0.5, 0.9), 0.42, pale)
    grey = dice.whole(90, 170)
    x: float = -dice.between(0, 80)
    while x < w:  # what stands along the horizon tells nothing: it is another in every view
        wide, tall = dice.between(30, 130), dice.between(10, 150)
        base = left + (right - left) * x / w
        colour = _scaled(dice.near((grey, grey, grey), 30), 0.9, light.colour)
        if dice.chance(0.35):
            _disc(pen, x + wide / 2, base, wide * 0.6, 0.7, _scaled(_SEASONS[season], 0.8, light.colour))
        else:
            pen.rectangle((int(x), int(base - tall), int(x + wide), int(base + 6)), fill=colour)
        x += wide * dice.between(0.7, 1.4)
    ground = (232, 236, 242) if season == "winter" else dice.one([(112, 112, 110), (148, 140, 124), (104, 130, 84)])
    near = _scaled(dice.near(ground, 12), 0.92, light.colour)
    pen.polygon([(0, left), (w, right), (w, max(h, right) + 900), (0, max(h, left) + 900)], fill=near)


def _paint(
    pen: ImageDraw.ImageDraw,
    building: Building,
    place: _Place,
    turned: float,
    light: _Light,
    season: str,
    dice: Dice,
) -> np.ndarray:
    """The building's faces from the back to the front; the corners of what was drawn (N, 2)."""
    hidden = "left" if turned < 0 else "right"  # turning shows one side wall and hides the other
    shown = [face for face in building.faces if face.side != hidden]
    points = place(np.array([p for face in shown for p in face.points]))
    shade = {"front": 1.0, "right": light.sides[0], "left": light.sides[1]}
    snow, start, lit = season == "winter", 0, 0
    for face in shown:
        corners = points[start : start + len(face.points)]
        start += len(face.points)
        colour = _scaled(face.colour, shade[face.side], light.colour)
        if face.kind == "roof" and snow:
            colour = _scaled((236, 240, 246), shade[face.side], light.colour)
        elif face.kind == "glass":
            lit = (lit * 5 + 3 + dice.whole(0, 6)) % 1000
            if dice.chance(light.lit):
                colour = (250, 208, 120)
            elif dice.chance(0.25):
                colour = _scaled(light.sky[1], 0.62)  # the sky in the glass
        pen.polygon([(round(x), round(y)) for x, y in corners.tolist()], fill=colour)
    return points


def _obstacle(pen: ImageDraw.ImageDraw, street: float, light: _Light, season: str, dice: Dice, *, large: bool) -> None:
    """A tree, a lamp post, a car or a passer-by between the camera and the building."""
    w, h = _FINE * WIDTH, _FINE * HEIGHT
    kind = dice.one(["tree", "tree", "post", "car", "person", "van" if large else "car"])
    x, foot = dice.between(0, w), min(h * 1.02, max(street, 0.62 * h) + dice.between(10, 60))
    if kind == "tree":
        tall = dice.between(0.3, 0.75 if large else 0.45) * h
        trunk = _scaled((74, 58, 46), 1, light.colour)
        pen.rectangle((int(x - 5), int(foot - tall * 0.6), int(x + 5), int(foot)), fill=trunk)
        if season == "winter":  # branches only
            for n in range(9):
                a, reach = math.pi * (0.15 + 0.7 * n / 8), tall * dice.between(0.3, 0.6)
                end = (int(x + reach * math.cos(a)), int(foot - tall * 0.5 - reach * math.sin(a)))
                pen.line([(int(x), int(foot - tall * 0.5)), end], fill=trunk, width=4)
            return
        for _ in range(14):
            leaf = _scaled(dice.near(_SEASONS[season], 24), 1, light.colour)
            dx, dy = dice.between(-0.28, 0.28) * tall, dice.between(0.45, 1.0) * tall
            _disc(pen, x + dx, foot - dy, tall * dice.between(0.1, 0.2), 0.9, leaf)
    elif kind == "post":
        tall, dark = dice.between(0.35, 0.7) * h, _scaled((52, 54, 58), 1, light.colour)
        pen.rectangle((int(x - 3), int(foot - tall), int(x + 3), int(foot)), fill=dark)
        _disc(pen, x, foot - tall, 12, 1.0, (255, 236, 180) if light.lit > 0.2 else dark)
    elif kind == "person":
        tall = dice.between(0.12, 0.24) * h
        coat = _scaled(dice.near((120, 90, 100), 80), 1, light.colour)
        pen.rectangle((int(x - 0.16 * tall), int(foot - 0.8 * tall), int(x + 0.16 * tall), int(foot)), fill=coat)
        _disc(pen, x, foot - 0.9 * tall, 0.12 * tall, 1.0, _scaled((206, 164, 134), 1, light.colour))
    else:
        tall = dice.between(0.1, 0.15) * h * (1.9 if kind == "van" else 1)
        long = tall * (1.7 if kind == "van" else 3.0)
        paint = _scaled(dice.near((140, 140, 146), 90), 1, light.colour)
        pen.rectangle((int(x), int(foot - 0.75 * tall), int(x + long), int(foot - 0.15 * tall)), fill=paint)
        if kind == "van":
            pen.rectangle((int(x), int(foot - tall), int(x + 0.78 * long), int(foot - 0.5 * tall)), fill=paint)
        else:
            roof = [(x + 0.2 * long, foot - 0.7 * tall), (x + 0.32 * long, foot - 1.15 * tall)]
            roof += [(x + 0.68 * long, foot - 1.15 * tall), (x + 0.82 * long, foot - 0.7 * tall)]
            pen.polygon([(int(a), int(b)) for a, b in roof], fill=_scaled((70, 84, 98), 1, light.colour))
        for wheel in (0.2, 0.8):
            _disc(pen, x + wheel * long, foot - 0.15 * tall, 0.16 * tall, 1.0, (24, 24, 26))


def _hide(pen: ImageDraw.ImageDraw, outline: np.ndarray, light: _Light, dice: Dice) -> None:
    """A hoarding before most of what a junk view still shows."""
    (x1, y1), (x2, y2) = outline.min(axis=0), outline.max(axis=0)
    cloth = _scaled(dice.near((186, 186, 180), 30), 1, light.colour)
    top = int(y1 + dice.between(0.0, 0.25) * (y2 - y1))
    pen.rectangle((int(x1 - 12), top, int(x2 + 12), int(y2 + 12)), fill=cloth)
    for n in range(1, 9):
        x = int(x1 + n * (x2 - x1) / 9)
        pen.rectangle((x, top, x + 4, int(y2 + 12)), fill=_scaled(cloth, 0.8))


def _developed(picture: Image.Image, fog: bool, hard: bool, dice: Dice) -> Image.Image:
    """White balance, exposure, fog, blur and noise, all in whole numbers (H, W, 3)."""
    pixels = np.asarray(picture, dtype=np.int32)
    if fog:
        share = dice.whole(90, 150)
        pixels = (pixels * (256 - share) + 214 * share) >> 8
    spread, exposure = (0.16, (0.72, 1.2)) if hard else (0.07, (0.88, 1.1))
    bright = dice.between(*exposure) * (0.9 if fog else 1.0)
    gains = [int(256 * bright * dice.between(1 - spread, 1 + spread)) for _ in range(3)]
    pixels = (pixels * gains) >> 8
    contrast = int(256 * (dice.between(0.7, 1.2) if hard else dice.between(0.92, 1.08)))
    pixels = ((pixels - 120) * contrast >> 8) + 120
    for _ in range(dice.whole(0, 2) if hard else 0):
        padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) >> 2
        pixels = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) >> 2
    grain = int(dice.between(2, 8) if hard else dice.between(1, 3))
    # NumPy promises a bit generator's raw numbers, not what `normal` makes of them
    raw = np.random.PCG64(dice.whole(0, 2**31)).random_raw(-(-pixels.size // 2)).view(np.uint8)[: 4 * pixels.size]
    bell = raw.reshape(*pixels.shape, 4).astype(np.int32).sum(axis=3) - 510  # deviation 148
    pixels = pixels + (bell * grain >> 7)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, flat: float, colour: Sequence[int]) -> None:
    """An ellipse as wide as `2 r`, its height `flat` times that, as a polygon with whole corners."""
    angles = [2 * math.pi * n / 18 for n in range(18)]
    pen.polygon(
        [(round(x + r * math.cos(a)), round(y + flat * r * math.sin(a))) for a in angles],
        fill=tuple(colour),
    )


def _scaled(colour: Sequence[int], factor: float, light: Sequence[float] = (1.0, 1.0, 1.0)) -> Colour:
    r, g, b = (min(255, int(c * factor * tone)) for c, tone in zip(colour, light, strict=True))
    return r, g, b
