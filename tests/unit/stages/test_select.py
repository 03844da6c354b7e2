"""Which stored artifacts a name means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cgd.errors import MissingError
from cgd.pipeline import steps
from cgd.pipeline.recipe import change
from cgd.pipeline.steps import Session
from cgd.stages import select

WIDE, HALF = (f"mobilenet-v1?{width}size=32&weights=random" for width in ("", "width=0.5&"))


def test_a_teacher_named_in_full_is_the_one_it_was_extracted_by(
    session: Session, tiny_recipe: Any, drawn: Path
) -> None:
    images = session.workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm")
    steps.extract_teachers(session, images, change(tiny_recipe, "extract", views=0, teachers=(WIDE, HALF)).extract)
    store = session.store()
    assert list(select.teachers_of(store, "lm", None, [WIDE, HALF])) == ["mobilenet-v1", "mobilenet-v1-width-0.5"]
    assert list(select.teachers_of(store, "lm", None, ["mobilenet-v1"])) == ["mobilenet-v1"]


def test_a_name_that_fits_two_is_refused(session: Session, tiny_recipe: Any, drawn: Path) -> None:
    images = session.workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm")
    both = tuple(HALF.replace("0.5", width) for width in ("0.5", "0.25"))
    steps.extract_teachers(session, images, change(tiny_recipe, "extract", views=0, teachers=both).extract)
    with pytest.raises(MissingError, match=r"'mobilenet-v1' fits .*width-0.*; name one of them"):
        select.teachers_of(session.store(), "lm", None, ["mobilenet-v1"])
