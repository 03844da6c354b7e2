"""The commands that list, tabulate and compare stored scores."""

from __future__ import annotations

from typing import Any

import click

from cgd.cli.options import Command, Group, options, print_result, running, session_of


def choosing(command: Command) -> Command:
    """The options that choose among scores."""
    command = click.option(
        "--where",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Only scores with this on their card, e.g. query_crop=true; * stands for any text; repeatable.",
    )(command)
    return click.option("--benchmark", "benchmarks", multiple=True, help="Only scores on this one; repeatable.")(
        command
    )


@click.group("scores", cls=Group)
def scores_group() -> None:
    """List stored scores and put them into one table."""


@scores_group.command("ls")
@options()
@choosing
def scores_ls(**o: Any) -> None:
    """List every score with its protocol; the mark or the model names it for `cgd compare`.

    \b
    cgd scores ls
    cgd scores ls --benchmark roxford5k --where 'model=*whitened*'
    """
    from cgd.pipeline import scores, scores_text

    with running(o):
        found = scores.list_scores(session_of(o), benchmarks=o["benchmarks"], where=_conditions(o["where"]))
        print_result(o, found, scores_text.list_text)


@scores_group.command("table")
@options()
@choosing
@click.option("--mixed", is_flag=True, help="Also what was not measured alike; what differs is told in columns.")
@click.option("--intervals", is_flag=True, help="95 % intervals, by bootstrap over queries.")
@click.option("--csv", "form", flag_value="csv", help="For spreadsheets; what looks like a formula gets an apostrophe.")
@click.option("--latex", "form", flag_value="latex", help="For papers, with booktabs.")
def scores_table(**o: Any) -> None:
    """Put the scores of one protocol into one table: a row per model, a column per benchmark.

    \b
    cgd scores table --where query_crop=true --where mode=symmetric
    cgd scores table --benchmark roxford5k --benchmark rparis6k --intervals --latex
    """
    from cgd.pipeline import scores, scores_text

    with running(o):
        if o["form"] and o["as_json"]:
            raise click.UsageError(f"give either --json or --{o['form']}.")
        found = scores.table(
            session_of(o),
            benchmarks=o["benchmarks"],
            where=_conditions(o["where"]),
            allow_mixed=o["mixed"],
            intervals=o["intervals"],
        )
        print_result(o, found, scores_text.TABLES[o["form"] or "text"])


@click.command()
@click.argument("a")
@click.argument("b")
@options()
@choosing
def compare(**o: Any) -> None:
    """Compare two scores over the queries they share: A and B are marks, keys, models or students.

    Prints the difference in mAP with its 95 % interval and the p of a paired test.

    \b
    cgd compare gem solar --benchmark roxford5k --where query_crop=true
    cgd compare student scores/photos.gem-whitened
    """
    from cgd.pipeline import scores, scores_text

    with running(o):
        where = _conditions(o["where"])
        found = scores.compare(session_of(o), o["a"], o["b"], benchmarks=o["benchmarks"], where=where)
        print_result(o, found, scores_text.compare_text)


def _conditions(texts: tuple[str, ...]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--where {text}: expected FIELD=VALUE, e.g. query_crop=true.")
        wanted.setdefault(name, []).append(value)
    return wanted
