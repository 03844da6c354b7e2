"""A store in which drawn landmarks are extracted and whitened, for the tests of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cgd.config import Recipe
from cgd.pipeline import steps
from cgd.pipeline.recipe import override
from cgd.pipeline.steps import Session
from cgd.stages.distill import Distillation
from cgd.types import Key

Vectors = dict[str, dict[str, Key]]


@dataclass(frozen=True)
class Stored:
    """A session whose store holds two teachers' vectors of two crops, raw and whitened."""

    session: Session
    manifest: Path
    recipe: Recipe
    raw: Vectors
    whitened: Vectors

    def job(self, out: Path, *settings: str) -> Distillation:
        """What `distill` is called with; images are opened anew, so that a process of its own can do it."""
        recipe = override(self.recipe, settings)
        vectors = self.raw if recipe.distill.space == "raw" else self.whitened
        images = self.session.workspace.images(f"manifest:{self.manifest}", "lm", "train")
        return steps._distillation(self.session, images, vectors, recipe, out)
