"""What the student sees is what its teachers saw: the same crop, resized in the same way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cgd.config import ExtractConfig
from cgd.data.transforms import view_pixels
from cgd.data.views import from_row
from cgd.models.load import teacher
from cgd.pipeline import steps
from cgd.pipeline.recipe import change
from cgd.stages.distill import training_of
from cgd.stages.embed import Look, Meter, embed_rows
from cgd.stages.extract import embeddings_identity
from cgd.stages.student_pixels import Sample
from cgd.types import InputSpec

FILTERS = ("bilinear", "bicubic", "lanczos")


def specs(training: Any) -> list[InputSpec]:
    """Input specs that differ in their own filter and in nothing else."""
    own = training.source.build().input_spec
    return [dataclasses.replace(own, filter=name) for name in FILTERS]


def test_a_students_own_filter_does_not_touch_a_crop(stored: Any, tmp_path: Path) -> None:
    training = training_of(stored.job(tmp_path / "s"))
    seen = [training.pixels.load(Sample(3, 1), spec) for spec in specs(training)]
    image = Image.open(training.images.root / training.images.paths[3]).convert("RGB")
    view = from_row(training.pixels.geometry[1][3])
    bilinear = view_pixels(image, specs(training)[0], view, stored.recipe.distill.image_size)
    for pixels in seen:
        np.testing.assert_array_equal(pixels, bilinear)


def test_with_a_filter_of_their_own_networks_see_different_pixels(stored: Any, tmp_path: Path) -> None:
    recipe = change(stored.recipe, "extract", crop_filter="own")
    images = stored.job(tmp_path / "s").images
    done = steps.extract_teachers(stored.session, images, recipe.extract)
    raw = {label: dict(report.keys) for label, report in done.encoders.items()}
    job = steps._distillation(stored.session, images, raw, change(recipe, "distill", space="raw"), tmp_path / "s")
    training = training_of(job)
    assert training.pixels.crop_filter == "own"
    seen = [training.pixels.load(Sample(3, 1), spec) for spec in specs(training)]
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_teachers_see_crops_through_the_policys_filter(stored: Any, tmp_path: Path) -> None:
    """An encoder whose own filter differs embeds the same under one filter for all, and otherwise not."""
    job = stored.job(tmp_path / "s")
    encoder = teacher(stored.recipe.extract.teachers[0], None).build().eval()
    other = teacher(stored.recipe.extract.teachers[0], None).build().eval()
    other.input_spec = dataclasses.replace(other.input_spec, filter="lanczos")
    assert encoder.input_spec.filter != "lanczos"

    def embed(one: Any, crop_filter: Any) -> np.ndarray:
        config = ExtractConfig(crop_size=64, crop_filter=crop_filter)
        (block,) = embed_rows(range(4), [Look(one, "crop-1")], job.images, config, job.compute, Meter())
        found: np.ndarray = block["vectors"]
        return found

    np.testing.assert_array_equal(embed(encoder, "bilinear"), embed(other, "bilinear"))
    assert not np.array_equal(embed(encoder, "own"), embed(other, "own"))


@pytest.mark.parametrize("view", ["crop-1", "fixed"])
def test_the_filter_is_part_of_a_crops_identity_and_own_is_what_it_was_before(
    stored: Any, tmp_path: Path, view: str
) -> None:
    images = stored.job(tmp_path / "s").images
    source = teacher(stored.recipe.extract.teachers[0], None)
    found = {
        name: embeddings_identity(images, source, view, ExtractConfig(crop_filter=name))  # type: ignore[arg-type]
        for name in ("own", *FILTERS)
    }
    assert len({identity.key for identity in found.values()}) == (4 if view == "crop-1" else 1)
    assert "filter" not in found["own"].settings.get("policy", {})


def test_a_student_may_see_worse_than_its_teachers(stored: Any, tmp_path: Path) -> None:
    training = training_of(stored.job(tmp_path / "s", "distill.degrade=8"))
    own = dataclasses.replace(specs(training)[0], degrade=8)
    image = Image.open(training.images.root / training.images.paths[3]).convert("RGB")
    expected = view_pixels(image, own, from_row(training.pixels.geometry[1][3]), stored.recipe.distill.image_size)
    good = training_of(stored.job(tmp_path / "s"))
    np.testing.assert_array_equal(training.pixels.load(Sample(3, 1), specs(training)[0]), expected)
    assert not np.array_equal(good.pixels.load(Sample(3, 1), specs(training)[0]), expected)
    assert training.plan == good.plan  # of the good image is what teachers said
