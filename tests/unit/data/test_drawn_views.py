"""Drawn views: the same pixels everywhere, easy ones show the building whole, junk ones hardly at all."""

import hashlib
import random

import numpy as np
import pytest

from cgd.data.drawn_buildings import Building
from cgd.data.drawn_parts import Dice
from cgd.data.drawn_views import HEIGHT, WIDTH, photograph

# of this version's pixels, drawn on x86-64 with Pillow 12; another machine has to draw the same
PIXELS = {
    "easy": "0362a645d6458b4efb39ddbf598f968c04941fec33c23e85f31425650183f565",
    "hard": "588e8285982f7d7cd51507c406e04b140bd88bb36be8863409c6fbdab257c3b0",
    "junk": "71f66876f5dc5a4dbbb3c8b18ff13e53bd706cc34e6a8c7c62e2138b1c11e805",
}


def view(label: int, difficulty: str, number: int = 0):
    return photograph(Building(0, label), difficulty, Dice(f"view 0 {label} {number}"))


@pytest.mark.parametrize("difficulty", PIXELS)
def test_a_seed_gives_the_same_pixels_on_every_machine(difficulty):
    pixels = b"".join(view(label, difficulty)[0].tobytes() for label in range(12))
    assert hashlib.sha256(pixels).hexdigest() == PIXELS[difficulty]


def test_dice_roll_alike_with_every_version_of_python():
    dice = Dice("a text")
    assert [dice.whole(0, 9) for _ in range(8)] == [4, 4, 4, 1, 3, 3, 9, 5]
    assert {Dice(f"{n}").whole(2, 4) for n in range(100)} == {2, 3, 4}


def test_no_two_buildings_are_alike():
    seen = {tuple(face.points for face in Building(seed, label).faces) for seed in (0, 1) for label in range(60)}
    assert len(seen) == 120


def test_easy_views_show_the_whole_building_and_boxes_lie_inside():
    for label in range(40):
        _, (x1, y1, x2, y2) = view(label, "easy")
        assert 0 <= x1 < x2 - 12 < x2 <= WIDTH
        assert 0 <= y1 < y2 - 12 < y2 <= HEIGHT
        assert max((x2 - x1) / WIDTH, (y2 - y1) / HEIGHT) > 0.5


def test_junk_views_show_less_of_the_building_than_easy_ones():
    """Pixels that the building changes: the same view is drawn of two that differ in colour alone."""

    def share(difficulty):
        changed = []
        for label in range(12):
            building, other = Building(0, label), Building(0, label)
            other.faces = [type(f)(f.points, (255, 0, 255), f.side, f.kind) for f in other.faces]
            one, two = (np.asarray(photograph(b, difficulty, Dice(f"v{label}"))[0], int) for b in (building, other))
            changed.append((abs(one - two).max(axis=2) > 40).mean())
        return np.mean(changed)

    assert share("junk") < 0.25 * share("easy")


def test_drawing_leaves_pythons_own_random_numbers_alone():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    view(0, "hard")
    assert random.random() == expected
