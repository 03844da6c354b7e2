"""Commands run in this process, and what they should say of a user's mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from cgd.cli import cli
from cgd.store.feature_store import FeatureStore
from cgd.types import Key

SMALL = "mobilenet-v1?width=0.25&size=64"
TEACHER = f"{SMALL}&weights=random"
LABEL = "mobilenet-v1-width-0.25"
CPU = ("--device", "cpu", "--workers", "0")
CROPS = ("--set", "extract.crop_size=64")


def cgd(*arguments: str) -> Result:
    """A command in the working directory; what escapes it is a bug and keeps its traceback here too."""
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: str) -> str:
    """The one sentence a quiet command leaves on standard error when it refuses."""
    result = cgd(*arguments, "-q")
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith((".", "?"))
    return line


def accepted(*arguments: str) -> dict[str, Any]:
    """The object a command prints."""
    result = cgd(*arguments, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def sealed(root: Path) -> list[Key]:
    return [e.key for e in FeatureStore.open(root).entries() if e.sealed]


def photos(folder: Path, *names: str, seed: int = 0) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([seed, number]).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def extract(*arguments: str, teachers: str = TEACHER) -> tuple[str, ...]:
    return ("extract-teachers", *arguments, "--teachers", teachers, *CPU)


def distill(*arguments: str, dataset: str = "lm@train") -> tuple[str, ...]:
    student = ("--student", "mobilenet-v1?width=0.25&dim=8&size=64", "--batch-pairs", "4", "--epochs", "1")
    return ("distill", "--dataset", dataset, *student, "--out", "student", *CPU, *arguments)


def benchmark(folder: Path, broken: str = "", gallery: str = "easy hard junk negative") -> str:
    """One query, and a gallery of one image each; the file of `broken` is no picture."""
    names = gallery.split()
    paths = ["query.png", *(f"{n}.png" for n in names)]
    every = ["query.png", "easy.png", "hard.png", "junk.png", "negative.png"]
    photos(folder, *every)
    if broken:
        (folder / f"{broken}.png").write_bytes(b"no picture")
    entry = {part: [names.index(part)] for part in ("easy", "hard", "junk") if part in names}
    gnd = {"imlist": paths[1:], "qimlist": ["query.png"], "gnd": [{"bbx": [2, 2, 20, 20], **entry}]}
    (folder / "gnd.json").write_text(json.dumps(gnd))
    rows = "".join(f"{p},{p}\n" for p in paths)
    (folder / "manifest.csv").write_text(f"image_id,path\n{rows}")
    return f"manifest:{folder / 'manifest.csv'}"


def evaluate(text: str, *arguments: str) -> tuple[str, ...]:
    return ("evaluate", "--teachers", TEACHER, "--benchmark", text, *CPU, *arguments)
