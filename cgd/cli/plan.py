"""The command that tells what a project will cost before anybody waits."""

from __future__ import annotations

from typing import Any

import click

from cgd.cli.options import names_in, options, print_result, recipe_of, running, session_of

ABOVE = click.FloatRange(0, min_open=True)


@click.command()
@options("teachers", "device", "workers", "set")
@click.option("--images", "count", type=click.IntRange(1), help="Images to be embedded.  [default: those of --dataset]")
@click.option("--dataset", help="KIND:PATH or NAME: its images are counted, and measured with.")
@click.option("--split", help="Only this split of the data set.")
@click.option("--views", type=click.IntRange(0), help="Replayable crops beside the fixed view.  [default: 0]")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="Devices that work together.")
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes for what needs no device."
)
@click.option("--dim", type=click.IntRange(1), help="Dimensions after whitening.  [default: 512]")
@click.option("--student", help="Student network.  [default: resnet18]")
@click.option("--epochs", type=click.IntRange(1), help="[default: 200]")
@click.option("--pairs", type=click.IntRange(1), help="Pairs of an epoch, as many as labels.  [default: one per image]")
@click.option("--batch-pairs", type=click.IntRange(2), help="Pairs per batch.  [default: 256]")
@click.option("--distractors", type=click.IntRange(0), default=0, help="Distractors to embed and to search among.")
@click.option("--queries", type=click.IntRange(1), default=70, show_default=True, help="Queries of the benchmark.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of what is measured.  [default: fp32]")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images per forward pass.")
@click.option("--shard-rows", type=click.IntRange(1), help="Images per shard.  [default: what fits 16 MB]")
@click.option(
    "--rate",
    multiple=True,
    metavar="[TEACHER=]N",
    help="Crops a second on one device, of one or every teacher; repeatable.",
)
@click.option(
    "--full-rate", multiple=True, metavar="[TEACHER=]N", help="Full images, all scales.  [default: --rate, by pixels]"
)
@click.option(
    "--train-rate", type=ABOVE, help="Images a second in a student's training on one device, loading included."
)
@click.option("--load-rate", type=ABOVE, help="Images a second that a process's threads read, decode and cut.")
@click.option("--read-rate", type=ABOVE, help="Bytes a second that the images' disk or network gives to all together.")
@click.option("--store-rate", type=ABOVE, help="Bytes a second that a process writes to the store, or reads.")
@click.option("--file-rate", type=ABOVE, help="Files a second that a process writes to the store.")
@click.option("--flop-rate", type=ABOVE, help="Operations a second in double precision of a process, for whitening.")
@click.option("--bytes-per-image", type=ABOVE, help="Of an image's file.  [default: measured, or 200000]")
@click.option(
    "--size",
    nargs=2,
    type=click.IntRange(1),
    default=(800, 600),
    show_default=True,
    help="Width and height of an image.",
)
@click.option("--scaling", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True,
              help="Share of the devices' speed that is left when they train together.")  # fmt: skip
@click.option("--price-per-gpu-hour", "price", type=click.FloatRange(0), help="Also tell the cost.")
@click.option("--seconds", type=ABOVE, default=20.0, show_default=True, help="Time for measuring teachers.")
def plan(**o: Any) -> None:
    """Tell hours, bytes, files and cost of every stage, from rates given or measured here in a minute.

    Weights need not be there. What is measured is told as such; where every rate is given, nothing is.

    \b
    cgd plan --images 1580470 --teachers gem,delg --views 4 --gpus 8
    cgd plan --dataset folder:photos --teachers gem --views 4 --distractors 1000000 --price-per-gpu-hour 2.5
    cgd plan --images 1580470 --teachers gem,dolg --views 4 --gpus 8 --rate gem=300 --rate dolg=250
    """
    from cgd.pipeline import plan_rates, plan_text
    from cgd.pipeline.recipe import change

    with running(o):
        teachers = names_in(o["teachers"])
        recipe = change(recipe_of(o), "extract", teachers=teachers or None, views=o["views"], precision=o["precision"])
        recipe = change(recipe, "whiten", dim=o["dim"])
        recipe = change(recipe, "distill", **{name: o[name] for name in ("student", "epochs", "batch_pairs")})
        session = session_of(o, batch_size=o["batch_size"], shard_rows=o["shard_rows"])
        images = session.workspace.images(o["dataset"], None, o["split"]) if o["dataset"] else None
        if images is None and o["count"] is None:
            raise click.UsageError("give --images N, or --dataset.")
        names = recipe.extract.teachers
        given = plan_rates.Given(
            crops=plan_rates.rates_by_teacher(o["rate"], names, "--rate"),
            full=plan_rates.rates_by_teacher(o["full_rate"], names, "--full-rate"),
            **{name: o[f"{name}_rate"] for name in ("train", "load", "read", "store", "file", "flop")},
        )
        counts = ("gpus", "processes", "pairs", "distractors", "queries", "scaling", "price")
        work = plan_rates.work_of(recipe, images, o["count"], **{name: o[name] for name in counts},
                                  shard_rows=o["shard_rows"], image_bytes=o["bytes_per_image"])  # fmt: skip
        result = plan_rates.plan(session, recipe, work, given, images=images, size=o["size"], seconds=o["seconds"])
        print_result(o, plan_text.plan_json(result), plan_text.plan_text)
