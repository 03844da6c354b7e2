"""The commands that show that it works: on drawn images, and against live teachers."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cgd.cli.options import names_in, numbers_in, options, print_result, recipe_of, running, session_of
from cgd.errors import MissingError

if TYPE_CHECKING:
    from cgd.pipeline.demo import Step


@click.command()
@options("device", "workers")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the buildings and the students; every seed wants an --out of its own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for all of it.",
)
def demo(**o: Any) -> None:
    """See it work in five minutes: three teachers, one small student, on drawn buildings.

    Runs the commands that you would type for your own photographs, and shows each. Interrupted, it continues.

    \b
    cgd demo --out demo
    cgd demo --seed 1 --out demo-1
    """
    from cgd.pipeline import demo as demonstration
    from cgd.pipeline.report import report_text

    with running(o):
        demonstration.prepare(o["out"])
        steps = demonstration.commands(o["seed"])
        results = [_done(o, step, f"{n}/{len(steps)}") for n, step in enumerate(steps, 1)]
        print_result(o, results[-1], report_text)
        if not o["as_json"]:
            page = o["out"] / demonstration.REPORT
            click.echo(
                f'\nThe same with pictures: {page}\nYour own photographs: see "Your own photographs" in README.md'
            )


def _done(o: dict[str, Any], step: Step, number: str) -> dict[str, Any]:
    """Run one command in the demonstration's folder and tell of it; its result."""
    say = (lambda _: None) if o["as_json"] or o["quiet"] else click.echo
    say(f"{number}  {step.why}")
    say("\n".join(f"     {line}" for line in f"$ {step.shown()}".splitlines()))
    started = time.monotonic()
    result = _run(o, step)
    say(f"     {step.told(result)} ({time.monotonic() - started:.0f} s)\n")
    return result


def _run(o: dict[str, Any], step: Step) -> dict[str, Any]:
    """The JSON object of a command; progress goes to standard error as always, and an error ends the program."""
    from cgd.cli import cli

    shared = ["--store", "./features.zarr", "--json", "--quiet", *(["--debug"] if o["debug"] else [])]
    runs_networks = step.command[0] != "fit-whitening"
    device = ["--device", o["device"], "--workers", str(o["workers"])] if runs_networks else []
    printed = io.StringIO()
    with contextlib.chdir(o["out"]), contextlib.redirect_stdout(printed):
        cli.main([*step.command, *device, *shared], prog_name="cgd", standalone_mode=False)
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


@click.command()
@options("weights", "device", "workers", "set")
@click.argument("paper")
@click.option("--table", "tables", multiple=True, metavar="N", help="Only this table of the paper; repeatable.")
@click.option("--miniature", is_flag=True, help="On drawn landmarks, with teachers that come with the package.")
@click.option("--dry-run", is_flag=True, help="Tell what would be run and what is missing; do nothing.")
@click.option(
    "--data", multiple=True, metavar="NAME=KIND:PATH", help="Where a data set of the paper is; repeatable, remembered."
)
@click.option("--seeds", default="", help="Seeds separated by commas: the mean is told.  [default: 0]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the students.  [default: runs/PAPER, or runs/PAPER-miniature]",
)
def reproduce(**o: Any) -> None:
    """A paper's tables beside ours: published, found here, the difference, and what was not done as there.

    PAPER is whiten-mtd, cgd, embedding-distillation, data-efficient or context-unaware. Interrupted, it continues.

    \b
    cgd reproduce whiten-mtd --dry-run
    cgd reproduce whiten-mtd --table 4 --miniature   # a few minutes
    cgd reproduce whiten-mtd --table 2 --weights weights --data gldv2=gldv2-clean:gldv2 --data roxford5k=roxford5k:data
    """
    from cgd.pipeline import reproduce as reproduction

    with running(o):
        session = session_of(o)
        if not o["miniature"]:
            reproduction.introduce(session, o["data"])
        elif o["data"] or o["weights"]:
            raise click.UsageError("--miniature brings its own images and weights: leave out --data and --weights.")
        suffix = f"-{reproduction.MINIATURE}" if o["miniature"] else ""
        result = reproduction.reproduce(
            session,
            o["paper"],
            tables=o["tables"],
            miniature=o["miniature"],
            dry_run=o["dry_run"],
            settings=o["settings"],
            seeds=numbers_in(o["seeds"], "--seeds", int),
            out=o["out"] or Path("runs") / f"{o['paper']}{suffix}",
        )
        print_result(o, result, reproduction.reproduction_text)
        if reproduction.nothing_was_run(result):
            raise MissingError(
                f"nothing of {o['paper']} could be run, what is missing stands above"
                + ("." if o["miniature"] else "; `--miniature` needs no data and no weights.")
            )


@click.command()
@options("name", "teachers", "weights", "device", "workers", "set")
@click.option("--dataset", help="NAME or NAME@SPLIT of images whose teachers are stored.")
@click.option("--whitening", help="Which whitening (part of its key), where there are several.")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Steps of training to compare.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Images and views to compare.")
@click.option("--demo", "on_demo", is_flag=True, help="On the demonstration's drawn buildings and teachers.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the demonstration.")
def prove(**o: Any) -> None:
    """Prove that training from the store is training with the teachers there; exit status 1 if it is not.

    Live teachers are compared with their stored vectors, then every step's loss with live teachers to that from the
    store at the same weights.

    \b
    cgd prove --dataset photos --teachers gem --weights weights --set distill.student=resnet18
    cgd prove --demo --steps 10   # a minute or two on two cores
    """
    from cgd.pipeline import demo as demonstration

    with running(o):
        if bool(o["dataset"]) == o["on_demo"]:
            raise click.UsageError("give either --dataset or --demo.")
        if not o["on_demo"]:
            _prove(o)
            return
        folder = o["out"] or Path("demo")
        demonstration.prepare(folder)
        for step in demonstration.commands()[:2]:
            _run({**o, "out": folder}, step)
        settings = (*demonstration.training(0), f"distill.student={demonstration.NETWORK}0", *o["settings"])
        given = {"dataset": f"{demonstration.DATA}@train", "weights": Path("weights"), "settings": settings}
        with contextlib.chdir(folder):
            _prove({**o, **given, "teachers": demonstration.TEACHERS, "store_url": "./features.zarr"})


def _prove(o: dict[str, Any]) -> None:
    from cgd.pipeline import steps, text
    from cgd.stages import select

    recipe, session = recipe_of(o), session_of(o)
    images = session.workspace.images(o["dataset"], o["name"])
    vectors = select.training_vectors(
        session.store(),
        images.name,
        images.split,
        names_in(o["teachers"]) if not o["on_demo"] else (),
        o["whitening"],
        recipe.distill.space,
    )
    sources = steps.stored_sources(session, vectors, names_in(o["teachers"]))
    proof = steps.prove(session, images, vectors, sources, recipe, count=o["steps"], samples=o["samples"])
    print_result(o, proof.as_json(), text.proof_text)
    if proof.problems:
        sys.exit(1)
