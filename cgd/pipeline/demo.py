"""The built-in demonstration: the whole main path on drawn images, in minutes on a laptop."""

from __future__ import annotations

from pathlib import Path

from cgd.config import Recipe
from cgd.pipeline import steps
from cgd.pipeline.recipe import build_recipe
from cgd.pipeline.runner import RunReport, run
from cgd.pipeline.steps import Session
from cgd.types import ImageList, Key

IMAGES = "synthetic:landmarks?labels=80&seed=0"
_INPUT = "size=96&resize=square&weights=random"


def demo_recipe() -> Recipe:
    """Three untrained teachers and an untrained student: it shows the path, not what trained networks reach."""
    return build_recipe(
        {
            "data": {"train": "landmarks@train", "benchmarks": ["landmarks"]},
            "extract": {
                "teachers": [f"timm:vgg11?{_INPUT}", f"timm:vgg11_bn?pool=avg&{_INPUT}", f"timm:resnet18?{_INPUT}"],
                "views": 2,
                "crop_size": 96,
                "crop_area": [0.6, 1.0],
            },
            "whiten": {"dim": 64},
            "distill": {
                "student": "timm:resnet10t?dim=64&size=96&resize=square",
                "epochs": 12,
                "positives": "image",
                "batch_pairs": 64,
                "image_size": 96,
                "learning_rate": 1e-3,
            },
            "evaluate": {"queries": "both", "distractors": ["landmarks@distractors"]},
        },
        "demo",
    )


def extracted(session: Session) -> tuple[ImageList, dict[str, dict[str, Key]], Recipe]:
    """The demonstration's training images, its teachers' whitened vectors by label and view, and its recipe."""
    session.workspace.introduce("landmarks", IMAGES)
    recipe = demo_recipe()
    images = session.workspace.images(recipe.data.train)
    done = steps.extract_teachers(session, images, recipe.extract)
    whitened = steps.fit_whitening(session, {label: r.keys for label, r in done.encoders.items()}, recipe.whiten)
    return images, {label: views for label, (_, views) in whitened.items()}, recipe


def demo(session: Session, out: Path) -> RunReport:
    """Draw landmarks, then run the demonstration's recipe on them."""
    session.workspace.introduce("landmarks", IMAGES)
    return run(session, demo_recipe(), out=out)
