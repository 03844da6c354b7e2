"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cgd.errors import CgdError

if TYPE_CHECKING:
    from cgd.config import Recipe
    from cgd.pipeline.steps import Session

Command = Callable[..., Any]


class _Group(click.Group):
    """Commands in the order of the work, and errors of the user's as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cgd")
def cli() -> None:
    """Distil heavy image-retrieval networks into one light network, offline.

    \b
    Every teacher looks at every training image once; its embeddings go into a feature store;
    students train against the store with no teacher in memory; mAP is scored exactly.

    \b
    cgd demo                                             the whole path on drawn images
    cgd run recipes/grocery.yaml --data grocery=manifest:photos/manifest.csv --weights weights
    """


def _options(*names: str) -> Callable[[Command], Command]:
    """The shared options `names`, then those of every command."""

    def decorate(command: Command) -> Command:
        for name in reversed([*names, "store", "json", "quiet", "verbose", "debug"]):
            command = _SHARED[name](command)
        return command

    return decorate


_SHARED: dict[str, Callable[[Command], Command]] = {
    "store": click.option(
        "--store",
        "store_url",
        envvar="CGD_STORE",
        default="./features.zarr",
        show_default=True,
        help="Feature store (or CGD_STORE).",
    ),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else there."
    ),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="Only errors on standard error."),
    "verbose": click.option("-v", "--verbose", is_flag=True, help="More on standard error."),
    "debug": click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    "device": click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i."),
    "workers": click.option(
        "--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that decode images."
    ),
    "weights": click.option(
        "--weights", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of weights files."
    ),
    "dataset": click.option("--dataset", required=True, help="KIND:PATH the first time, then NAME or NAME@SPLIT."),
    "name": click.option("--name", help="Name of the data set (default: its folder's)."),
    "set": click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any setting of the recipe, e.g. distill.epochs=5.",
    ),
    "dry-run": click.option("--dry-run", is_flag=True, help="Tell bytes, free disk and expected time; store nothing."),
    "teachers": click.option(
        "--teachers", default="", help="Names separated by commas; options after ?, e.g. 'mobilenet-v1?width=0.5'."
    ),
}


@cli.command("extract-teachers")
@_options("dataset", "name", "teachers", "weights", "device", "workers", "set", "dry-run")
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

    with _command(o):
        recipe = _recipe(o)
        teachers = _names(o["teachers"]) or recipe.extract.teachers
        recipe = change(recipe, "extract", teachers=teachers, views=o["views"], precision=o["precision"])
        session = _session(o, part=_part(o["part"]), batch_size=o["batch_size"], shard_rows=o["shard_rows"])
        images = session.workspace.images(o["dataset"], o["name"], o["split"])
        if o["dry_run"]:
            _print(o, steps.estimate_extraction(session, images, recipe.extract), text.estimate_text)
            return
        report = steps.extract_teachers(session, images, recipe.extract)
        _print(o, report.as_json(), text.extract_text)


@cli.command("fit-whitening")
@_options("dataset", "teachers", "set")
@click.option("--dim", type=click.IntRange(1), help="Dimensions to keep.  [default: 512]")
@click.option("--kind", type=click.Choice(["pca"]), help="Which whitening.  [default: pca]")
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

    with _command(o):
        recipe = change(_recipe(o), "whiten", dim=o["dim"], kind=o["kind"], samples=o["samples"])
        name, _, split = o["dataset"].partition("@")
        session = _session(o)
        if o["apply_key"]:
            keys = steps.apply_to(session, o["apply_key"], name, split or None)
            _print(
                o,
                {view: str(key) for view, key in keys.items()},
                lambda r: "\n".join(f"{v}: {k}" for v, k in r.items()),
            )
            return
        teachers = select.teachers_of(session.store(), name, split or None, _names(o["teachers"]))
        done = steps.fit_whitening(session, teachers, recipe.whiten)
        result = {label: {kind: r.as_json() for kind, r in reports.items()} for label, (reports, _) in done.items()}
        _print(o, result, text.whitening_text)


@cli.command()
@_options("dataset", "name", "teachers", "weights", "device", "workers", "set", "dry-run")
@click.option("--whitening", help="Which whitening (part of its key), where there are several.")
@click.option("--method", help="Distillation method.  [default: whiten-mtd]")
@click.option("--fusion", help="How teachers are combined.  [default: max-min]")
@click.option("--student", help="Student network.  [default: resnet18]")
@click.option("--init", help="Pretrained weights of the student's trunk.")
@click.option("--epochs", type=click.IntRange(1), help="[default: 200]")
@click.option("--batch-pairs", type=click.IntRange(2), help="Pairs per batch.  [default: 256]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the student.")
def distill(**o: Any) -> None:
    """Train a student against the stored teachers; the same command continues an interrupted run.

    \b
    cgd distill --dataset photos --student resnet18 --init resnet18.pth --epochs 20 --out student
    """
    from cgd.pipeline import steps, text
    from cgd.pipeline.recipe import change
    from cgd.stages import select

    with _command(o):
        fields = ("method", "fusion", "student", "init", "epochs", "batch_pairs")
        recipe = change(_recipe(o), "distill", **{name: o[name] for name in fields})
        session = _session(o)
        images = session.workspace.images(o["dataset"], o["name"])
        vectors = select.whitened_of(session.store(), images.name, images.split, _names(o["teachers"]), o["whitening"])
        if o["dry_run"]:
            _print(o, steps.estimate_distillation(session, images, vectors, recipe, o["out"]), text.training_text)
            return
        report = steps.distill(session, images, vectors, recipe, o["out"])
        _print(o, report.as_json(), text.student_text)


@cli.command()
@_options("weights", "teachers", "device", "workers", "set", "name")
@click.option("--student", help="Folder of a student, or its key.")
@click.option("--benchmark", required=True, help="KIND:PATH the first time, then NAME.")
@click.option("--whitening", help="Data set (or key) whose whitening the teachers go through.")
@click.option("--ensemble", is_flag=True, help="Also the mean of the teachers' similarities.")
@click.option(
    "--distractors", multiple=True, metavar="KIND:PATH|NAME|random:N", help="Add these to the gallery; repeatable."
)
@click.option("--scales", default="", help="Scales of the student, e.g. 1,0.7071,0.5.  [default: its own]")
@click.option(
    "--queries", type=click.Choice(["cropped", "full", "both"]), help="Cut queries to their boxes.  [default: cropped]"
)
def evaluate(**o: Any) -> None:
    """Score a student or teachers by mAP, with the protocol beside the score.

    \b
    cgd evaluate --student student --benchmark roxford5k:data --queries both
    cgd evaluate --teachers gem --weights weights --whitening photos --benchmark roxford5k:data
    """
    from cgd.pipeline import steps, text
    from cgd.pipeline.recipe import change

    with _command(o):
        recipe = change(_recipe(o), "evaluate", queries=o["queries"], distractors=o["distractors"] or None)
        teachers = _names(o["teachers"])
        if bool(teachers) == bool(o["student"]):
            raise click.UsageError("give either --student or --teachers.")
        session = _session(o)
        benchmark = session.workspace.benchmark(o["benchmark"], o["name"])
        scales = _numbers(o["scales"], "--scales", float)
        if o["student"]:
            sources = [steps.load_student(session, o["student"], scales)]
        else:
            sources = steps.teacher_sources(session, teachers)
        results = steps.evaluate(
            session,
            benchmark,
            sources,
            recipe.evaluate,
            whitening=o["whitening"],
            ensemble=o["ensemble"],
            extract_config=recipe.extract,
        )

        _print(o, results[0] if len(results) == 1 else {"runs": results}, lambda _: text.scores_text(results))


@cli.command()
@_options("weights", "device", "workers", "set", "dry-run")
@click.argument("recipe_file", metavar="RECIPE.yaml", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--data", multiple=True, metavar="NAME=KIND:PATH", help="Where a data set of the recipe is; repeatable, remembered."
)
@click.option("--seeds", default="", help="Seeds separated by commas: one student each.  [default: the recipe's]")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the students.  [default: runs/<recipe>]"
)
def run(**o: Any) -> None:
    """Run a recipe from photographs to scores; nothing is done twice.

    \b
    cgd run recipes/grocery.yaml --data grocery=manifest:photos/manifest.csv --weights weights --seeds 0,1,2
    """
    from cgd.pipeline import runner, steps, text

    with _command(o):
        recipe = _recipe(o, o["recipe_file"])
        session = _session(o)
        for item in o["data"]:
            name, equals, spec = item.partition("=")
            if not equals:
                raise click.UsageError(f"--data {item}: expected NAME=KIND:PATH.")
            session.workspace.introduce(name, spec)
        if o["dry_run"]:
            images = session.workspace.images(recipe.data.train)
            _print(o, steps.estimate_extraction(session, images, recipe.extract), text.estimate_text)
            return
        seeds = _numbers(o["seeds"], "--seeds", int)
        report = runner.run(session, recipe, seeds=seeds, out=o["out"] or Path("runs") / o["recipe_file"].stem)
        _print(o, report.as_json(), text.run_text)


@cli.command()
@_options("device", "workers")
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

    with _command(o):
        session = _session(
            {**o, "store_url": str(o["out"] / "features.zarr")}, workspace=Workspace(o["out"] / ".cgd/roots.yaml")
        )
        _print(o, demonstration.demo(session, o["out"]).as_json(), text.run_text)


@cli.group("store", cls=_Group)
def store_group() -> None:
    """Look into a feature store and check it."""


@store_group.command("ls")
@_options()
def store_ls(**o: Any) -> None:
    """List the artifacts, sealed or begun.

    \b
    cgd store ls --store features.zarr
    """
    from cgd.pipeline import text
    from cgd.store.feature_store import FeatureStore

    with _command(o):
        entries = [
            {"key": str(e.key), "sealed": e.sealed, "shards": e.shards_done}
            for e in FeatureStore.open(o["store_url"]).entries()
        ]
        _print(o, {"artifacts": entries}, text.store_text)


@store_group.command("info")
@click.argument("key")
@_options()
def store_info(**o: Any) -> None:
    """Show what an artifact holds and what determined it; a part of its key will do.

    \b
    cgd store info whitening/photos
    """
    from cgd.store.feature_store import FeatureStore
    from cgd.store.layout import LAYOUT

    with _command(o):
        store = FeatureStore.open(o["store_url"])
        artifact = store.get(store.resolve(o["key"], tuple(LAYOUT)))
        result = {
            "key": str(artifact.key),
            "bytes": artifact.size,
            "arrays": {name: list(artifact.shape(name)) for name in artifact.arrays},
            "files": artifact.blobs,
            **artifact.attributes,
            "provenance": store.provenance(artifact.key),
        }
        _print(o, result, lambda r: json.dumps(r, indent=2, ensure_ascii=False))


@store_group.command("verify")
@click.argument("key", required=False)
@_options()
def store_verify(**o: Any) -> None:
    """Read everything and name each damaged shard; exit status 1 if there is one.

    \b
    cgd store verify
    """
    from cgd.store.feature_store import FeatureStore
    from cgd.store.layout import LAYOUT

    with _command(o):
        store = FeatureStore.open(o["store_url"])
        key = store.resolve(o["key"], tuple(LAYOUT)) if o["key"] else None
        found = {str(k): problems for k, problems in store.verify(key)}
        bad = sum(map(len, found.values()))
        _print(
            o,
            {"artifacts": len(found), "problems": [p for problems in found.values() for p in problems]},
            lambda r: "\n".join([*r["problems"], f"{r['artifacts']} artifacts read, {bad} problems"]),
        )
        if bad:
            sys.exit(1)


@contextlib.contextmanager
def _command(o: dict[str, Any]) -> Iterator[None]:
    """Logging to standard error, and a user's problem as one sentence with exit status 1."""
    level = logging.ERROR if o["quiet"] else logging.DEBUG if o["verbose"] else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("cgd")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    try:
        yield
    except CgdError as error:
        if o["debug"]:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted: what was finished is kept; the same command continues.", err=True)
        sys.exit(1)


def _session(o: dict[str, Any], **extra: Any) -> Session:
    from cgd.pipeline.steps import Session

    return Session(
        o["store_url"], weights=o.get("weights"), device=o.get("device", "auto"), workers=o.get("workers", 2), **extra
    )


def _recipe(o: dict[str, Any], file: Path | None = None) -> Recipe:
    from cgd.config import Recipe
    from cgd.pipeline.recipe import override, read_recipe

    return override(read_recipe(file) if file else Recipe(), o.get("settings", ()))


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas; a comma between digits belongs to an option such as `mean=0.5,0.5,0.5`."""
    names: list[str] = []
    for part in filter(None, text.split(",")):
        if names and part.split("&")[0].replace(".", "").replace("e-", "").isdigit():
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)


def _numbers(text: str, option: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(v) for v in filter(None, text.split(",")))
    except ValueError:
        raise click.UsageError(f"{option} {text}: expected numbers separated by commas.") from None


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise click.UsageError(f"--part {text}: expected i/n with 1 <= i <= n.")
    return int(index), int(count)


def _print(o: dict[str, Any], result: dict[str, Any], as_text: Callable[[dict[str, Any]], str]) -> None:
    click.echo(json.dumps(result, ensure_ascii=False) if o["as_json"] else as_text(result))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `cgd` command."""
    cli.main(args=arguments, prog_name="cgd")


if __name__ == "__main__":
    main()
