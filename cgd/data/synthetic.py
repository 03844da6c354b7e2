"""Small drawn landmarks from a seed: buildings seen easily, hardly or not at all, with boxes on the queries."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from cgd.errors import InputError

VERSION = 1  # rises when the same options draw other pixels
WIDTH, HEIGHT = 160, 120
_VIEWS = {"easy": 4, "hard": 3, "junk": 1}  # gallery images of one landmark


def draw_landmarks(folder: Path, *, labels: int = 40, seed: int = 0, images: int = 6, distractors: int = 100) -> Path:
    """Draw a data set into `folder` (unless it is there) and return it.

    `labels` landmarks for training with `images` views each; half as many others, each with one query and eight
    gallery views (4 easy, 3 hard, 1 junk); and `distractors` images of buildings that appear nowhere else. Holds
    `manifest.csv` (splits train, query, gallery, distractors), `gnd.json` and `images/`.
    """
    if labels < 2 or images < 2 or distractors < 0 or seed < 0:
        raise InputError(
            "drawn landmarks need at least 2 labels and 2 images each, and no negative distractors or seed; "
            f"got labels={labels}, images={images}, distractors={distractors}, seed={seed}."
        )
    if (folder / "manifest.csv").is_file():
        return folder
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}-{secrets.token_hex(4)}")
    (part / "images").mkdir(parents=True)
    try:
        _draw_all(part, labels, seed, images, distractors)
        try:
            part.rename(folder)
        except OSError:  # somebody else drew the same at the same time
            if not (folder / "manifest.csv").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _draw_all(folder: Path, labels: int, seed: int, images: int, distractors: int) -> None:
    rows: list[tuple[str, str, str, str]] = []
    gnd: list[dict[str, object]] = []
    gallery: list[str] = []
    queries: list[str] = []

    def draw(name: str, label: int, split: str, difficulty: str, number: int) -> tuple[str, list[float]]:
        picture, box = _photograph(_Building(seed, label), difficulty, np.random.default_rng([seed, label, number]))
        path = f"images/{name}.png"
        picture.save(folder / path)
        rows.append((name, path, f"{label:04d}", split))
        return path, box

    for label in range(labels):
        for number in range(images):
            draw(f"train-{label:04d}-{number}", label, "train", ("easy", "hard")[number % 2], number)
    for label in range(labels, labels + max(2, labels // 2)):
        path, box = draw(f"query-{label:04d}", label, "query", "easy", 0)
        queries.append(path)
        entry: dict[str, object] = {"bbx": box}
        number = 1
        for difficulty, count in _VIEWS.items():
            entry[difficulty] = list(range(len(gallery), len(gallery) + count))
            for _ in range(count):
                path, _box = draw(f"gallery-{label:04d}-{number}", label, "gallery", difficulty, number)
                gallery.append(path)
                number += 1
        gnd.append(entry)
    for number in range(distractors):
        draw(f"distractor-{number:05d}", 100_000 + number, "distractors", ("easy", "hard")[number % 2], number)
    with open(folder / "manifest.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("image_id", "path", "label", "split"), *rows])
    (folder / "gnd.json").write_text(json.dumps({"imlist": gallery, "qimlist": queries, "gnd": gnd}))


class _Building:
    """What makes a landmark itself: proportions, colours, windows, roof and band."""

    def __init__(self, seed: int, label: int) -> None:
        draw = np.random.default_rng([seed, label])
        self.wall = tuple(int(v) for v in draw.integers(90, 230, 3))
        self.roof_colour = tuple(int(v) for v in draw.integers(40, 160, 3))
        self.glass = tuple(int(v) for v in draw.integers(20, 120, 3))
        self.columns, self.floors = int(draw.integers(2, 8)), int(draw.integers(2, 7))
        self.width, self.height = float(draw.uniform(0.45, 0.9)), float(draw.uniform(0.5, 0.75))
        self.roof = str(draw.choice(["flat", "gable", "dome", "tower", "steps"]))
        self.window = str(draw.choice(["square", "arch", "round", "slit"]))
        self.band = int(draw.integers(0, self.floors))
        self.door = float(draw.uniform(0.2, 0.8))


def _photograph(building: _Building, difficulty: str, draw: np.random.Generator) -> tuple[Image.Image, list[float]]:
    """One view (WIDTH x HEIGHT) of a building and the box it fills, x1 y1 x2 y2."""
    hard = difficulty != "easy"
    sky = tuple(int(v) for v in np.array([150, 185, 220]) + draw.integers(-25, 30))  # clear to overcast
    ground = tuple(int(v) for v in np.array([95, 105, 85]) + draw.integers(-20, 20))
    canvas = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), sky)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, int(1.6 * HEIGHT), 2 * WIDTH, 2 * HEIGHT), fill=ground)
    zoom = draw.uniform(0.75, 1.0) if not hard else draw.uniform(0.5, 1.3)
    w, h = building.width * zoom * 2 * WIDTH, building.height * zoom * 2 * HEIGHT
    shift = {"easy": 0.08, "hard": 0.2, "junk": 0.75}[difficulty]
    centre = WIDTH * (1 + draw.choice([-1, 1]) * draw.uniform(shift / 3, shift))
    box = (centre - w / 2, 1.7 * HEIGHT - h, centre + w / 2, 1.7 * HEIGHT)
    _draw_building(pen, building, box)
    for _ in range(int(draw.integers(0, 5 if hard else 2))):  # trees in front
        x, r = draw.uniform(0, 2 * WIDTH), draw.uniform(10, 40 if hard else 22)
        green = (int(draw.integers(20, 80)), int(draw.integers(80, 150)), int(draw.integers(20, 80)))
        pen.ellipse((x - r, 1.7 * HEIGHT - 2 * r, x + r, 1.7 * HEIGHT), fill=green)
    lean = draw.uniform(-0.25, 0.25) if hard else draw.uniform(-0.08, 0.08)
    canvas = canvas.transform(
        canvas.size,
        Image.Transform.AFFINE,
        (1, lean, -lean * HEIGHT, 0, 1, 0),
        Image.Resampling.BILINEAR,
        fillcolor=sky,
    )
    picture = canvas.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    strength = 0.45 if hard else 0.15
    picture = ImageEnhance.Brightness(picture).enhance(draw.uniform(1 - strength, 1 + strength))
    picture = ImageEnhance.Color(picture).enhance(draw.uniform(1 - strength, 1 + strength))
    noise = draw.normal(0, 8 if hard else 3, (HEIGHT, WIDTH, 3))
    picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    x1, y1, x2, y2 = (v / 2 for v in box)
    return picture, [max(0.0, x1 - 8), max(0.0, y1 - 16), min(float(WIDTH), x2 + 8), min(float(HEIGHT), y2 + 4)]


def _draw_building(pen: ImageDraw.ImageDraw, b: _Building, box: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    top = y1 + 0.2 * h
    if b.roof == "gable":
        pen.polygon([(x1, top), ((x1 + x2) / 2, y1 - 0.1 * h), (x2, top)], fill=b.roof_colour)
    elif b.roof == "dome":
        pen.pieslice((x1, y1 - 0.1 * h, x2, top + 0.3 * h), 180, 360, fill=b.roof_colour)
    elif b.roof == "tower":
        pen.rectangle((x1 + 0.4 * w, y1 - 0.2 * h, x1 + 0.6 * w, top), fill=b.roof_colour)
    elif b.roof == "steps":
        for i in range(3):
            pen.rectangle((x1 + 0.12 * i * w, top - 0.08 * (i + 1) * h, x2 - 0.12 * i * w, top), fill=b.roof_colour)
    else:
        pen.rectangle((x1 - 0.03 * w, top - 0.05 * h, x2 + 0.03 * w, top), fill=b.roof_colour)
    pen.rectangle((x1, top, x2, y2), fill=b.wall)
    cell_w, cell_h = w / b.columns, (y2 - top) / b.floors
    for floor in range(b.floors):
        y = top + floor * cell_h
        if floor == b.band:
            pen.rectangle((x1, y, x2, y + 0.15 * cell_h), fill=b.roof_colour)
        for column in range(b.columns):
            x = x1 + column * cell_w
            pane = (x + 0.25 * cell_w, y + 0.25 * cell_h, x + 0.75 * cell_w, y + 0.8 * cell_h)
            if b.window == "round":
                pen.ellipse(pane, fill=b.glass)
            elif b.window == "slit":
                pen.rectangle((x + 0.42 * cell_w, pane[1], x + 0.58 * cell_w, pane[3]), fill=b.glass)
            else:
                pen.rectangle(pane, fill=b.glass)
                if b.window == "arch":
                    pen.pieslice((pane[0], y + 0.05 * cell_h, pane[2], y + 0.45 * cell_h), 180, 360, fill=b.glass)
    pen.rectangle((x1 + (b.door - 0.07) * w, y2 - 0.22 * h, x1 + (b.door + 0.07) * w, y2), fill=b.roof_colour)
