"""The commands about teachers: which there are, their published weights, and whether they are right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cgd.cli.options import Group, options, print_result, running, session_of


@click.group("teachers", cls=Group)
def teachers_group() -> None:
    """See which teachers there are, import their published weights, check them on this machine."""


@teachers_group.command("ls")
@options("weights")
def teachers_ls(**o: Any) -> None:
    """List the teachers: published file, where to get it, size of the descriptor, and whether it is here.

    \b
    cgd teachers ls --weights weights
    """
    from cgd.pipeline import teachers, text

    with running(o):
        print_result(o, teachers.list_teachers(o["weights"]), text.teachers_text)


@teachers_group.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--weights",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write NAME.safetensors to.  [default: that of FILE]",
)
@options()
def teachers_import(**o: Any) -> None:
    """Make NAME's weights from its published FILE; nothing in the file is executed.

    Every tensor is checked by name and shape. A whitening of Whiten-MTD (pca_weights/*.pt) goes into the store.

    \b
    cgd teachers import gem gl18-tl-resnet101-gem-w-a4d43db.pth --weights weights
    cgd teachers import dolg resnet101_dolg_pca_512d_gldv2_512x512_p3_global_randcrop.pt --weights weights
    """
    from cgd.pipeline import teachers, text

    with running(o):
        result = teachers.import_weights(session_of(o), o["name"], o["file"], o["weights"])
        print_result(o, result, text.import_text)


@teachers_group.command("check")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options("weights", "device")
def teachers_check(**o: Any) -> None:
    """Compare teachers on this machine's device with what their published code gave; exit status 1 if they differ.

    The network is filled by a fixed rule, so no weights are needed; imported ones in --weights are checked too.

    \b
    cgd teachers check gem --device cuda
    cgd teachers check
    """
    from cgd.pipeline import teachers, text

    with running(o):
        results = teachers.check_teachers(session_of(o), o["names"])
        print_result(o, results[0] if len(results) == 1 else {"teachers": results}, lambda _: text.check_text(results))
        if not all(result["passed"] for result in results):
            sys.exit(1)
