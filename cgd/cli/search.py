"""The commands that search for pictures, and the one that makes search fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgd.cli.options import options, print_result, recipe_of, running, session_of

INDEXES = ["exact", "flat", "ivf-pq", "hnsw"]


@click.command()
@options("device", "workers", "set")
@click.option("--student", required=True, help="Folder of a student, or its key.")
@click.option("--gallery", required=True, help="Where to search: NAME or NAME@SPLIT; KIND:PATH the first time.")
@click.argument(
    "pictures",
    metavar="IMAGE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@click.option("-k", "count", type=click.IntRange(1), default=10, show_default=True, help="How many nearest images.")
@click.option("--index", type=click.Choice(INDEXES), help="How to search; `cgd index` builds one.  [default: exact]")
@click.option("--box", nargs=4, type=float, metavar="X1 Y1 X2 Y2", help="Search for this part of the picture only.")
@click.option("--label", help="What the picture shows.  [default: its label in a data set known here]")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as a page of pictures."
)
def search(**o: Any) -> None:
    """Find the images of a gallery that look most like a picture.

    \b
    cgd search --student student --gallery photos query.jpg -k 10
    cgd search --student student --gallery photos@gallery query.jpg other.jpg --html found.html
    """
    from cgd.pipeline import search as run
    from cgd.pipeline import text
    from cgd.pipeline.recipe import change

    with running(o):
        recipe = change(recipe_of(o), "evaluate", index=o["index"])
        session = session_of(o)
        result = run.search(
            session, o["student"], o["gallery"], o["pictures"], recipe, k=o["count"], label=o["label"], box=o["box"]
        )  # fmt: skip
        if o["page"]:
            run.write_page(session, result, o["page"])
        print_result(o, result, text.search_text)


@click.command()
@options("device", "workers", "set")
@click.option("--student", required=True, help="Folder of a student, or its key.")
@click.option("--gallery", required=True, help="What to index: NAME or NAME@SPLIT; KIND:PATH the first time.")
@click.option("--kind", type=click.Choice(INDEXES[1:]), default="ivf-pq", show_default=True, help="Which index.")
def index(**o: Any) -> None:
    """Build the index of a gallery, or extend it by new images, and compare it with exact search.

    Its settings are those of the recipe's section index, e.g. --set index.code_bytes=32.

    \b
    cgd index --student student --gallery photos --kind hnsw
    """
    from cgd.pipeline import search as run
    from cgd.pipeline import text
    from cgd.pipeline.recipe import change

    with running(o):
        recipe = change(recipe_of(o), "evaluate", index=o["kind"])
        print_result(o, run.index(session_of(o), o["student"], o["gallery"], recipe), text.index_text)
