"""Ground truth in the revisited form, read from JSON or from the published pickle without running any of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd.data.pickles import read_plain_pickle
from cgd.errors import InputError
from cgd.types import GroundTruth

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class RevisitedGroundTruth:
    """Image names of gallery and queries, one box or none per query, and the relevant gallery indices."""

    gallery: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    truth: GroundTruth


def read_ground_truth(path: Path) -> RevisitedGroundTruth:
    """Read `imlist`, `qimlist` and `gnd` (bbx, easy, hard, junk) from a `.json` or `.pkl` file.

    Raises `InputError` where the file is damaged, holds more than plain values, or points outside its gallery.
    """
    content = read_plain_pickle(path) if path.suffix == ".pkl" else _parse_json(path)
    try:
        gallery = tuple(str(name) for name in content["imlist"])
        queries = tuple(str(name) for name in content["qimlist"])
        entries = list(content["gnd"])
        if len(entries) != len(queries):
            raise InputError(f"{path} has {len(queries)} queries but ground truth for {len(entries)}.")
        boxes = tuple(_box(entry.get("bbx"), path) for entry in entries)
        easy, hard, junk = (
            tuple(_indices(e.get(key, []), len(gallery), path) for e in entries) for key in ("easy", "hard", "junk")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not ground truth in the revisited form (imlist, qimlist, gnd): {error!r}."
        ) from error
    for query, parts in zip(queries, zip(easy, hard, junk, strict=True), strict=True):
        together = np.concatenate(parts)
        if len(np.unique(together)) != len(together):
            raise InputError(f"{path}: query '{query}' names a gallery image twice among easy, hard and junk.")
    return RevisitedGroundTruth(gallery, queries, boxes, GroundTruth(easy, hard, junk))


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error


def _box(value: Any, path: Path) -> Box | None:
    if value is None:
        return None
    try:
        x1, y1, x2, y2 = (float(v) for v in value)
    except (TypeError, ValueError):
        raise InputError(f"{path} holds the bbx {value!r}, expected four numbers x1 y1 x2 y2 or null.") from None
    return x1, y1, x2, y2


def _indices(values: Any, count: int, path: Path) -> np.ndarray:
    given = list(values)
    for index in given:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise InputError(f"{path} points at gallery image {index!r}, but its imlist has {count}.")
    return np.array(given, dtype=np.int64)
