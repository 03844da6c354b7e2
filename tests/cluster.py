"""A Ray cluster of several nodes on loopback, started as users start one; nodes can be killed and added."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

MEMORY = 80 * 2**20  # of each node's shared memory, about the least that Ray takes
HEAD = "127.0.0.2"  # Ray takes 127.0.0.1 for the address that others reach; each node has a loopback address of its own


@dataclass
class Nodes:
    """A head that only holds the cluster together, and nodes of one core each, by process group."""

    port: int
    environment: dict[str, str]
    begun: int = 0
    head: subprocess.Popen[bytes] | None = None
    alive: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A node that is running."""
        self.begun += 1
        ray, place = Path(sys.executable).with_name("ray"), f"127.0.0.{1 + self.begun}"
        command = [ray, "start", "--block", "--disable-usage-stats", f"--node-ip-address={place}",
                   f"--object-store-memory={MEMORY}", *arguments]  # fmt: skip
        log = subprocess.PIPE
        node = subprocess.Popen(
            command, env=self.environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
        assert node.stdout is not None
        told = []
        for line in node.stdout:
            told.append(line)
            if b"Ray runtime started" in line:
                threading.Thread(target=read_on, args=(node.stdout,)).start()
                return node
        raise AssertionError(b"".join(told).decode())

    def add(self) -> None:
        self.alive.append(self.start(f"--address={self.address}", "--num-cpus=1"))

    def kill(self, number: int) -> None:
        """End a node's processes as a power cut would."""
        end(self.alive.pop(number))


def end(node: subprocess.Popen[bytes]) -> None:
    os.killpg(node.pid, signal.SIGKILL)
    node.wait()


def read_on(output: IO[bytes]) -> None:
    with output:
        output.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HEAD, 0))
        return int(probe.getsockname()[1])


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """A cluster of `count` nodes, whose workers see the tests' modules; this process may join it."""
    ray = pytest.importorskip("ray")
    root = Path(__file__).resolve().parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root, root / "tests", root / "benchmarks"))))
        patch.syspath_prepend(root / "benchmarks")  # there is a teacher that takes its time
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", place := tempfile.mkdtemp(prefix="ray"))  # a longer path is too long for sockets
        patch.delenv("RAY_ADDRESS", raising=False)
        found = Nodes(free_port(), dict(os.environ))
        try:
            found.head = found.start("--head", f"--port={found.port}", "--num-cpus=0", "--include-dashboard=false")
            for _ in range(count):
                found.add()
            yield found
        finally:
            ray.shutdown()
            for node in [*found.alive, *([found.head] if found.head else [])]:
                end(node)
            shutil.rmtree(place, ignore_errors=True)
