"""Marks: what changes them, what does not, and that yesterday's are still today's."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgd.errors import InputError
from cgd.store.keys import canonical, identify, ids_digest, images_identity, labels_digest, settings_of
from cgd.types import ImageList, Key

SETTINGS = {"dim": 512, "floor": 1e-5, "kind": "pca", "scales": [0.5, 1.0], "title": "Zürich"}
INPUT = Key("embeddings", "a.b.fixed", "0123456789abcdef")
OTHER = Key("embeddings", "a.b.crop-1", "fedcba9876543210")
IMAGES = ImageList("set", "train", ("a", "b"), ("a.jpg", "b.jpg"), Path("here"), ("x", "y"), boxes=(None, (0, 0, 1, 1)))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def mark(settings=SETTINGS, kind="whitening", version=1, inputs=(INPUT,), label=("a", "b")):
    return identify(kind, label, version, settings, inputs).key.mark


def test_a_mark_is_the_hash_of_kind_version_settings_and_inputs():
    text = (
        '{"inputs":["embeddings/a.b.fixed-0123456789abcdef"],"kind":"whitening","settings":'
        '{"dim":512,"floor":1e-05,"kind":"pca","scales":[0.5,1.0],"title":"Zürich"},"version":1}'
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = identify("whitening", ["a", "b"], 1, SETTINGS, [INPUT])
    assert found.digest == digest
    assert found.key == Key("whitening", "a.b", digest[:16])


def test_the_order_of_settings_does_not_matter():
    assert mark(dict(reversed(SETTINGS.items()))) == mark()


@settings(max_examples=15, deadline=None)
@given(values=st.dictionaries(st.text(max_size=5), json_values, max_size=5), draw=st.data())
def test_no_order_of_any_settings_matters(values, draw):
    shuffled = dict(draw.draw(st.permutations(list(values.items()))))
    assert mark(shuffled) == mark(values)


def test_tuples_and_lists_are_one_value():
    assert mark({**SETTINGS, "scales": (0.5, 1.0)}) == mark()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_changed_or_absent_setting_changes_the_mark(name):
    assert mark({**SETTINGS, name: "other"}) != mark()
    assert mark({k: v for k, v in SETTINGS.items() if k != name}) != mark()


@pytest.mark.parametrize(
    "change",
    [{"kind": "whitened"}, {"version": 2}, {"inputs": ()}, {"inputs": (OTHER,)}, {"inputs": (INPUT, OTHER)}],
    ids=str,
)
def test_kind_version_and_inputs_change_the_mark(change):
    assert mark(**change) != mark()


def test_the_order_of_inputs_changes_the_mark():
    assert mark(inputs=(INPUT, OTHER)) != mark(inputs=(OTHER, INPUT))


def test_the_label_is_a_slug_and_leaves_the_mark_alone():
    found = identify("whitening", ["Mein Bild@train", "ÄÖ"], 1, SETTINGS, [INPUT])
    assert found.key.label == "mein-bild-train.unnamed"
    assert found.key.mark == mark()
    assert Key.parse(str(found.key)) == found.key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_no_json_are_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        mark({"floor": value})


def test_identities_keep_their_settings_apart_from_the_callers():
    mine = {"scales": [1.0]}
    found = identify("whitening", ["a"], 1, mine)
    mine["scales"].append(2.0)
    assert found.settings == {"scales": [1.0]}


def test_canonical_bytes_are_sorted_dense_and_not_escaped():
    assert canonical({"b": [1, None, True], "a": "é"}) == '{"a":"é","b":[1,null,true]}'.encode()


@dataclass(frozen=True)
class Old:
    dim: int = 512
    floor: float = 0.0


@dataclass(frozen=True)
class New(Old):
    shrink: float = field(default=0.0, metadata={"neutral": 0.0})
    mode: str = field(default="thin", metadata={"neutral": "full"})


def test_a_new_setting_at_its_neutral_value_leaves_old_marks_valid():
    assert settings_of(New(mode="full")) == settings_of(Old()) == {"dim": 512, "floor": 0.0}


def test_a_new_setting_away_from_its_neutral_value_counts_even_where_that_is_the_default():
    assert settings_of(New()) == {"dim": 512, "floor": 0.0, "mode": "thin"}
    assert settings_of(New(shrink=0.1, mode="full")) == {"dim": 512, "floor": 0.0, "shrink": 0.1}


@pytest.mark.parametrize(
    "change",
    [{"labels": ("x", "z")}, {"labels": None}, {"paths": ("a.png", "b.png")}, {"groups": ("g", "g")}, {"split": None},
     {"boxes": None}, {"name": "other"}, {"ids": ("a", "c")}],
    ids=str,
)  # fmt: skip
def test_whatever_is_stored_of_an_image_list_changes_its_mark(change):
    assert images_identity(dataclasses.replace(IMAGES, **change)).key.mark != images_identity(IMAGES).key.mark


def test_where_the_images_are_never_enters_a_mark():
    assert images_identity(dataclasses.replace(IMAGES, root=Path("elsewhere"))) == images_identity(IMAGES)


def test_rows_are_named_by_the_data_set_and_its_ids_in_order_not_by_labels_or_files():
    same = dataclasses.replace(IMAGES, labels=None, boxes=None, split=None, paths=("p", "q"))
    assert ids_digest(same) == ids_digest(IMAGES)
    assert ids_digest(dataclasses.replace(IMAGES, ids=("b", "a"))) != ids_digest(IMAGES)
    assert ids_digest(dataclasses.replace(IMAGES, name="other")) != ids_digest(IMAGES)
    assert ids_digest(ImageList("x", None, ("ab", "c"), ("", ""))) != ids_digest(
        ImageList("x", None, ("a", "bc"), ("", ""))
    )


def test_labels_have_a_digest_of_their_own():
    assert labels_digest(dataclasses.replace(IMAGES, labels=None)) is None
    assert labels_digest(dataclasses.replace(IMAGES, labels=("y", "x"))) != labels_digest(IMAGES)


@pytest.mark.parametrize(
    "text", ["", "a/b", "a/b-0123", "a/b-0123456789abcdeg", "a/B-0123456789abcdef", "a/b/c-" + "0" * 16]
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(InputError, match="is no key"):
        Key.parse(text)
