"""Ray's actors as workers: placed on nodes that join and leave; what a lost one had in hand is done again."""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgd.engines import Opened, Pool, Result, Unit, Work, Worker
from cgd.engines.worker import Done, Hand
from cgd.errors import CgdError, EngineError

LOOK_SECONDS = 2.0  # between looks at which nodes there are
MOST_LOSSES = 5  # of one unit, or on one node before a worker was ready: then it is no accident
NODE_SECONDS = 60.0  # for a node to say whether it can take part
BEGIN_SECONDS = 30.0  # for a first worker to be ready, before somebody is told what that waits for
log = logging.getLogger(__name__)
Nodes = dict[str, dict[str, Any]]  # what Ray tells of each, by id


def alive() -> Nodes:
    """The nodes that are alive."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def names_of(nodes: Nodes) -> str:
    """Addresses, for a sentence."""
    return ", ".join(sorted({node["NodeManagerAddress"] for node in nodes.values()})) or "no node is left"


@dataclass(eq=False)
class _Member:
    """An actor on a node, and the `unit` it has in hand; `ready` once it has opened the work."""

    actor: Any
    node: str
    ready: bool = False
    unit: Any = None


@dataclass
class Crew:
    """Actors that stay from work to work: each with `each` of a `resource` of its node, at most `most`.

    Ray ends them when the crew is forgotten.
    """

    resource: str
    each: int
    most: int | None
    members: list[_Member] = field(default_factory=list)
    taken: bool = False  # by a pool that is not over

    def places(self, node: dict[str, Any]) -> int:
        """How many actors a node has room for."""
        return int(node["Resources"].get(self.resource, 0)) // self.each

    def has_room(self, name: str, node: dict[str, Any]) -> bool:
        there = sum(member.node == name for member in self.members)
        return there < self.places(node) and (self.most is None or len(self.members) < self.most)

    def begin(self, node: str) -> _Member:
        """One more, on this node."""
        # Ray names its GPU in the environment, so that every worker's own is the first.
        worker = Worker(threads=self.each if self.resource == "CPU" else None, elsewhere=True)
        needs = {"num_gpus": self.each} if self.resource == "GPU" else {"num_cpus": self.each}
        actor = ray.remote(max_restarts=0, max_task_retries=0)(_Actor).options(scheduling_strategy=_on(node), **needs)
        member = _Member(actor.remote(worker), node)
        self.members.append(member)
        return member

    def end(self, member: _Member) -> None:
        """Let one go, whatever it is at."""
        ray.kill(member.actor)
        self.members.remove(member)


class _Actor:
    """A worker's process on some node."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._hand: Hand | None = None

    def check(self, work: Work[Any], wanted: dict[str, str]) -> str:
        return _problem(work, wanted)

    def open(self, work: Work[Any]) -> Done:
        self._hand = None  # what the last work opened goes before more is opened
        self._hand = Hand(work, self._worker)
        return self._hand.open()

    def do(self, function: Callable[[Any, Any], Any], unit: Any) -> Done:
        assert self._hand is not None
        return self._hand.do(function, unit)

    def close(self) -> None:
        """Give back the memory of what was opened."""
        self._hand = None


class Cluster(Pool[Opened]):
    """A crew at one work."""

    def __init__(self, work: Work[Opened], crew: Crew) -> None:
        self.crew = crew
        self._work = ray.put(work)
        self._check = ray.remote(num_cpus=0, max_retries=0)(_problem)
        self._at: dict[Any, _Member] = {}  # by what they are at
        self._idle: list[_Member] = []
        self._asked: dict[str, str] = {}  # names of the nodes that were asked whether they can take part
        self._left_out: dict[str, str] = {}  # of these those that cannot, and why
        self._failed: Counter[str] = Counter()  # by node: workers that ended before they were ready
        self._begun, self._looked = time.monotonic(), -LOOK_SECONDS
        self._opened = False  # by some worker
        self._told = False  # that everything waits
        nodes = alive()
        for node, problem in self._problems(nodes).items():
            raise EngineError(f"the node {self._asked[node]} cannot take part: {problem}")
        places = sum(crew.places(node) for node in nodes.values())
        if not places:
            raise EngineError(
                f"no node of the Ray cluster has {crew.each} {crew.resource} for a worker ({names_of(nodes)}): add one."
            )
        self.workers = min(places, crew.most or places)
        crew.taken = True
        for member in list(crew.members):
            if member.node in nodes:
                self._open(member)
            else:  # it left after the last work
                crew.end(member)

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
                self._at[member.actor.do.remote(do, unit)] = member
            yield from done
            done = []
            if over and not again and not any(member.ready for member in self._at.values()):
                return
            for member, found in self._next():
                if isinstance(found, Done):
                    unit, member.unit = member.unit, None
                    self._idle.append(member)
                    done.append((unit, found.tell(bar)))
                else:  # it is lost with what it had
                    again.append(member.unit)
                    losses[id(member.unit)] += 1
                    if losses[id(member.unit)] > MOST_LOSSES:
                        raise EngineError(
                            f"one unit of work was lost {MOST_LOSSES + 1} times with the worker that had it, last "
                            f"because {found}: it may need more memory than a worker has."
                        )

    def _next(self) -> Iterator[tuple[_Member, Done | str]]:
        """Members that have finished a unit, with what they bring, or that were lost with one, with why."""
        if not self._at:
            self._tell("no node of the Ray cluster has room for a worker: waiting for one to join")
            time.sleep(LOOK_SECONDS / 10)
            return
        if self._opened:
            self._told = False
        elif time.monotonic() - self._begun > BEGIN_SECONDS:
            needs = f"{self.crew.each} {self.crew.resource}"
            self._tell(f"no worker is ready yet: waiting for {needs} that other work may have (see `ray status`)")
        finished, _ = ray.wait([*self._at], num_returns=1, timeout=LOOK_SECONDS)
        for reference in finished:
            member = self._at.pop(reference)
            try:
                found = ray.get(reference)
            except RayTaskError as error:
                if not isinstance(error.cause, CgdError):
                    raise
                if member.ready or not self._opened:
                    raise error.cause from None
                self._leave_out(member.node, str(error.cause))
                self.crew.end(member)
            except RayError as error:  # the worker, its process or its node is gone
                self.crew.end(member)
                why = " ".join(str(error).split())
                if member.ready:
                    log.warning("a worker of %s is lost: what it had is done again", self._asked[member.node])
                    yield member, why
                    continue
                self._failed[member.node] += 1
                if self._failed[member.node] > MOST_LOSSES:
                    self._leave_out(member.node, f"its workers end before they are ready, last because {why}")
            else:
                if member.ready:
                    yield member, found
                else:
                    found.tell(None)
                    member.ready = self._opened = True
                    self._idle.append(member)

    def _tell(self, why: str) -> None:
        if not self._told:
            log.warning("%s", why)
        self._told = True

    def _look_around(self) -> None:
        """Put workers onto nodes that have room for more, those that joined among them; forget those that left."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = alive()
        for member in [m for m in self._idle if m.node not in nodes]:
            self._idle.remove(member)
            self.crew.end(member)
        if not nodes:
            raise EngineError("the Ray cluster has no node any more: repeat the command, it continues.")
        new = {node: about for node, about in nodes.items() if node not in self._asked}
        for node, problem in self._problems(new).items():
            self._leave_out(node, problem)
        able = {node for node, about in nodes.items() if self.crew.places(about)}
        if able and able <= self._left_out.keys() and not self._at and not self._idle:
            raise EngineError(f"no node is left that can take part; the last one: {[*self._left_out.values()][-1]}")
        for node in able - self._left_out.keys():
            while self.crew.has_room(node, nodes[node]):
                self._open(self.crew.begin(node))

    def _open(self, member: _Member) -> None:
        member.ready = False
        self._at[member.actor.open.remote(self._work)] = member

    def _problems(self, nodes: Nodes) -> dict[str, str]:
        """What keeps nodes from the work, by node; nothing of those that can do it."""
        self._asked |= {
            n: f"{about['NodeManagerHostname']} ({about['NodeManagerAddress']})" for n, about in nodes.items()
        }
        members = {member.node: member.actor for member in self.crew.members}  # are there without a start
        asked = {
            node: members[node].check.remote(self._work, _versions())
            if node in members
            else self._check.options(scheduling_strategy=_on(node)).remote(self._work, _versions())
            for node, about in nodes.items()
            if self.crew.places(about)
        }
        found = {}
        for node, reference in asked.items():
            try:
                problem = ray.get(reference, timeout=NODE_SECONDS)
            except RayTaskError as error:
                problem = f"it cannot run cgd ({' '.join(str(error.cause).split())}): install the same there."
            except RayError:  # it has just left, or is about to
                continue
            if problem:
                found[node] = problem
        return found

    def _leave_out(self, node: str, why: str) -> None:
        if node not in self._left_out:
            self._left_out[node] = why
            log.warning("the node %s takes no part: %s", self._asked[node], why)

    def __exit__(self, *_: object) -> None:
        for member in self._at.values():  # nobody waits for what they have in hand
            self.crew.end(member)
        for member in self._idle:
            member.actor.close.remote()
        self._at.clear()
        self._idle.clear()
        self.crew.taken = False


def _on(node: str) -> NodeAffinitySchedulingStrategy:
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
