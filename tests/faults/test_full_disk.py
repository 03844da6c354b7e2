"""A full disk is one clear sentence; nothing stored is lost, and the same command continues to the same bytes."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cgd.cli import cli
from cgd.errors import StoreError
from cgd.store import files
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import Key

STORE = "features.zarr"
IDENTITY = identify("whitened", ["small"], 1, {"small": True})
ARRAYS = {
    "ids": np.array(["a", "é", "c"], dtype=object),
    "vectors": np.arange(6, dtype=np.float16).reshape(3, 2),
    "valid": np.array([True, False, True]),
    "digests": np.zeros((3, 32), np.uint8),
}


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A disk that takes `count` uses of `call` (write, fsync, link or mkdir) and is full from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, count: int) -> None:
        self.left, self.met = count, 0
        if call == "write":
            monkeypatch.setattr(files, "open", self.open, raising=False)
        else:
            target = Path if call == "mkdir" else os
            monkeypatch.setattr(target, call, self.failing(getattr(target, call)))

    def failing(self, real):
        def call(*arguments, **options):
            self.left -= 1
            if self.left < 0:
                self.met += 1
                raise full()
            return real(*arguments, **options)

        return call

    def open(self, path, mode):
        """A file that may take half of what is written to it."""
        file = _File(path, mode)
        self.left -= 1
        if self.left < 0:
            self.met += 1
            file.full = True
        return file


class _File(io.FileIO):
    full = False

    def write(self, data):
        if not self.full:
            return super().write(data)
        super().write(data[: len(data) // 2])
        raise full()


def write(root: Path) -> None:
    store = FeatureStore.open(root, write=True)
    writer = store.writer(IDENTITY, {n: a.shape for n, a in ARRAYS.items()}, shard_rows=2)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        writer.write(shard, {n: a[rows.start : rows.stop] for n, a in ARRAYS.items()})
    writer.seal()


def standing(root: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def assert_one_sentence(errors: str, *parts: str) -> None:
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert errors.rstrip().endswith(line)
    for part in parts:
        assert part in line


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def refused(root: Path) -> StoreError | None:
    try:
        write(root)
    except StoreError as error:
        return error
    return None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("call", ["write", "fsync", "link", "mkdir"])
def test_a_disk_that_fills_at_any_moment_costs_nothing_but_a_repetition(tmp_path, monkeypatch, tree, call):
    write(tmp_path / "whole")
    undisturbed = tree(tmp_path / "whole")
    for count in range(0, 400, 3):
        root = tmp_path / str(count)
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, call, count)
            error = refused(root)
        if error is None:
            assert not disk.met, f"use {count} of {call} failed unnoticed"
            break
        assert disk.met, "the disk was not full"
        assert "No space left on device; nothing stored is lost" in str(error)
        assert "\n" not in str(error)
        assert list((root / ".cgd").glob("tmp/*")) == []
        assert tree(root).items() <= undisturbed.items()
        before = standing(root)
        write(root)
        assert before.items() <= standing(root).items()
        assert tree(root) == undisturbed
    assert count > 10


@pytest.mark.usefixtures("quick")
def test_other_artifacts_stay_readable_on_a_full_disk(tmp_path, monkeypatch):
    write(tmp_path)
    FullDisk(monkeypatch, "write", 0)
    with pytest.raises(StoreError, match="No space left"):
        FeatureStore.open(tmp_path, write=True).write_whole(identify("whitened", ["other"], 1, {}), ARRAYS)
    store = FeatureStore.open(tmp_path)
    np.testing.assert_array_equal(store.get(IDENTITY.key).read("vectors"), ARRAYS["vectors"])
    assert [e.key for e in store.entries() if e.sealed] == [IDENTITY.key]


def test_an_extraction_onto_a_full_disk_stops_and_continues(command, tree, tmp_path):
    limited = [a if not a.startswith("--shard-rows") else "--shard-rows=8" for a in command.extract]
    stopped = command(tmp_path, limited, limit=12000)  # a shard of 8 rows of 512 numbers is longer, canaries are not
    assert stopped.code == 1
    assert stopped.output == ""
    assert_one_sentence(stopped.errors, "cannot write embeddings/", "File too large", "repeat the same command")
    assert list((tmp_path / STORE / ".cgd/tmp").iterdir()) == []
    before = standing(tmp_path / STORE)
    assert len([p for p in before if "receipts" in p.parts]) > 1
    assert command(tmp_path, limited).code == 0
    assert before.items() <= standing(tmp_path / STORE).items()
    (tmp_path / "whole").mkdir()
    assert command(tmp_path / "whole", limited).code == 0
    assert tree(tmp_path / STORE) == tree(tmp_path / "whole" / STORE)


@pytest.fixture
def untrained(undisturbed, tmp_path):
    """A folder in which all is done but the student."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "student")
    for place in (".cgd/receipts", ".cgd/seals", "."):
        shutil.rmtree(tmp_path / STORE / place / "students")
    return tmp_path


@pytest.mark.parametrize("limit", [1_000, 2_000_000], ids=["targets", "training state"])
def test_a_training_on_a_full_disk_stops_and_continues(command, undisturbed, untrained, limit):
    recipe = command.recipe.distill
    distill = [
        "distill", "--dataset=lm@train", f"--student={recipe.student}", f"--epochs={recipe.epochs}",
        f"--batch-pairs={recipe.batch_pairs}", f"--set=distill.image_size={recipe.image_size}",
        "--out=student/student-seed0", "--device=cpu", "--workers=1",
    ]  # fmt: skip
    stopped = command(untrained, distill, limit=limit)
    assert stopped.code == 1
    assert_one_sentence(stopped.errors, "cannot write", "File too large")
    assert list((untrained / "student").rglob("*.safetensors")) == []
    continued = command(untrained, distill)
    assert continued.code == 0, continued.errors
    path = "student/student-seed0/model.safetensors"
    assert (untrained / path).read_bytes() == (undisturbed / path).read_bytes()
    (name,) = os.listdir(undisturbed / STORE / ".cgd/seals/students")
    assert FeatureStore.open(untrained / STORE).is_sealed(Key.parse(f"students/{name.removesuffix('.json')}"))


@pytest.mark.parametrize("name", ["roots.yaml", "recipe.yaml"])
def test_small_files_of_a_run_do_not_fit_either(undisturbed, tmp_path, monkeypatch, name):
    shutil.copy(undisturbed / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    replace = Path.replace

    def replace_or_fail(self, target):
        if self.name.startswith(name):
            raise full()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    data = next(line for line in (undisturbed / ".cgd/roots.yaml").read_text().split() if line.startswith("manifest:"))
    done = CliRunner().invoke(cli, ["run", "tiny.yaml", f"--data=lm={data}", "--device=cpu"])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert_one_sentence(done.stderr, name, "No space left on device")
    assert list(tmp_path.rglob("*.part")) == []
