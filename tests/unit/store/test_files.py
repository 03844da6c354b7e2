"""Publication: whole or not at all, the first one wins, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from cgd.errors import StoreError
from cgd.store.files import TEMPORARY, LocalFiles, here

RACER = """
import sys, time
from pathlib import Path
from cgd.store.files import LocalFiles
root, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
files = LocalFiles(root, write=True)
(root.parent / f"ready-{name}").touch()
while not (root.parent / "go").exists():
    time.sleep(0.001)
print(*[n for n in range(count) if files.publish(f"kind/{n}/zarr.json", name.encode() * 50_000)])
"""


def leftovers(root: Path) -> list[Path]:
    return list((root / TEMPORARY).iterdir())


def test_published_bytes_are_read_back_and_nothing_else_remains(tmp_path):
    files = LocalFiles(tmp_path / "new/store", write=True)
    assert files.publish("a/b/c", b"\0whole") is True
    assert files.read("a/b/c") == b"\0whole"
    assert files.exists("a/b/c")
    assert files.size("a/b/c") == 6
    assert files.children("a") == ["b"]
    assert leftovers(files.root) == []


def test_what_stands_is_never_overwritten(tmp_path):
    files = LocalFiles(tmp_path, write=True)
    files.publish("a", b"first")
    before = (tmp_path / "a").stat()
    assert files.publish("a", b"second") is False
    assert files.read("a") == b"first"
    after = (tmp_path / "a").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (before.st_ino, before.st_mtime_ns, 1)
    assert leftovers(tmp_path) == []


def test_a_read_only_store_writes_nothing_and_says_so(tmp_path):
    files = LocalFiles(tmp_path / "store")
    with pytest.raises(StoreError, match=r"reading only; cannot write a/b\."):
        files.publish("a/b", b"x")
    assert not (tmp_path / "store").exists()


def test_children_of_no_folder_are_none(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    files = LocalFiles(tmp_path)
    assert files.children("absent") == files.children("file") == []


def test_of_many_threads_one_wins_and_the_others_know(tmp_path):
    files, threads, start = LocalFiles(tmp_path, write=True), 8, Barrier(8)

    def race(number: int) -> list[bool]:
        start.wait()
        return [files.publish(f"{path}/zarr.json", bytes([number]) * 1000) for path in range(10)]

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(race, range(threads)))
    for path in range(10):
        winners = [number for number, won in enumerate(results) if won[path]]
        assert len(winners) == 1
        assert files.read(f"{path}/zarr.json") == bytes(winners) * 1000
    assert leftovers(tmp_path) == []


def test_of_two_processes_one_wins_and_the_other_knows(tmp_path):
    root, count = tmp_path / "store", 40
    command = [sys.executable, "-c", RACER, str(root)]
    racers = {n: subprocess.Popen([*command, n, str(count)], stdout=subprocess.PIPE, text=True) for n in "ab"}
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"ready-{n}").exists() for n in racers) and time.monotonic() < deadline:
            time.sleep(0.005)
        (tmp_path / "go").touch()
        won = {n: {int(w) for w in p.communicate(timeout=60)[0].split()} for n, p in racers.items()}
    finally:
        for process in racers.values():
            process.kill()
            process.wait()
    assert won["a"].isdisjoint(won["b"])
    assert won["a"] | won["b"] == set(range(count))
    for name, paths in won.items():
        assert all((root / f"kind/{n}/zarr.json").read_bytes() == name.encode() * 50_000 for n in paths)
    assert leftovers(root) == []


def test_bytes_reach_the_disk_before_their_name_and_the_name_before_success(tmp_path, monkeypatch):
    steps: list[str] = []
    sync, link = os.fsync, os.link

    def watched_sync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}")) if sys.platform == "linux" else None
        steps.append("sync bytes" if path is None or path.is_file() else f"sync {path.relative_to(tmp_path)}")
        sync(handle)

    def watched_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "link", watched_link)
    LocalFiles(tmp_path, write=True).publish("kind/name", b"x")
    if sys.platform == "linux":
        assert steps[-3:] == ["sync bytes", "link", "sync kind"]
        assert "sync ." in steps[:-3]  # the new folder itself


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_failing_step_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, step, reason):
    files = LocalFiles(tmp_path, write=True)
    files.publish("kind/first", b"kept")  # the folders stand

    def fail(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StoreError, match="repeat the same command") as caught:
        files.publish("kind/second", b"x" * 100)
    assert os.strerror(reason) in str(caught.value)
    assert "kind/second" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files.children("kind") == ["first"]
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    assert files.publish("kind/second", b"x" * 100) is True


def test_an_interruption_leaves_neither_name_nor_temporary_file(tmp_path, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    files = LocalFiles(tmp_path, write=True)
    files.publish("first", b"")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.publish("second", b"x")
    assert not files.exists("second")
    assert leftovers(tmp_path) == []


def test_temporary_files_of_dead_processes_are_swept_and_no_others(tmp_path):
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    host, folder = here(), tmp_path / TEMPORARY
    folder.mkdir(parents=True)
    container, old = f"{socket.gethostname()}~another", f"{socket.gethostname()}~before"
    stale = [f"{host}-{ended.pid}-00c0ffee", f"{old}-{ended.pid}-00c0ffee"]
    kept = [f"{host}-{os.getpid()}-00c0ffee", f"{host}-1-00c0ffee", f"elsewhere-{ended.pid}-00c0ffee", "something else"]
    kept.append(f"{container}-{ended.pid}-00c0ffee")  # its processes are not ours to see
    for name in stale + kept:
        (folder / name).write_bytes(b"half a sha")
    os.utime(folder / stale[1], (0, 0))
    LocalFiles(tmp_path, write=True).sweep()
    assert sorted(os.listdir(folder)) == sorted(kept)


def test_sweeping_where_there_is_nothing_does_nothing(tmp_path):
    LocalFiles(tmp_path / "absent", write=True).sweep()
    assert not (tmp_path / "absent").exists()
