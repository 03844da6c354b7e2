"""Commands that are killed, starved or doubled, and what the same commands leave where nothing happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import CPU, CROPS, TEACHER, accepted, sealed

from cgd.config import Recipe
from cgd.pipeline.recipe import override, to_yaml
from cgd.store.feature_store import FeatureStore

SHARD_ROWS = 4  # six shards of the 24 training images
Arguments = Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, standard output and standard error."""

    code: int
    output: str
    errors: str


class Command:
    """Runs `cgd` in processes on one thread; see `interruptible.py`."""

    def __init__(self, server: subprocess.Popen[str], manifest: Path, recipe: Recipe) -> None:
        self.server, self.data, self.recipe = server, f"manifest:{manifest}", recipe
        device = ["--device=cpu", "--workers=1"]
        self.extract = [
            "extract-teachers", f"--dataset={self.data}", "--name=lm", "--split=train", f"--shard-rows={SHARD_ROWS}",
            f"--teachers={','.join(recipe.extract.teachers)}", f"--views={recipe.extract.views}",
            f"--set=extract.crop_size={recipe.extract.crop_size}", "--json", *device,
        ]  # fmt: skip
        self.run = ["run", "tiny.yaml", f"--data=lm={self.data}", "--out=student", *device]

    def __call__(self, folder: Path, arguments: Arguments, **harm: object) -> Outcome:
        return self.together(folder, [arguments], **harm)[0]

    def together(self, folder: Path, commands: Sequence[Arguments], **harm: object) -> list[Outcome]:
        """Several commands in one folder at the same time."""
        assert self.server.stdin
        assert self.server.stdout
        (folder / "tmp").mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(to_yaml(self.recipe))
        jobs = [{"folder": str(folder), "name": str(n), "arguments": a, **harm} for n, a in enumerate(commands)]
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        texts = [[(folder / f"{n}.{kind}").read_text() for kind in ("out", "err")] for n in range(len(commands))]
        return [Outcome(code, *text) for code, text in zip(codes, texts, strict=True)]


@pytest.fixture(scope="session")
def command(drawn: Path, tiny_recipe: Recipe) -> Iterator[Command]:
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("interruptible.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:  # at the end its input is closed, and it ends
        yield Command(server, drawn / "manifest.csv", override(tiny_recipe, ["extract.views=1"]))


@pytest.fixture(scope="session")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which extraction and the whole recipe ran, one after the other."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for arguments in (command.extract, command.run):
        done = command(folder, arguments)
        assert done.code == 0, done.errors
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
        deadline = time.monotonic() + 10
        while any(map(_alive, noted)) and time.monotonic() < deadline:
            time.sleep(0.02)
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


@pytest.fixture(scope="module")
def prepared(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the training images are extracted and whitened."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ("--dataset", f"manifest:{drawn / 'manifest.csv'}", "--name", "lm", "--split", "train")
        accepted("extract-teachers", *data, "--teachers", TEACHER, "--views", "1", *CROPS, *CPU)
        accepted("fit-whitening", "--dataset", "lm@train", "--dim", "8")
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the prepared folder, worked in; afterwards all it held is whole."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    before = sealed(folder / "features.zarr")
    assert len(before) == 9
    yield folder
    store = FeatureStore.open(folder / "features.zarr")
    assert [problems for key in before for _, problems in store.verify(key)] == [[]] * len(before)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
