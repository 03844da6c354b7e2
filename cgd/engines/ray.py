"""A Ray cluster: a worker for every GPU or core of its nodes, which join and leave; what a lost one had is redone."""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cgd.engines import Engine, Opened, Pool, Result, Unit, Work, Worker
from cgd.engines.worker import Done, Hand
from cgd.errors import CgdError, EngineError, InputError

PORT = 6379  # where `ray start --head` listens
CONNECT_SECONDS = 10.0
LOOK_SECONDS = 2.0  # between looks at which nodes there are
MOST_LOSSES = 5  # of one unit, then it is what ends its workers
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ray(Engine):
    """The cluster at `address` (HOST:PORT), or the one this machine is in, or one of this machine alone.

    `processes` bounds the number of workers (none: as many as there is room for), `threads` are a worker's cores.
    """

    address: str | None = None
    processes: int | None = None
    threads: int = 1
    elsewhere = True

    def start(self, work: Work[Opened], *, gpus: bool = False, apart: bool = False) -> Pool[Opened]:  # noqa: ARG002
        _connect(self.address)
        return Cluster(work, "GPU" if gpus else "CPU", 1 if gpus else self.threads, self.processes)

    def device(self, name: str) -> str:
        """A GPU where the cluster has one, or where one was asked for and is there."""
        if name == "cpu":
            return name
        _connect(self.address)
        gpus = sum(node["Resources"].get("GPU", 0) for node in _nodes().values())
        if name == "auto":
            return "cuda" if gpus else "cpu"
        if not gpus:
            raise InputError(f"no node of the Ray cluster has a GPU ({_names(_nodes())}): use --device cpu.")
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


def _nodes() -> dict[str, Any]:
    """The nodes that are alive, by id."""
    return {node["NodeID"]: node for node in _ray().nodes() if node["Alive"]}


def _names(nodes: dict[str, Any]) -> str:
    return ", ".join(sorted({node["NodeManagerAddress"] for node in nodes.values()})) or "no node is left"


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "cgd": version("cgd"), "numpy": version("numpy")}


def _problem(work: Work[Any], wanted: dict[str, str]) -> str:
    """What keeps this node from the work, in a sentence; empty where nothing does."""
    for name, there in _versions().items():
        if there.rpartition(".")[0] != wanted[name].rpartition(".")[0]:
            return f"it has {name} {there}, this machine {wanted[name]}: install the same."
    try:
        work.check()
    except CgdError as error:
        return str(error)
    return ""


class _Actor:
    """A worker's process on some node."""

    def __init__(self, work: Work[Any], worker: Worker) -> None:
        # Ray names a GPU's number in the environment, so every worker's own is the first.
        self._hand = Hand(work, worker)

    def open(self) -> Done:
        return self._hand.open()

    def do(self, function: Callable[[Any, Any], Any], unit: Any) -> Done:
        return self._hand.do(function, unit)


@dataclass
class _Member:
    """An actor on a node, and the `unit` it has in hand; `ready` once it has opened the work."""

    actor: Any
    node: str
    ready: bool = False
    unit: Any = None


@dataclass
class Cluster(Pool[Opened]):
    """A worker for every `each` of a `resource` of every node, at most `most`."""

    work: Work[Opened]
    resource: str
    each: int
    most: int | None = None
    _members: dict[Any, _Member] = field(default_factory=dict)  # by what they are at
    _idle: list[_Member] = field(default_factory=list)
    _room: Counter[str] = field(default_factory=Counter)  # by node: workers begun there
    _known: dict[str, str] = field(default_factory=dict)  # names of the nodes that were asked to take part
    _left_out: dict[str, str] = field(default_factory=dict)  # by node, why
    _failed: Counter[str] = field(default_factory=Counter)  # by node: workers that ended before they were ready
    _waits: bool = False
    _looked: float = -LOOK_SECONDS
    _opened: int = 0

    def __post_init__(self) -> None:
        ray = _ray()
        self._shared = ray.put(self.work)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        self._check = ray.remote(num_cpus=0, max_retries=0)(_problem)
        nodes = _nodes()
        for node, problem in self._problems(nodes).items():
            raise EngineError(f"the node {_where(nodes[node])} cannot take part: {problem}")
        places = sum(self._places(node) for node in nodes.values())
        if not places:
            raise EngineError(
                f"no node of the Ray cluster has {self.each} {self.resource} for a worker ({_names(nodes)}): add nodes."
            )
        self.workers = min(places, self.most or places)
        self._known |= {node: _where(about) for node, about in nodes.items()}

    def run(
        self, do: Callable[[Opened, Unit], Result], units: Iterable[Unit], bar: Any = None
    ) -> Iterator[tuple[Unit, Result]]:
        left, again, losses = iter(units), deque[Any](), Counter[int]()
        nothing, over = object(), False
        done: list[tuple[Unit, Result]] = []
        while True:
            self._look_around()
            while self._idle and (again or not over):
                unit = again.popleft() if again else next(left, nothing)
                if unit is nothing:
                    over = True
                    break
                member = self._idle.pop()
                member.unit = unit
                self._members[member.actor.do.remote(do, unit)] = member
            yield from done
            done = []
            if over and not again and not any(m.ready for m in self._members.values()):
                return
            for member, found in self._next():
                if isinstance(found, Done):
                    unit, member.unit = member.unit, None
                    self._idle.append(member)
                    done.append((unit, found.tell(bar)))
                elif member.ready:  # it is lost with what it had
                    again.append(member.unit)
                    losses[id(member.unit)] += 1
                    if losses[id(member.unit)] > MOST_LOSSES:
                        raise EngineError(
                            f"one unit of work was lost {MOST_LOSSES + 1} times with the worker that had it, last "
                            f"because {found}: it may need more memory than a worker has."
                        )

    def _next(self) -> Iterator[tuple[_Member, Done | str]]:
        """Members that have finished a unit, with what they bring, or that are lost, with why."""
        ray = _ray()
        if not self._members:
            if not self._waits:
                log.warning("no node of the Ray cluster has room for a worker: waiting for one to join")
            self._waits = True
            time.sleep(LOOK_SECONDS / 10)
            return
        self._waits = False
        ready, _ = ray.wait([*self._members], num_returns=1, timeout=LOOK_SECONDS)
        for reference in ready:
            member = self._members.pop(reference)
            try:
                found = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if not isinstance(cause, CgdError):
                    raise
                if member.ready or not self._opened:
                    raise cause from None
                self._leave_out(member.node, str(cause))
                ray.kill(member.actor)
            except ray.exceptions.RayError as error:  # the worker, its process or its node is gone
                self._room[member.node] -= 1
                why = " ".join(str(error).split())
                if member.ready:
                    log.warning("a worker of %s is lost: what it had is done again", self._known[member.node])
                else:
                    self._failed[member.node] += 1
                if self._failed[member.node] > MOST_LOSSES:
                    self._leave_out(member.node, f"its workers end before they are ready, last because {why}")
                yield member, why
            else:
                if member.ready:
                    yield member, found
                else:
                    found.tell(None)
                    member.ready, self._opened = True, self._opened + 1
                    self._idle.append(member)

    def _look_around(self) -> None:
        """Put workers onto nodes that have room for more, those that joined among them; forget those that left."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = _nodes()
        for node in self._room.keys() - nodes.keys():
            del self._room[node]
        self._idle = [member for member in self._idle if member.node in nodes]
        if not nodes:
            raise EngineError("the Ray cluster has no node any more: repeat the command, it continues.")
        new = {node: about for node, about in nodes.items() if node not in self._known}
        self._known |= {node: _where(about) for node, about in new.items()}
        for node, problem in self._problems(new).items():
            self._leave_out(node, problem)
        able = {node for node, about in nodes.items() if self._places(about)}
        if able and able <= self._left_out.keys() and not self._members and not self._idle:
            raise EngineError(f"no node is left that can take part; the last one: {[*self._left_out.values()][-1]}")
        for node, about in nodes.items():
            while node not in self._left_out and self._room[node] < self._places(about) and self._wanted:
                self._begin(node)

    @property
    def _wanted(self) -> bool:
        """Whether more workers may be begun."""
        return self.most is None or sum(self._room.values()) < self.most

    def _begin(self, node: str) -> None:
        needs = {"num_gpus": self.each} if self.resource == "GPU" else {"num_cpus": self.each}
        worker = Worker(self._room[node], self.each if self.resource == "CPU" else None, elsewhere=True)
        actor = self._actor.options(scheduling_strategy=_on(node), **needs).remote(self._shared, worker)
        self._room[node] += 1
        self._members[actor.open.remote()] = _Member(actor, node)

    def _places(self, node: dict[str, Any]) -> int:
        return int(node["Resources"].get(self.resource, 0)) // self.each

    def _problems(self, nodes: dict[str, Any]) -> dict[str, str]:
        """What keeps nodes from the work, by node; nothing of those that can do it."""
        ray = _ray()
        nodes = {node: about for node, about in nodes.items() if self._places(about)}
        asked = {
            node: self._check.options(scheduling_strategy=_on(node)).remote(self._shared, _versions()) for node in nodes
        }
        found = {}
        for node, reference in asked.items():
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                problem = f"it cannot run cgd ({' '.join(str(error.cause).split())}): install the same there."
            except ray.exceptions.RayError:  # it has just left
                continue
            if problem:
                found[node] = problem
        return found

    def _leave_out(self, node: str, why: str) -> None:
        if node not in self._left_out:
            self._left_out[node] = why
            log.warning("the node %s takes no part: %s", self._known[node], why)

    def __exit__(self, *_: object) -> None:
        ray = _ray()
        for member in [*self._members.values(), *self._idle]:
            ray.kill(member.actor)
        self._members.clear()
        self._idle.clear()


def _lost() -> tuple[type[Exception], ...]:
    """What tells that a worker, its process or its node is gone."""
    errors = _ray().exceptions
    return errors.RayActorError, errors.RaySystemError, errors.ObjectLostError


def _where(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
