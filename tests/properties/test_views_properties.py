"""Laws of replayable crops that hold for any image, any name and any policy."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cgd.data.views import ViewPolicy, draw_view, from_row, to_row

sizes = st.integers(1, 30_000)
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
numbers = st.integers(0, 10_000)
laws = settings(deadline=None, database=None, max_examples=200)


@st.composite
def policies(draw: st.DrawFn) -> ViewPolicy:
    area = sorted(draw(st.tuples(*[st.floats(0.01, 1.0)] * 2)))
    aspect = sorted(draw(st.tuples(*[st.floats(0.2, 5.0)] * 2)))
    return ViewPolicy((area[0], area[1]), (aspect[0], aspect[1]), draw(st.floats(0, 1)))


@laws
@given(policy=policies(), image_id=ids, number=numbers, width=sizes, height=sizes)
def test_the_box_lies_inside_the_image_and_is_not_empty(
    policy: ViewPolicy, image_id: str, number: int, width: int, height: int
) -> None:
    left, top, right, bottom = draw_view(policy, image_id, number, width, height).box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@laws
@given(policy=policies(), image_id=ids, number=numbers, width=sizes, height=sizes)
def test_a_view_drawn_again_or_read_back_is_the_same_view(
    policy: ViewPolicy, image_id: str, number: int, width: int, height: int
) -> None:
    view = draw_view(policy, image_id, number, width, height)
    assert draw_view(policy, image_id, number, width, height) == view
    assert from_row(to_row(view)) == view
    assert from_row(np.frombuffer(to_row(view).tobytes(), np.float32)).box(width, height) == view.box(width, height)


@laws
@given(image_id=ids, number=numbers, width=st.integers(50, 30_000), height=st.integers(50, 30_000))
def test_area_and_aspect_stay_within_the_policy_up_to_rounding(
    image_id: str, number: int, width: int, height: int
) -> None:
    """In an image whose own aspect is within the range: then even the last resort is."""
    if not 3 / 4 <= width / height <= 4 / 3:
        height = width
    policy = ViewPolicy((0.4, 1.0), (3 / 4, 4 / 3), 0.5)
    left, top, right, bottom = draw_view(policy, image_id, number, width, height).box(width, height)
    w, h = right - left, bottom - top
    share = w * h / (width * height)
    slack = 1 / w + 1 / h  # half a pixel on either side
    assert 0.4 * (1 - slack) <= share <= 1
    assert abs(math.log(w / h)) <= math.log(4 / 3) + slack


@laws
@given(image_id=ids, number=numbers, width=sizes, height=sizes)
def test_the_flip_depends_on_the_probability_only_at_its_ends(
    image_id: str, number: int, width: int, height: int
) -> None:
    def flip(probability: float) -> bool:
        return draw_view(ViewPolicy((0.4, 1.0), (3 / 4, 4 / 3), probability), image_id, number, width, height).flip

    assert not flip(0.0)
    assert flip(1.0)
    assert flip(0.25) <= flip(0.75)  # who flips rarely flips often
