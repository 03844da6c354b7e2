"""Replayable crops: the same for everyone, within their policy, and for ever the law they are today."""

import math

import numpy as np
import pytest

from cgd.data.views import CROP, FIXED, ViewPolicy, crop_name, draw_view, from_row, to_row, view_kind
from cgd.types import View

USUAL = ViewPolicy((0.4, 1.0), (3 / 4, 4 / 3), 0.5)
FITTING = ViewPolicy((0.1, 0.4), (3 / 4, 4 / 3), 0.3)  # every draw fits into a square image at the first try

GOLDEN = [
    ("a", 1, 640, 480, (53, 1, 488, 478), True),
    ("a", 2, 640, 480, (16, 10, 487, 475), False),
    ("train-0003-1", 1, 160, 120, (45, 15, 126, 120), False),
    ("été/1.jpg", 4, 1024, 683, (456, 2, 1011, 681), True),
    ("a", 1, 4000, 100, (1933, 0, 2066, 100), True),  # no try fits: the largest centred box
    ("x84", 1, 300, 150, (91, 8, 228, 142), True),  # the tenth and last try fits
    ("wide", 3, 30, 2000, (0, 980, 30, 1020), False),
    ("a", 1, 1, 1, (0, 0, 1, 1), True),
]


@pytest.mark.parametrize(("image_id", "number", "width", "height", "box", "flip"), GOLDEN)
def test_the_law_is_the_one_that_stores_were_written_with(
    image_id: str, number: int, width: int, height: int, box: tuple[int, ...], flip: bool
) -> None:
    """Another value here makes every stored crop unrepeatable: raise the policy's version instead."""
    view = draw_view(USUAL, image_id, number, width, height)
    assert view.box(width, height) == box
    assert view.flip == flip


def test_a_view_depends_neither_on_order_nor_on_what_was_drawn_before() -> None:
    wanted = [(f"image-{i}", number, 300 + i, 200) for i in range(20) for number in (1, 2)]
    forwards = {w: draw_view(USUAL, *w) for w in wanted}
    np.random.default_rng().random(5)
    backwards = {w: draw_view(USUAL, *w) for w in wanted[::-1]}
    assert forwards == backwards
    assert forwards == {w: draw_view(ViewPolicy((0.4, 1.0), (3 / 4, 4 / 3), 0.5), *w) for w in wanted}


def test_views_differ_by_image_by_number_and_by_version() -> None:
    views = {draw_view(USUAL, f"image-{i}", n, 5000, 4000) for i in range(50) for n in range(1, 5)}
    assert len(views) == 200
    other = ViewPolicy((0.4, 1.0), (3 / 4, 4 / 3), 0.5, version=2)
    assert draw_view(other, "a", 1, 640, 480) != draw_view(USUAL, "a", 1, 640, 480)


def test_an_id_that_ends_in_a_digit_is_not_confused_with_another_number() -> None:
    assert draw_view(USUAL, "a1", 1, 5000, 5000) != draw_view(USUAL, "a", 11, 5000, 5000)


@pytest.fixture(scope="module")
def many() -> dict[str, np.ndarray]:
    """3,000 crops of a square image: share of the area, log-aspect, place within what is free, and flip."""
    side = 4000
    boxes = [(v.box(side, side), v.flip) for v in (draw_view(FITTING, str(i), 1, side, side) for i in range(3000))]
    left, top, right, bottom = np.array([b for b, _ in boxes], float).T
    width, height = right - left, bottom - top
    return {
        "area": width * height / side**2,
        "aspect": np.log(width / height),
        "x": left / (side - width),
        "y": top / (side - height),
        "flip": np.array([f for _, f in boxes], float),
    }


@pytest.mark.parametrize(
    ("what", "low", "high"),
    [("area", 0.1, 0.4), ("aspect", math.log(3 / 4), math.log(4 / 3)), ("x", 0.0, 1.0), ("y", 0.0, 1.0)],
)
def test_area_log_aspect_and_place_are_uniform_in_their_ranges(
    many: dict[str, np.ndarray], what: str, low: float, high: float
) -> None:
    values = np.sort((many[what] - low) / (high - low))
    assert -0.001 < values[0] < 0.01  # rounding to pixels may step over the border
    assert 0.99 < values[-1] < 1.001
    uniform = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(values - uniform).max() < 1.63 / math.sqrt(len(values))  # Kolmogorov's bound at 1 %


def test_flips_have_their_probability(many: dict[str, np.ndarray]) -> None:
    assert abs(many["flip"].mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 3000)


def test_nothing_about_a_crop_tells_anything_else_about_it(many: dict[str, np.ndarray]) -> None:
    correlations = np.corrcoef(np.stack(list(many.values())))
    assert np.abs(correlations - np.eye(len(many))).max() < 4 / math.sqrt(3000)


@pytest.mark.parametrize(("probability", "flips"), [(0.0, {False}), (1.0, {True})])
def test_never_and_always_flipping_are_possible(probability: float, flips: set[bool]) -> None:
    policy = ViewPolicy((0.4, 1.0), (3 / 4, 4 / 3), probability)
    views = [draw_view(policy, str(i), 1, w, 100) for i in range(100) for w in (120, 3000)]
    assert {v.flip for v in views} == flips


def test_a_crop_of_everything_is_the_whole_image() -> None:
    policy = ViewPolicy((1.0, 1.0), (1.0, 1.0), 0.0)
    assert draw_view(policy, "a", 1, 77, 77) == View(0.0, 0.0, 1.0, 1.0, False)


@pytest.mark.parametrize(("width", "height"), [(4000, 100), (100, 4000), (5000, 3)])
def test_where_nothing_fits_the_largest_centred_box_of_the_nearest_aspect_is_taken(width: int, height: int) -> None:
    policy = ViewPolicy((0.9, 1.0), (3 / 4, 4 / 3), 0.5)
    left, top, right, bottom = draw_view(policy, "a", 1, width, height).box(width, height)
    short, long = min(width, height), round(min(width, height) * 4 / 3)
    assert sorted((right - left, bottom - top)) == [short, long]
    assert abs((left + right) - width) <= 1
    assert abs((top + bottom) - height) <= 1


def test_float32_fractions_give_back_the_very_pixels_for_any_size() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20_000):
        width, height = draw.integers(1, 20_000, 2)
        w, h = draw.integers(1, width + 1), draw.integers(1, height + 1)
        left, top = draw.integers(0, width - w + 1), draw.integers(0, height - h + 1)
        row = np.array([top / height, left / width, h / height, w / width, 0], np.float32)
        assert from_row(row).box(int(width), int(height)) == (left, top, left + w, top + h)


def test_a_view_is_the_same_after_it_was_stored() -> None:
    for number in range(1, 200):
        view = draw_view(USUAL, "a", number, 641, 479)
        row = to_row(view)
        assert (row.shape, row.dtype) == ((5,), np.float32)
        assert from_row(row) == view


def test_a_row_is_top_left_height_width_flip() -> None:
    assert to_row(View(0.125, 0.25, 0.5, 0.75, True)).tolist() == [0.125, 0.25, 0.5, 0.75, 1.0]


def test_every_crop_is_one_kind_of_view_and_everything_else_another() -> None:
    assert [crop_name(1), crop_name(12)] == ["crop-1", "crop-12"]
    assert [view_kind(n) for n in ("crop-1", "crop-12", "fixed", "cropped")] == [CROP, CROP, FIXED, FIXED]
