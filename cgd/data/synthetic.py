"""Drawn landmarks from a seed: buildings seen easily, hardly or not at all, with boxes on the queries."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
from functools import lru_cache
from pathlib import Path

from cgd.data.drawn_buildings import Building
from cgd.data.drawn_parts import Dice
from cgd.data.drawn_views import photograph
from cgd.errors import InputError
from cgd.progress import progress

VERSION = 2  # rises when the same options draw other pixels
_VIEWS = {"easy": 4, "hard": 3, "junk": 1}  # gallery images of one landmark


def draw_landmarks(
    folder: Path, *, labels: int = 40, seed: int = 0, images: int = 6, distractors: int = 100, searched: int = 0
) -> Path:
    """Draw a data set into `folder` (unless it is there) and return it.

    `labels` landmarks for training with `images` views each; `searched` others (0: half as many), each with one query
    and eight gallery views (4 easy, 3 hard, 1 junk); and `distractors` images of buildings that appear nowhere else.
    Holds `manifest.csv` (splits train, query, gallery, distractors), `gnd.json` and `images/`.
    """
    if labels < 2 or images < 2 or min(distractors, seed, searched) < 0:
        raise InputError(
            f"drawn landmarks need at least 2 labels and 2 images each, and nothing negative; got labels={labels}, "
            f"images={images}, distractors={distractors}, searched={searched}, seed={seed}."
        )
    if (folder / "manifest.csv").is_file():
        return folder
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}-{secrets.token_hex(4)}")
    (part / "images").mkdir(parents=True)
    try:
        _draw_all(part, labels, seed, images, distractors, searched or max(2, labels // 2))
        try:
            part.rename(folder)
        except OSError:  # somebody else drew the same at the same time
            if not (folder / "manifest.csv").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _draw_all(folder: Path, labels: int, seed: int, images: int, distractors: int, others: int) -> None:
    rows: list[tuple[str, str, str, str]] = []
    gnd: list[dict[str, object]] = []
    gallery: list[str] = []
    queries: list[str] = []

    bar = progress(labels * images + others * (1 + sum(_VIEWS.values())) + distractors, "drawing")

    def draw(name: str, label: int, split: str, difficulty: str, number: int) -> tuple[str, list[float]]:
        picture, box = photograph(_building(seed, label), difficulty, Dice(f"view {seed} {label} {number}"))
        path = f"images/{name}.png"
        picture.save(folder / path, compress_level=1)
        rows.append((name, path, f"{label:04d}", split))
        bar.update(1)
        return path, list(box)

    for label in range(labels):
        for number in range(images):
            draw(f"train-{label:04d}-{number}", label, "train", ("easy", "hard")[number % 2], number)
    for label in range(labels, labels + others):
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
    bar.close()
    with open(folder / "manifest.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("image_id", "path", "label", "split"), *rows])
    (folder / "gnd.json").write_text(json.dumps({"imlist": gallery, "qimlist": queries, "gnd": gnd}))


@lru_cache(maxsize=1)
def _building(seed: int, label: int) -> Building:
    """All views of a building are drawn one after the other."""
    return Building(seed, label)
