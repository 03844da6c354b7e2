"""The table of a report: every network around a student scored and measured; what is stored is not redone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cgd.config import Recipe
from cgd.pipeline import reported, runner, scoring, steps
from cgd.pipeline.recipe import change
from cgd.pipeline.report_parts import Kind, Row
from cgd.pipeline.reported import Place, Teaching
from cgd.pipeline.steps import Session
from cgd.types import Benchmark, Key

if TYPE_CHECKING:
    from cgd.models.encoder import EncoderSource
    from cgd.models.speed import Cost


@dataclass(frozen=True)
class Job:
    """What all parts of a report need; `recipes` score without distractors, then with them where some were named.

    `cropped` is None where no query has a box; `typed` are the teachers as the user named them.
    """

    session: Session
    place: Place
    benchmark: Benchmark
    cropped: bool | None
    recipes: tuple[Recipe, ...]
    teaching: Teaching
    before: EncoderSource | None
    after: EncoderSource
    baselines: tuple[EncoderSource, ...]
    typed: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the teachers are called: as typed, else as in the student's run; nothing where it has none."""
        return self.typed or self.recipes[0].extract.teachers

    @property
    def fused(self) -> bool:
        """Whether the student shares a space with its fused teachers."""
        return any(Key.parse(key).kind == "codebooks" for key in self.place.about["inputs"])


def prepare(
    session: Session,
    place: Place,
    recipe: Recipe,
    benchmark: Benchmark,
    teachers: Sequence[str],
    baselines: Sequence[str],
) -> tuple[Job, tuple[str, ...]]:
    """The job, and what the page has to say of it; what can be refused is refused before any network looks at an image.

    Raises `MissingError` where vectors are missing and the network that makes them is not here.
    """
    boxed = bool(benchmark.queries.boxes and any(benchmark.queries.boxes))
    cropped = recipe.evaluate.queries != "full" if boxed else None
    chosen = change(recipe, "evaluate", queries="full" if cropped is False else "cropped", ensemble=True)
    alone = change(chosen, "evaluate", distractors=())
    _, distractors = scoring.distractors_of(session, benchmark, recipe.evaluate.distractors)
    lists = reported.image_lists(benchmark, bool(cropped), distractors)
    teaching = reported.teaching_of(session, place, recipe, tuple(teachers) or recipe.extract.teachers)
    others = tuple(steps.teacher_sources(session, baselines)) if baselines else ()
    reported.refuse_missing_vectors(session, [*teaching.sources, *others], lists, recipe)
    before, reason = reported.start_or_reason(session, place, lists, recipe)
    job = Job(
        session=session,
        place=place,
        benchmark=benchmark,
        cropped=cropped,
        recipes=(alone, chosen) if recipe.evaluate.distractors else (alone,),
        teaching=teaching,
        before=before,
        after=steps.load_student(session, place.name),
        baselines=others,
        typed=tuple(teachers),
    )
    return job, (*teaching.notes, *filter(None, [reason]))


def scored_rows(job: Job) -> tuple[Row, ...]:
    """The rows of the table in their order, without costs."""
    rounds = [_round(job, recipe) for recipe in job.recipes]
    if len(rounds) == 1:
        return tuple(rounds[0])
    return tuple(replace(row, distracted=other.score) for row, other in zip(*rounds, strict=True))


def _round(job: Job, recipe: Recipe) -> list[Row]:
    """Every network and ensemble scored with one gallery."""
    session, benchmark = job.session, job.benchmark

    def alone(kind: Kind, name: str, source: EncoderSource) -> list[Row]:
        return [Row(kind, name, False, score) for score in scoring.evaluate(session, benchmark, [source], recipe)]

    found = [row for source in job.baselines for row in alone("baseline", source.text, source)]
    for score in runner.teacher_scores(session, [benchmark], job.teaching.sources, recipe, job.teaching.whitenings):
        members, whitened = score["card"]["members"], bool(score["card"]["whitening"])
        if len(members) > 1:
            found.append(Row("ensemble", f"ensemble of {len(members)}", whitened, score))
        else:
            found.append(Row("teacher", members[0], whitened, score))
    if job.before is not None:
        found += alone("before", "student before", job.before)
    found += alone("after", "student after", job.after)
    if job.fused:
        scores = scoring.evaluate_asymmetric(session, benchmark, job.place.name, recipe, teachers=job.names)
        found += [Row("asymmetric", "asymmetric student", False, score) for score in scores]
    return found


def with_costs(job: Job, rows: Sequence[Row]) -> tuple[tuple[Row, ...], str]:
    """The rows with what each network that is here costs, measured in one run, and on what it was measured."""
    from cgd.models.devices import pick_device
    from cgd.models.speed import costs_of, device_name

    device = pick_device(job.session.device)
    here = {s.label: s for s in (*job.baselines, *job.teaching.sources, job.after) if reported.is_here(s)}
    costs = dict(zip(here, costs_of([source.build() for source in here.values()], device), strict=True))
    return tuple(replace(row, cost=_cost_of(row, job, costs)) for row in rows), device_name(device)


def _cost_of(row: Row, job: Job, costs: Mapping[str, Cost]) -> Cost | None:
    """An ensemble costs all of its teachers; a student costs the same before and after training."""
    from cgd.models.speed import together

    if row.kind == "ensemble":
        found = [costs.get(source.label) for source in job.teaching.sources]
        known = [cost for cost in found if cost is not None]
        return together(known) if len(known) == len(found) else None
    if row.kind == "baseline":
        return costs.get(next(s.label for s in job.baselines if s.text == row.name))
    return costs.get(row.name if row.kind == "teacher" else job.after.label)


def commands(job: Job, out: Path) -> tuple[str, ...]:
    """Command lines that repeat the scores and the page, in this folder."""
    session, evaluate = job.session, job.recipes[-1].evaluate
    place = ["--store", session.store_url] if session.store_url != "./features.zarr" else []
    for url in session.upstream:
        place += ["--upstream", url]
    weights = ["--weights", str(session.weights)] if session.weights else []
    how = ["--benchmark", job.benchmark.name]
    how += ["--queries", "full"] if job.cropped is False else []
    for text in evaluate.distractors:
        how += ["--distractors", text]
    named = ["--teachers", ",".join(job.typed)] if job.typed else []
    teachers = ["--teachers", ",".join(job.names or [source.text for source in job.teaching.sources])]
    baselines = ["--baselines", ",".join(source.text for source in job.baselines)] if job.baselines else []
    student = ["cgd", "evaluate", "--student", job.place.name]
    ensemble = ["cgd", "evaluate", *teachers, *weights, *how, "--ensemble"]
    lines = [["cgd", "report", job.place.name, *named, *weights, *how, *baselines, "--out", str(out)], [*student, *how]]
    if job.fused:
        lines.append([*student, "--mode", "asymmetric", *named, *weights, *how])
    lines.append(ensemble)
    if job.teaching.whitenings:
        lines.append([*ensemble, "--whitening", job.teaching.fitted_on])
    return tuple(shlex.join([*line, *place]) for line in lines)
