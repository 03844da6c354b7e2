"""A Ray cluster as an engine: how this process joins it."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.engines import Engine, Opened, Pool, Work
from cgd.errors import EngineError, InputError

if TYPE_CHECKING:  # without Ray there is none
    from cgd.engines.cluster import Crew

PORT = 6379  # where `ray start --head` listens
CONNECT_SECONDS = 10.0


class Ray(Engine):
    """The cluster at `address` (HOST:PORT), or the one this machine is in, or one of this machine alone.

    `processes` bounds the number of workers (none: as many as there is room for), `threads` are a worker's cores.
    Workers stay until the engine is forgotten, so that stage after stage finds them ready.
    """

    elsewhere = True

    def __init__(self, address: str | None = None, processes: int | None = None, threads: int = 1) -> None:
        self.address = address
        self.processes = processes
        self.threads = threads
        self._crew: Crew | None = None

    def start(self, work: Work[Opened], *, gpus: bool = False, apart: bool = False) -> Pool[Opened]:  # noqa: ARG002
        _connect(self.address)
        from cgd.engines.cluster import Cluster, Crew

        needs = ("GPU", 1) if gpus else ("CPU", self.threads)
        if self._crew is None or self._crew.taken or (self._crew.resource, self._crew.each) != needs:
            self._crew = None  # gives back what it has before others ask for it
            self._crew = Crew(*needs, self.processes)
        return Cluster(work, self._crew)

    def device(self, name: str) -> str:
        """A GPU where the cluster has one, or where one was asked for and is there."""
        if name == "cpu":
            return name
        _connect(self.address)
        from cgd.engines.cluster import alive, names_of

        nodes = alive()
        gpus = any(node["Resources"].get("GPU", 0) for node in nodes.values())
        if name == "auto":
            return "cuda" if gpus else "cpu"
        if not gpus:
            raise InputError(f"no node of the Ray cluster has a GPU ({names_of(nodes)}): use --device cpu.")
        if name != "cuda":
            raise InputError(f"--device {name}: Ray decides which GPU a worker gets; use --device cuda.")
        return name


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'cgd[ray]'.") from None
    return ray


def _connect(address: str | None) -> None:
    """Join the cluster, once per process; refuses soon where nobody listens."""
    ray = _ray()
    if ray.is_initialized():
        return
    if address is None:
        address = os.environ.get("RAY_ADDRESS") or _left_here()
    else:
        address = address if ":" in address else f"{address}:{PORT}"
        if why := _silent(address):
            raise EngineError(
                f"no Ray cluster answers at {address} ({why}): start one with `ray start --head`, and give the "
                "address that it prints."
            )
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (RuntimeError, ConnectionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(
            f"cannot join the Ray cluster {address}: {reason} Run this on a machine of the "
            "cluster, with the versions of Python and Ray that it has."
        ) from error


def _left_here() -> str:
    """The cluster that `ray start` has put this machine into, or `local`: one for this process alone.

    Ray itself waits for minutes where that cluster was killed and its note has stayed.
    """
    note = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray/ray_current_cluster"
    address = note.read_text().strip() if note.is_file() else ""
    return address if address and not _silent(address) else "local"


def _silent(address: str) -> str:
    """Why nobody answers at HOST:PORT; empty where somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        return str(error)
    return ""
