"""Commands that are killed, starved or doubled, and what the same commands leave where nothing happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cgd.config import Recipe
from cgd.pipeline.recipe import override, to_yaml

INTERRUPTIBLE = Path(__file__).with_name("interruptible.py")
SHARD_ROWS = 4  # six shards of the 24 training images


class Command:
    """`cgd` as a process in a folder of its own, on one thread; every process it starts is ended by its id."""

    def __init__(self, manifest: Path, recipe: Recipe) -> None:
        self.data, self.recipe = f"manifest:{manifest}", recipe
        self.started: list[subprocess.Popen[str]] = []
        self.extract = [
            "extract-teachers", f"--dataset={self.data}", "--name=lm", "--split=train", f"--shard-rows={SHARD_ROWS}",
            f"--teachers={','.join(recipe.extract.teachers)}", f"--views={recipe.extract.views}",
            f"--set=extract.crop_size={recipe.extract.crop_size}", "--device=cpu", "--workers=1", "--json",
        ]  # fmt: skip
        self.run = ["run", "tiny.yaml", f"--data=lm={self.data}", "--out=student", "--device=cpu", "--workers=1"]

    def begin(self, folder: Path, arguments: Sequence[str], **harm: object) -> subprocess.Popen[str]:
        (folder / "tmp").mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(to_yaml(self.recipe))
        told = {name.upper(): str(value) for name, value in harm.items()}
        process = subprocess.Popen(
            [sys.executable, INTERRUPTIBLE, *arguments],
            cwd=folder,
            env={**os.environ, **told, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def __call__(self, folder: Path, arguments: Sequence[str], **harm: object) -> subprocess.CompletedProcess[str]:
        process = self.begin(folder, arguments, **harm)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="session")
def command(drawn: Path, tiny_recipe: Recipe) -> Iterator[Command]:
    command = Command(drawn / "manifest.csv", override(tiny_recipe, ["extract.views=1"]))
    yield command
    for process in command.started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which extraction and the whole recipe ran, one after the other."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for arguments in (command.extract, command.run):
        done = command(folder, arguments)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def tree() -> Callable[..., dict[str, bytes]]:
    """The bytes of every file of a store by path, without who wrote them when; perhaps only some of them."""

    def read(root: Path, *parts: str) -> dict[str, bytes]:
        paths = sorted(p for p in root.rglob("*") if p.is_file())
        named = {p.relative_to(root).as_posix(): p for p in paths}
        wanted = {n: p for n, p in named.items() if not n.startswith((".cgd/provenance/", ".cgd/tmp/"))}
        return {n: p.read_bytes() for n, p in wanted.items() if not parts or any(part in n for part in parts)}

    return read


@pytest.fixture(scope="session")
def orphans() -> Callable[[Path], list[int]]:
    """Ids of the processes that a killed command left behind and that do not end by themselves; ends them."""

    def left(folder: Path) -> list[int]:
        noted = [int(text) for text in (folder / "children").read_text().split()]
        deadline = time.monotonic() + 5
        while any(map(_alive, noted)) and time.monotonic() < deadline:
            time.sleep(0.05)
        remaining = [process for process in noted if _alive(process)]
        for process in remaining:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return remaining

    return left


def _alive(process: int) -> bool:
    """Whether it runs; one that ended and waits for its new parent to notice does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
