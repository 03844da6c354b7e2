"""The command that tells of a finished student on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgd.cli.options import names_in, options, print_result, recipe_of, running, session_of


@click.command()
@options("weights", "teachers", "device", "workers", "set", "name")
@click.argument("student")
@click.option("--benchmark", help="KIND:PATH the first time, then NAME.  [default: the first of the student's run]")
@click.option(
    "--distractors",
    multiple=True,
    metavar="KIND:PATH|NAME|random:N",
    help="Also score with these in the gallery; repeatable.  [default: those of the student's run]",
)
@click.option(
    "--queries", type=click.Choice(["cropped", "full"]), help="Cut queries to their boxes.  [default: cropped]"
)
@click.option("--baselines", default="", help="Score these too, as they are: names as after --teachers.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page, one HTML file that asks for no other.",
)
def report(**o: Any) -> None:
    """Make a page about STUDENT: its scores and costs beside its teachers', figures, and what it finds.

    STUDENT is the folder of a student, or its key, or the folder of a run with one student. Weights are needed for what
    is not embedded yet, and to measure the teachers' cost.

    \b
    cgd report student --benchmark roxford5k:data --weights weights --teachers gem,solar
    cgd report runs/grocery --weights weights --distractors sped --out grocery.html
    """
    from cgd.pipeline import report as pipeline
    from cgd.pipeline import report_text, reported
    from cgd.pipeline.recipe import change

    with running(o):
        session = session_of(o)
        place = reported.find(session, o["student"])
        chosen = {"queries": o["queries"], "distractors": o["distractors"] or None}
        recipe = change(recipe_of(o, place.run), "evaluate", **chosen)
        found = pipeline.report(
            session,
            place,
            recipe,
            benchmark=o["benchmark"],
            name=o["name"],
            teachers=names_in(o["teachers"]),
            baselines=names_in(o["baselines"]),
            out=o["out"],
        )
        print_result(o, report_text.report_json(found), report_text.report_text)
