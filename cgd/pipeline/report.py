"""A report about a finished student: scores, costs, figures and examples, then a page; what is stored is not redone."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from cgd.config import Recipe
from cgd.errors import InputError, StoreError
from cgd.pipeline import report_figures, report_scores, reported
from cgd.pipeline.report_parts import Report
from cgd.pipeline.report_text import report_text as report_text
from cgd.pipeline.reported import Place
from cgd.pipeline.steps import Session
from cgd.types import Benchmark

log = logging.getLogger(__name__)


def report(
    session: Session,
    place: Place,
    recipe: Recipe,
    *,
    benchmark: str | None = None,
    name: str | None = None,
    teachers: Sequence[str] = (),
    baselines: Sequence[str] = (),
    out: Path,
) -> Report:
    """Score everything around a student on one benchmark, and write the page at `out`.

    Benchmark and teachers' names are those of the student's run where they are not given.
    """
    from cgd.pipeline.report_page import report_page
    from cgd.store.files import replace_file

    _refuse_unwritable(out)
    chosen = _benchmark(session, recipe, benchmark, name)
    if chosen.of_videos:
        raise InputError(f"a report is about images, {chosen.name} is of videos: use `cgd evaluate` and `cgd scores`.")
    job, notes = report_scores.prepare(session, place, recipe, chosen, teachers, baselines)
    epochs = reported.epochs_of(place)
    log.info("1/4 scores on %s", job.benchmark.name)
    scored = report_scores.scored_rows(job)
    log.info("2/4 parameters, GMACs and speed on this machine")
    rows, device = report_scores.with_costs(job, scored)
    log.info("3/4 figures")
    curves = report_figures.curves_of(job, rows)
    found = Report(
        place=place,
        key=reported.key_of(session.store(), place),
        benchmark=job.benchmark,
        cropped=job.cropped,
        teaching=job.teaching,
        rows=rows,
        similarities=report_figures.similarities_of(job),
        curves=curves,
        examples=report_figures.examples_of(job, curves),
        epochs=epochs,
        notes=notes,
        commands=report_scores.commands(job, out),
        device=device,
        out=out,
    )
    log.info("4/4 the page")
    replace_file(out, report_page(found).encode("utf-8", "backslashreplace"))
    return found


def _refuse_unwritable(out: Path) -> None:
    """Before minutes are spent."""
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write {out}: name another file with --out.")


def _benchmark(session: Session, recipe: Recipe, text: str | None, name: str | None) -> Benchmark:
    if text:
        return session.workspace.benchmark(text, name)
    if not recipe.data.benchmarks:
        raise InputError("no benchmark is named: give --benchmark NAME, or KIND:PATH the first time.")
    first, *others = recipe.data.benchmarks
    if others:
        log.info("the report is about %s; --benchmark asks for another of the run's: %s", first, ", ".join(others))
    return session.workspace.benchmark(first, name)
