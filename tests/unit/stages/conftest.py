"""A store that the tests of training share, made once for each file of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import Stored

from cgd.config import Recipe
from cgd.pipeline import steps
from cgd.pipeline.recipe import change
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace


@pytest.fixture(scope="module")
def stored(drawn: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("stored")
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=Workspace(folder / "roots.yaml"))
    manifest = drawn / "manifest.csv"
    images = session.workspace.images(f"manifest:{manifest}", "lm", "train")
    extracted = steps.extract_teachers(session, images, change(tiny_recipe, "extract", views=2).extract)
    raw = {label: dict(report.keys) for label, report in extracted.encoders.items()}
    whitened = {label: views for label, (_, views) in steps.fit_whitening(session, raw, tiny_recipe.whiten).items()}
    return Stored(session, manifest, tiny_recipe, raw, whitened)
