"""The commands that show that it works: on drawn images, and against live teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cgd.cli.options import names_in, options, print_result, recipe_of, running, session_of


@click.command()
@options("device", "workers")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for all of it.",
)
def demo(**o: Any) -> None:
    """Draw small landmarks and run the whole path on them, in a few minutes on a laptop.

    Teachers and student begin untrained: it shows the path, not what trained networks reach.

    \b
    cgd demo --out demo
    """
    from cgd.pipeline import demo as demonstration
    from cgd.pipeline import text
    from cgd.pipeline.workspace import Workspace

    with running(o):
        session = session_of(
            {**o, "store_url": str(o["out"] / "features.zarr")}, workspace=Workspace(o["out"] / ".cgd/roots.yaml")
        )
        print_result(o, demonstration.demo(session, o["out"]).as_json(), text.run_text)


@click.command()
@options("name", "teachers", "weights", "device", "workers", "set")
@click.option("--dataset", help="NAME or NAME@SPLIT of images whose teachers are stored.")
@click.option("--whitening", help="Which whitening (part of its key), where there are several.")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Steps of training to compare.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Images and views to compare.")
@click.option("--demo", "on_demo", is_flag=True, help="On drawn landmarks and untrained networks.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the demonstration.")
def prove(**o: Any) -> None:
    """Prove that training from the store is training with the teachers there; exit status 1 if it is not.

    Live teachers are compared with their stored vectors, then every step's loss with live teachers to that from the
    store at the same weights.

    \b
    cgd prove --dataset photos --teachers gem --weights weights --set distill.student=resnet18
    cgd prove --demo --steps 10   # a minute or two on two cores; ten times as many steps take ten
    """
    from cgd.pipeline import demo as demonstration
    from cgd.pipeline import steps, text
    from cgd.pipeline.workspace import Workspace
    from cgd.stages import select

    with running(o):
        if bool(o["dataset"]) == o["on_demo"]:
            raise click.UsageError("give either --dataset or --demo.")
        if o["on_demo"]:
            folder = o["out"] or Path("demo")
            session = session_of(
                {**o, "store_url": str(folder / "features.zarr")}, workspace=Workspace(folder / ".cgd/roots.yaml")
            )
            images, vectors, recipe = demonstration.extracted(session)
        else:
            recipe, session = recipe_of(o), session_of(o)
            images = session.workspace.images(o["dataset"], o["name"])
            vectors = select.training_vectors(
                session.store(),
                images.name,
                images.split,
                names_in(o["teachers"]),
                o["whitening"],
                recipe.distill.space,
            )
        sources = steps.stored_sources(session, vectors, names_in(o["teachers"]))
        proof = steps.prove(session, images, vectors, sources, recipe, count=o["steps"], samples=o["samples"])
        print_result(o, proof.as_json(), text.proof_text)
        if proof.problems:
            sys.exit(1)
