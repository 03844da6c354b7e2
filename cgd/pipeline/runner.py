"""Run a recipe from photographs to scores; whatever is stored already is not done again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import Recipe
from cgd.errors import InputError
from cgd.pipeline import scoring, steps
from cgd.pipeline.recipe import change, to_yaml
from cgd.pipeline.steps import Session
from cgd.store.files import replace_file
from cgd.types import ImageList, Key

if TYPE_CHECKING:
    from cgd.models.encoder import EncoderSource
    from cgd.stages.distill import DistillReport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """Every score as `cgd evaluate --json` gives it, grouped in rows of the table, and the students."""

    scores: list[dict[str, Any]]
    students: list[DistillReport]
    seeds: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd run --json`."""
        return {"scores": self.scores, "students": [s.as_json() for s in self.students]}


def run(session: Session, recipe: Recipe, *, seeds: Sequence[int] = (), out: Path) -> RunReport:
    """Extract, whiten, distil once per seed, and score teachers, their ensembles, and the student before and after."""
    seeds = tuple(seeds) or (recipe.distill.seed,)
    images = _training_images(session, recipe)
    benchmarks = [session.workspace.benchmark(name) for name in recipe.data.benchmarks]
    recipe = steps.pin(session, recipe)
    _save(recipe, out / "recipe.yaml")

    log.info("1/4 teachers look at %d images of %s", len(images), images.title)
    extracted = steps.extract_teachers(session, images, recipe.extract)
    log.info("2/4 whitening")
    embeddings = {label: report.keys for label, report in extracted.encoders.items()}
    whitened = steps.fit_whitening(session, embeddings, recipe.whiten)
    log.info("3/4 distillation: %d epochs, %d seed(s)", recipe.distill.epochs, len(seeds))
    raw = recipe.distill.space == "raw"
    vectors = embeddings if raw else {label: views for label, (_, views) in whitened.items()}
    students, starts, ends = [], [], []
    for seed in seeds:
        seeded = change(recipe, "distill", seed=seed)
        report = steps.distill(session, images, vectors, seeded, out / f"student-seed{seed}")
        students.append(report)
        starts.append(steps.student_source(session, seeded))
        ends.append(steps.load_student(session, str(report.folder)))
    log.info("4/4 scores on %s", ", ".join(b.name for b in benchmarks))
    whitenings = {label: reports["fixed"].key for label, (reports, _) in whitened.items()}
    teachers = steps.teacher_sources(session, recipe.extract.teachers)
    scores = [
        {**score, "row": row, "seed": seed}
        for benchmark in benchmarks
        for row, seed, sources, whitening in _models(teachers, whitenings, starts, ends, seeds)
        for score in scoring.evaluate(
            session,
            benchmark,
            sources,
            recipe.evaluate,
            whitening=whitening,
            ensemble=recipe.evaluate.ensemble and row == "teacher",
            extract_config=recipe.extract,
        )
    ]
    return RunReport(scores, students, seeds)


def _save(recipe: Recipe, path: Path) -> None:
    """The resolved recipe, beside what it made."""
    data = to_yaml(recipe).encode()
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)


def _training_images(session: Session, recipe: Recipe) -> ImageList:
    if not recipe.data.train:
        raise InputError("the recipe names no training images: set data.train to NAME or NAME@SPLIT.")
    return session.workspace.images(recipe.data.train)


Model = tuple[str, int | None, Sequence["EncoderSource"], Mapping[str, Key] | None]


def _models(
    teachers: Sequence[EncoderSource],
    whitenings: Mapping[str, Key],
    starts: Sequence[EncoderSource],
    ends: Sequence[EncoderSource],
    seeds: Sequence[int],
) -> list[Model]:
    """What is scored: row of the table, seed, encoders, whitening."""
    models: list[Model] = [("teacher", None, teachers, None), ("teacher", None, teachers, whitenings)]
    # A start that has no random part is one and the same for every seed.
    models += [("student before", seed, [source], None) for seed, source in zip(seeds, starts, strict=True)]
    models += [("student", seed, [source], None) for seed, source in zip(seeds, ends, strict=True)]
    return models
