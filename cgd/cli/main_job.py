"""The commands of the main job, from photographs to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgd.cli.options import names_in, numbers_in, options, part_of, print_result, recipe_of, running, session_of

KINDS = ["pca", "zca", "standardise", "phi-s", "centre"]


@click.command("extract-teachers")
@options("dataset", "name", "teachers", "weights", "device", "workers", "engine", "set", "dry-run")
@click.option("--split", help="Only this split of the data set.")
@click.option("--views", type=click.IntRange(0), help="Replayable crops beside the fixed view.  [default: 0]")
@click.option(
    "--part", default="1/1", show_default=True, help="Only part i of n (i/n) of the shards; machines may share a store."
)
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Arithmetic of the networks.  [default: fp32]"
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images per forward pass.")
@click.option("--shard-rows", type=click.IntRange(1), help="Images per shard.  [default: what fits 16 MB]")
def extract_teachers(**o: Any) -> None:
    """Let every teacher look at every image once; an interrupted run continues.

    \b
    cgd extract-teachers --dataset folder:photos --teachers gem --weights weights --views 4
    """
    from cgd.pipeline import steps, text
    from cgd.pipeline.recipe import change

    with running(o):
        recipe = recipe_of(o)
        teachers = names_in(o["teachers"]) or recipe.extract.teachers
        recipe = change(recipe, "extract", teachers=teachers, views=o["views"], precision=o["precision"])
        session = session_of(o, part=part_of(o["part"]), batch_size=o["batch_size"], shard_rows=o["shard_rows"])
        images = session.workspace.images(o["dataset"], o["name"], o["split"])
        if o["dry_run"]:
            print_result(o, steps.estimate_extraction(session, images, recipe.extract), text.estimate_text)
            return
        report = steps.extract_teachers(session, images, recipe.extract)
        print_result(o, report.as_json(), text.extract_text)


@click.command("fit-whitening")
@options("dataset", "teachers", "engine", "set")
@click.option("--dim", type=click.IntRange(1), help="Dimensions to keep.  [default: 512]")
@click.option("--kind", type=click.Choice(KINDS), help="Which whitening.  [default: pca]")
@click.option("--samples", type=click.IntRange(0), help="Images drawn for the fit, 0 = all.  [default: 0]")
@click.option("--apply", "apply_key", help="Apply this whitening (a key, or part of one) instead of fitting one.")
def fit_whitening(**o: Any) -> None:
    """Fit a whitening per teacher and kind of view, and apply it.

    \b
    cgd fit-whitening --dataset photos --dim 512
    """
    from cgd.pipeline import steps, text
    from cgd.pipeline.recipe import change
    from cgd.stages import select

    with running(o):
        recipe = change(recipe_of(o), "whiten", dim=o["dim"], kind=o["kind"], samples=o["samples"])
        name, _, split = o["dataset"].partition("@")
        session = session_of(o)
        if o["apply_key"]:
            keys = steps.apply_to(session, o["apply_key"], name, split or None)
            print_result(
                o,
                {view: str(key) for view, key in keys.items()},
                lambda r: "\n".join(f"{v}: {k}" for v, k in r.items()),
            )
            return
        teachers = select.teachers_of(session.store(), name, split or None, names_in(o["teachers"]))
        done = steps.fit_whitening(session, teachers, recipe.whiten)
        result = {label: {kind: r.as_json() for kind, r in reports.items()} for label, (reports, _) in done.items()}
        print_result(o, result, text.whitening_text)


@click.command()
@options("dataset", "name", "teachers", "weights", "device", "workers", "engine", "set", "dry-run", "tensorboard")
@click.option("--split", help="Only this split of the data set.")
@click.option("--whitening", help="Which whitening (part of its key), where there are several.")
@click.option("--method", help="Distillation method.  [default: whiten-mtd]")
@click.option("--fusion", help="How teachers are combined.  [default: max-min]")
@click.option("--student", help="Student network.  [default: resnet18]")
@click.option("--init", help="Pretrained weights of the student's trunk.")
@click.option("--epochs", type=click.IntRange(1), help="[default: 200]")
@click.option("--batch-pairs", type=click.IntRange(2), help="Pairs per batch.  [default: 256]")
@click.option("--exclude", metavar="FILE", help="Labels not to train on, one per line: landmarks of the benchmark.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the student.")
def distill(**o: Any) -> None:
    """Train a student against the stored teachers; the same command continues an interrupted run.

    Under torchrun its processes share every batch; with frozen batch norm, or none, their number does not matter.

    \b
    cgd distill --dataset photos --student resnet18 --init resnet18.pth --epochs 20 --out student
    torchrun --nproc-per-node 4 --no-python cgd distill --dataset photos --out student
    """
    from cgd.pipeline import steps, text
    from cgd.pipeline.recipe import change
    from cgd.stages import select
    from cgd.stages.processes import joined

    with running(o, several=True), joined() as processes:
        fields = ("method", "fusion", "student", "init", "epochs", "batch_pairs", "exclude")
        with processes.all_ready():
            recipe = change(recipe_of(o), "distill", **{name: o[name] for name in fields})
            session = session_of(o)
            images = session.workspace.images(o["dataset"], o["name"], o["split"])
            names, whitening, space = names_in(o["teachers"]), o["whitening"], recipe.distill.space
            vectors = select.training_vectors(session.store(), images.name, images.split, names, whitening, space)
        if o["dry_run"]:
            print_result(o, steps.estimate_distillation(session, images, vectors, recipe, o["out"]), text.training_text)
            return
        report = steps.distill(session, images, vectors, recipe, o["out"], processes)
        print_result(o, report.as_json(), text.student_text)


@click.command()
@options("weights", "teachers", "device", "workers", "engine", "set", "name")
@click.option("--student", help="Folder of a student, or its key.")
@click.option("--benchmark", required=True, help="KIND:PATH the first time, then NAME.")
@click.option(
    "--mode",
    type=click.Choice(["symmetric", "asymmetric"]),
    default="symmetric",
    show_default=True,
    help="asymmetric: the student's queries in a gallery of its fused teachers.",
)
@click.option("--whitening", help="Data set (or key) whose whitening the teachers go through.")
@click.option("--ensemble", is_flag=True, help="Also the mean of the teachers' similarities.")
@click.option(
    "--distractors", multiple=True, metavar="KIND:PATH|NAME|random:N", help="Add these to the gallery; repeatable."
)
@click.option("--scales", default="", help="Scales of the student, e.g. 1,0.7071,0.5.  [default: its own]")
@click.option(
    "--queries", type=click.Choice(["cropped", "full", "both"]), help="Cut queries to their boxes.  [default: cropped]"
)
@click.option(
    "--index",
    type=click.Choice(["exact", "flat", "ivf-pq", "hnsw"]),
    help="How the gallery is searched; all but exact look at the nearest evaluate.k.  [default: exact]",
)
def evaluate(**o: Any) -> None:
    """Score a student or teachers by mAP, with the protocol beside the score.

    \b
    cgd evaluate --student student --benchmark roxford5k:data --queries both
    cgd evaluate --student student --mode asymmetric --weights weights --benchmark roxford5k:data
    cgd evaluate --teachers gem --weights weights --whitening photos --benchmark roxford5k:data
    """
    from cgd.pipeline import scoring, steps, text
    from cgd.pipeline.recipe import change

    with running(o):
        chosen = {"queries": o["queries"], "distractors": o["distractors"] or None, "index": o["index"]}
        recipe = change(recipe_of(o), "evaluate", **chosen)
        teachers = names_in(o["teachers"])
        asymmetric = o["mode"] == "asymmetric"
        if asymmetric and not o["student"]:
            raise click.UsageError("--mode asymmetric is for a student: give --student.")
        if not asymmetric and bool(teachers) == bool(o["student"]):
            raise click.UsageError("give either --student or --teachers.")
        session = session_of(o)
        benchmark = session.workspace.benchmark(o["benchmark"], o["name"])
        scales = numbers_in(o["scales"], "--scales", float)
        if asymmetric:
            results = scoring.evaluate_asymmetric(
                session,
                benchmark,
                o["student"],
                recipe,
                teachers=teachers,
                scales=scales,
            )
            print_result(o, _one_or_many(results), lambda _: text.scores_text(results))
            return
        if o["student"]:
            sources = [steps.load_student(session, o["student"], scales)]
        else:
            sources = steps.teacher_sources(session, teachers)
        results = scoring.evaluate(
            session,
            benchmark,
            sources,
            recipe,
            whitening=o["whitening"],
            ensemble=o["ensemble"],
        )
        print_result(o, _one_or_many(results), lambda _: text.scores_text(results))


def _one_or_many(results: list[dict[str, Any]]) -> dict[str, Any]:
    return results[0] if len(results) == 1 else {"runs": results}


@click.command()
@options("weights", "device", "workers", "engine", "set", "dry-run", "tensorboard")
@click.argument("recipe_file", metavar="RECIPE.yaml", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--data", multiple=True, metavar="NAME=KIND:PATH", help="Where a data set of the recipe is; repeatable, remembered."
)
@click.option("--seeds", default="", help="Seeds separated by commas: one student each.  [default: the recipe's]")
@click.option("--row", "rows", multiple=True, help="Only this row of the recipe's table; repeatable.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the students.  [default: runs/<recipe>]"
)
def run(**o: Any) -> None:
    """Run a recipe from photographs to scores; nothing is done twice.

    \b
    cgd run recipes/grocery.yaml --data grocery=manifest:photos/manifest.csv --weights weights --seeds 0,1,2
    cgd run recipes/grocery-tables.yaml --row "2: max-min, raw" --weights weights
    """
    from cgd.pipeline import runner, steps, text

    with running(o):
        recipe = recipe_of(o, o["recipe_file"])
        session = session_of(o)
        for item in o["data"]:
            name, equals, spec = item.partition("=")
            if not equals:
                raise click.UsageError(f"--data {item}: expected NAME=KIND:PATH.")
            session.workspace.introduce(name, spec)
        if o["dry_run"]:
            images = session.workspace.images(recipe.data.train)
            print_result(o, steps.estimate_extraction(session, images, recipe.extract), text.estimate_text)
            return
        seeds = numbers_in(o["seeds"], "--seeds", int)
        out = o["out"] or Path("runs") / o["recipe_file"].stem
        report = runner.run(session, recipe, seeds=seeds, only=o["rows"], out=out)
        print_result(o, report.as_json(), text.run_text)
