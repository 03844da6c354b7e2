"""The commands about trained students: which there are, and one as a file that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgd.cli.options import Group, numbers_in, options, print_result, running, session_of


@click.group("students", cls=Group)
def students_group() -> None:
    """See which students were trained, and export one to run it without cgd."""


@students_group.command("ls")
@options()
def students_ls(**o: Any) -> None:
    """List the students of the store: network, method, fusion, teachers, epochs.

    \b
    cgd students ls --store features.zarr
    """
    from cgd.pipeline import students

    with running(o):
        print_result(o, students.list_students(session_of(o)), students.students_text)


@students_group.command("export")
@click.argument("student", metavar="DIR")
@click.option("--format", "form", type=click.Choice(["onnx", "safetensors", "pt2"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE|FOLDER", help="Where to.  [default: DIR]")
@click.option("--scales", default="", help="Other scales than its own, e.g. 1 for one that is faster.")
@options()
def students_export(**o: Any) -> None:
    """Export the student in DIR (a folder, or a key of the store) as one file, for images of any size.

    onnx and pt2 hold the network with normalisation, scales and l2: RGB pixels in, unit descriptors out. The script
    sample.py beside them prepares images and runs them, without cgd. safetensors holds the tensors alone, and needs the
    architecture. Every file is reopened and compared with the student before it is kept.

    \b
    cgd students export student --format onnx
    cgd students export student --format pt2 --out deploy/student.pt2 --scales 1
    """
    from cgd.pipeline import students

    with running(o):
        scales = numbers_in(o["scales"], "--scales", float)
        result = students.export_student(session_of(o), o["student"], o["form"], o["out"], scales)
        print_result(o, result, students.export_text)
