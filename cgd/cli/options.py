"""What the commands share: options, a user's problem in one sentence, and results as text or JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cgd import launch
from cgd.errors import CgdError, ElsewhereError

if TYPE_CHECKING:
    from cgd.config import Recipe
    from cgd.pipeline.steps import Session

Command = Callable[..., Any]


class Group(click.Group):
    """Commands in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


def options(*names: str) -> Callable[[Command], Command]:
    """The shared options `names`, then those of every command."""

    def decorate(command: Command) -> Command:
        for name in reversed([*names, "store", "upstream", "json", "quiet", "verbose", "debug"]):
            command = SHARED[name](command)
        return command

    return decorate


def _several(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options that come together."""

    def decorate(command: Command) -> Command:
        for each in reversed(decorators):
            command = each(command)
        return command

    return decorate


SHARED: dict[str, Callable[[Command], Command]] = {
    "store": click.option(
        "--store",
        "store_url",
        envvar="CGD_STORE",
        default="./features.zarr",
        show_default=True,
        help="Feature store, a folder or a URL: s3://, gs://, https:// (or CGD_STORE).",
    ),
    "upstream": click.option(
        "--upstream",
        multiple=True,
        metavar="URL",
        envvar="CGD_UPSTREAM",
        help="Read-only store behind the local one, repeatable (or CGD_UPSTREAM): what is missing is read from there.",
    ),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else there."
    ),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="Only errors on standard error."),
    "verbose": click.option("-v", "--verbose", is_flag=True, help="More on standard error."),
    "debug": click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    "device": click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i."),
    "engine": _several(
        click.option(
            "--engine",
            default="local",
            show_default=True,
            metavar="ENGINE",
            help="Who does the work: local, or ray[://HOST:PORT], a Ray cluster.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(1),
            help="Workers of the engine.  [default: local 1, ray as many as there is room for]",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1),
            help="Cores of each worker.  [default: local an equal share, ray 1]",
        ),
    ),
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
    "tensorboard": click.option(
        "--tensorboard", is_flag=True, help="Also write loss and learning rate for TensorBoard, beside the student."
    ),
    "teachers": click.option(
        "--teachers", default="", help="Names separated by commas; options after ?, e.g. 'mobilenet-v1?width=0.5'."
    ),
}


@contextlib.contextmanager
def running(o: dict[str, Any], *, several: bool = False) -> Iterator[None]:
    """Logging to standard error, and a user's problem as one sentence with exit status 1.

    `several` is whether the command is for the processes that torchrun starts, too.
    """
    if launch.several() and not several:
        raise click.UsageError("torchrun is for cgd distill; start this command alone (--part shares an extraction).")
    level = logging.ERROR if o["quiet"] or not launch.first() else logging.DEBUG if o["verbose"] else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for chatty in ("fsspec", "gcsfs", "s3fs"):  # what fails is told in one sentence
        logging.getLogger(chatty).addHandler(logging.NullHandler())
    logger = logging.getLogger("cgd")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    try:
        yield
    except ElsewhereError:
        sys.exit(1)
    except CgdError as error:
        if o["debug"]:
            raise
        click.echo(f"error: {error}".encode("utf-8", "backslashreplace").decode(), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted: what was finished is kept; the same command continues.", err=True)
        sys.exit(1)


def session_of(o: dict[str, Any], **extra: Any) -> Session:
    from cgd.engines import engine_of
    from cgd.pipeline.steps import Session

    return Session(
        o["store_url"],
        o["upstream"],
        weights=o.get("weights"),
        device=o.get("device", "auto"),
        workers=o.get("workers", 2),
        curves=o.get("tensorboard", False),
        engine=engine_of(o.get("engine", "local"), o.get("processes"), o.get("threads")),
        **extra,
    )


def recipe_of(o: dict[str, Any], file: Path | None = None) -> Recipe:
    from cgd.config import Recipe
    from cgd.pipeline.recipe import override, read_recipe

    return override(read_recipe(file) if file else Recipe(), o.get("settings", ()))


def names_in(text: str) -> tuple[str, ...]:
    """Names separated by commas; a comma between digits belongs to an option such as `mean=0.5,0.5,0.5`."""
    names: list[str] = []
    for part in filter(None, text.split(",")):
        if names and part.split("&")[0].replace(".", "").replace("e-", "").isdigit():
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)


def numbers_in(text: str, option: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(v) for v in filter(None, text.split(",")))
    except ValueError:
        raise click.UsageError(f"{option} {text}: expected numbers separated by commas.") from None


def part_of(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise click.UsageError(f"--part {text}: expected i/n with 1 <= i <= n.")
    return int(index), int(count)


def print_result(o: dict[str, Any], result: dict[str, Any], as_text: Callable[[dict[str, Any]], str]) -> None:
    if not launch.first():
        return
    text = json.dumps(result, ensure_ascii=False) if o["as_json"] else as_text(result)
    click.echo(text.encode("utf-8", "backslashreplace").decode())  # file names need not be text
