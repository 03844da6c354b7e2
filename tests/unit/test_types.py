"""The values that cross module borders."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd.errors import InputError
from cgd.types import Batch, Benchmark, ImageList, InputSpec, Key, View, title_of

MARK = "0123456789abcdef"


def images(count: int = 2, **more: Any) -> ImageList:
    names = tuple(f"i{n}" for n in range(count))
    return ImageList("set", None, **{"ids": names, "paths": names, **more})


def test_a_key_is_read_as_it_is_written() -> None:
    key = Key("embeddings", "lm-train.gem.crop-1", MARK)
    assert str(key) == f"embeddings/lm-train.gem.crop-1-{MARK}"
    assert key.name == f"lm-train.gem.crop-1-{MARK}"
    assert Key.parse(str(key)) == key


def test_the_mark_is_the_last_sixteen_digits_even_of_a_label_that_looks_like_one() -> None:
    label = f"a-{'f' * 16}"
    assert Key.parse(f"scores/{label}-{MARK}") == Key("scores", label, MARK)


@pytest.mark.parametrize(
    "text",
    ["", "embeddings", f"embeddings/{MARK}", f"embeddings/x-{MARK[:-1]}", f"embeddings/x-{MARK.upper()}",
     f"Embeddings/x-{MARK}", f"embeddings/X-{MARK}", f"embeddings/a/b-{MARK}", f"embeddings/x-{MARK}\n",
     f"../x-{MARK}"],
)  # fmt: skip
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected kind/label-mark"):
        Key.parse(text)


def test_keys_sort_by_kind_then_label() -> None:
    keys = [Key("b", "a", MARK), Key("a", "z", MARK), Key("a", "b", MARK)]
    assert [str(k)[:3] for k in sorted(keys)] == ["a/b", "a/z", "b/a"]


@pytest.mark.parametrize("value", [images(), Key("a", "b", MARK), View(0, 0, 1, 1, False), InputSpec(8, "none")])
def test_values_cannot_be_changed(value: Any) -> None:
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, 1)


def test_an_image_list_knows_its_length_and_title() -> None:
    assert len(images(3)) == 3
    assert images().title == "set"
    assert dataclasses.replace(images(), split="train").title == title_of("set", "train") == "set@train"


@pytest.mark.parametrize("what", ["paths", "labels", "groups", "boxes"])
def test_columns_of_another_length_are_refused(what: str) -> None:
    with pytest.raises(InputError, match=f"set has 2 ids but 3 {what}"):
        images(**{what: ("a", "b", "c")})


def test_ids_are_unique() -> None:
    with pytest.raises(InputError, match="names the image 'x' twice"):
        images(ids=("x", "x"))
    assert len(images(paths=("same", "same"))) == 2  # two names of one file are allowed


def test_where_the_images_are_does_not_make_two_lists_of_one() -> None:
    assert images(root=Path("a")).ids == images(root=Path("b")).ids


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": -3}, {"scales": ()}, {"scales": (1.0, 0.0)}, {"mean": (0.5,)}, {"std": (1.0, 1.0)}],
)
def test_an_input_that_no_network_can_have_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        InputSpec(**{"size": 8, "resize": "none", **wrong})


@pytest.mark.parametrize(
    ("view", "box"),
    [
        (View(0.0, 0.0, 1.0, 1.0, False), (0, 0, 10, 20)),
        (View(0.25, 0.5, 0.5, 0.3, True), (5, 5, 8, 15)),
        (View(0.0, 0.0, 0.001, 0.001, False), (0, 0, 1, 1)),  # never empty
    ],
)
def test_a_views_box_is_left_top_right_bottom_in_pixels(view: View, box: tuple[int, ...]) -> None:
    assert view.box(10, 20) == box


def test_a_batch_is_as_long_as_its_pairs() -> None:
    assert len(Batch(np.zeros((3, 2), np.int64), np.zeros((3, 2), np.int64))) == 3


def test_a_benchmark_leaves_one_out_where_queries_and_gallery_are_the_same_images() -> None:
    assert Benchmark("b", images(), images(), None).leave_one_out
    assert not Benchmark("b", images(3), images(2), None).leave_one_out
