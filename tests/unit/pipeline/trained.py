"""A student of one epoch, trained from drawn landmarks, for the tests of what comes after training."""

from __future__ import annotations

from pathlib import Path

from cgd.config import Recipe
from cgd.pipeline import steps
from cgd.pipeline.recipe import override
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.types import ImageList


def train(folder: Path, drawn: Path, recipe: Recipe, *settings: str) -> tuple[Session, Recipe, ImageList]:
    """A session whose store and `student` stand in `folder`, the recipe, and the images trained on."""
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=Workspace(folder / "roots.yaml"))
    recipe = override(recipe, ["distill.epochs=1", "extract.views=1", *settings])
    images = session.workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm", "train")
    extracted = steps.extract_teachers(session, images, recipe.extract)
    raw = {label: dict(report.keys) for label, report in extracted.encoders.items()}
    whitened = {label: views for label, (_, views) in steps.fit_whitening(session, raw, recipe.whiten).items()}
    steps.distill(session, images, whitened, recipe, folder / "student")
    return session, recipe, images
