"""Drawn landmarks: the same bytes from the same seed, and a data set that holds together."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgd.data.drawn_views import HEIGHT, WIDTH
from cgd.data.synthetic import draw_landmarks
from cgd.errors import InputError


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def small(folder: Path, seed: int = 0) -> Path:
    return draw_landmarks(folder, labels=2, seed=seed, images=2, distractors=2)


def test_equal_options_draw_equal_bytes_and_another_seed_draws_others(tmp_path: Path) -> None:
    first, again, other = (digests(small(tmp_path / n, s)) for n, s in (("first", 0), ("again", 0), ("other", 1)))
    assert first == again
    assert first.keys() == other.keys()
    pictures = [name for name in first if name.startswith("images/")]
    assert all(first[name] != other[name] for name in pictures)
    assert len({first[name] for name in pictures}) == len(pictures)


def test_drawing_changes_no_global_generator(tmp_path: Path) -> None:
    np.random.seed(5)
    expected = np.random.random(3).tolist()
    np.random.seed(5)
    small(tmp_path / "drawn")
    assert np.random.random(3).tolist() == expected


def test_the_splits_are_as_large_as_asked_and_disjoint(drawn: Path) -> None:
    splits: dict[str, list[dict[str, str]]] = {}
    for row in rows(drawn):
        splits.setdefault(row["split"], []).append(row)
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 6 * 4,
        "query": 3,
        "gallery": 3 * 8,
        "distractors": 6,
    }
    labels = {name: {r["label"] for r in found} for name, found in splits.items()}
    assert labels["query"] == labels["gallery"]
    for one, other in (("train", "query"), ("train", "distractors"), ("query", "distractors")):
        assert not labels[one] & labels[other]
    ids = [r["image_id"] for r in rows(drawn)]
    assert len(set(ids)) == len(ids)


def test_every_image_is_there_and_of_one_size(drawn: Path) -> None:
    for row in rows(drawn):
        with Image.open(drawn / row["path"]) as image:
            assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
    assert sum(1 for _ in (drawn / "images").iterdir()) == len(rows(drawn))


def test_the_ground_truth_agrees_with_the_manifest(drawn: Path) -> None:
    known = json.loads((drawn / "gnd.json").read_text())
    of_path = {row["path"]: row for row in rows(drawn)}
    assert known["imlist"] == [r["path"] for r in rows(drawn) if r["split"] == "gallery"]
    assert known["qimlist"] == [r["path"] for r in rows(drawn) if r["split"] == "query"]
    for query, entry in zip(known["qimlist"], known["gnd"], strict=True):
        parts = [entry[name] for name in ("easy", "hard", "junk")]
        assert [len(p) for p in parts] == [4, 3, 1]
        same = [i for i, path in enumerate(known["imlist"]) if of_path[path]["label"] == of_path[query]["label"]]
        assert sorted(i for part in parts for i in part) == same


def test_boxes_lie_inside_their_query_and_hold_more_than_a_pixel(tmp_path: Path) -> None:
    folder = draw_landmarks(tmp_path / "drawn", labels=40, images=2, distractors=0)
    entries = json.loads((folder / "gnd.json").read_text())["gnd"]
    assert len(entries) == 20
    for entry in entries:
        x1, y1, x2, y2 = entry["bbx"]
        assert 0 <= x1 < x2 - 10 < x2 <= WIDTH
        assert 0 <= y1 < y2 - 10 < y2 <= HEIGHT


def test_what_stands_there_is_not_drawn_again_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = small(tmp_path / "drawn")
    (folder / "manifest.csv").write_text("mine\n")
    assert small(tmp_path / "drawn") == folder
    assert (folder / "manifest.csv").read_text() == "mine\n"
    assert [p.name for p in tmp_path.iterdir()] == ["drawn"]


@pytest.mark.parametrize("options", [{"labels": 1}, {"images": 1}, {"distractors": -1}, {"labels": 0}])
def test_too_few_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 2 labels and 2 images"):
        draw_landmarks(tmp_path / "drawn", **options)
    assert list(tmp_path.iterdir()) == []
