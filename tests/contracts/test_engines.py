"""What every engine promises: all units done, errors as they were raised, a bar and warnings told."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest
from cluster import nodes
from engine_work import Counter, Counting

from cgd.engines import Engine, engine_of
from cgd.errors import EngineError, InputError


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with nodes(2) as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def clusters(address: str) -> list[Engine]:
    """The only engine that has workers of the cluster."""
    return [engine_of(f"ray://{address}")]


@pytest.fixture
def cluster(clusters: list[Engine]) -> Engine:
    return clusters[0]


@pytest.fixture(params=["local", "local-2", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "ray":
        return request.getfixturevalue("cluster")  # type: ignore[no-any-return]
    return engine_of("local", 2 if request.param == "local-2" else 1)


class Bar:
    told = 0

    def update(self, count: int) -> None:
        self.told += count


def test_every_unit_is_done_once_and_the_bar_is_told(engine: Engine) -> None:
    bar = Bar()
    with engine.start(Counting()) as pool:
        found = dict(pool.run(Counter.square, range(20), bar))
        again = dict(pool.run(Counter.square, range(3)))
    assert {unit: value for unit, (value, _, _) in found.items()} == {n: n * n for n in range(20)}
    assert bar.told == 40
    assert len({process for _, process, _ in found.values()}) <= pool.workers
    by_process = {process: count for _, process, count in found.values()}
    opened_once = max(count for _, process, count in again.values() for known in [by_process.get(process, 0)] if known)
    assert opened_once > 1  # a worker goes on with what it opened


def test_one_unit_may_be_asked_for(engine: Engine) -> None:
    with engine.start(Counting()) as pool:
        assert pool.ask(Counter.square, 7)[0] == 49
        assert dict(pool.run(Counter.square, [])) == {}


def test_units_are_drawn_as_workers_become_free(engine: Engine) -> None:
    drawn: list[int] = []

    def units() -> Iterator[int]:
        for unit in range(50):
            drawn.append(unit)
            yield unit

    with engine.start(Counting()) as pool:
        results = pool.run(Counter.square, units())
        next(results)
        assert len(drawn) <= 2 * pool.workers + 1


def test_a_refusal_arrives_as_it_was_raised(engine: Engine) -> None:
    with engine.start(Counting()) as pool, pytest.raises(InputError, match=r"^3 is refused: take another\.$"):
        list(pool.run(Counter.refuse, [3]))


def test_a_bug_keeps_its_name(engine: Engine) -> None:
    with engine.start(Counting()) as pool, pytest.raises(ZeroDivisionError):
        list(pool.run(Counter.stumble, [3]))


def test_warnings_of_workers_are_told_here(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cgd"), engine.start(Counting()) as pool:
        assert sorted(dict(pool.run(Counter.warn, [1, 3]))) == [1, 3]
    assert sorted(r.getMessage() for r in caplog.records) == ["1 is odd", "3 is odd"]


def test_work_that_is_to_be_done_beside_this_process_is(engine: Engine) -> None:
    with engine.start(Counting(), apart=True) as pool:
        assert pool.ask(Counter.square, 2)[1] != os.getpid()


def test_one_local_process_is_this_one() -> None:
    with engine_of("local").start(Counting()) as pool:
        assert pool.ask(Counter.square, 2)[1] == os.getpid()


def test_a_worker_that_is_ended_from_outside() -> None:
    with engine_of("local", 2).start(Counting()) as pool, pytest.raises(EngineError, match="repeat the command"):
        list(pool.run(Counter.die, range(3)))


def test_a_unit_that_ends_every_worker_is_given_up(cluster: Engine) -> None:
    with cluster.start(Counting()) as pool, pytest.raises(EngineError, match="was lost 6 times"):
        list(pool.run(Counter.die, range(1)))


def test_who_comes_second_waits_until_the_first_is_forgotten(
    address: str, clusters: list[Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two engines, as two commands on one cluster have."""
    monkeypatch.setattr("cgd.engines.cluster.BEGIN_SECONDS", 3.0)
    second = engine_of(f"ray://{address}")
    with clusters[0].start(Counting()) as pool:
        while len({process for _, (_, process, _) in pool.run(Counter.square, range(8))}) < 2:
            pass  # until both nodes have a worker that will stay
    found: list[int] = []
    caplog.clear()
    with second.start(Counting()) as waiting, caplog.at_level(logging.WARNING, "cgd"):
        waiter = threading.Thread(target=lambda: found.append(waiting.ask(Counter.square, 4)[0]))
        waiter.start()
        waiter.join(8)
        assert waiter.is_alive()
        clusters[0] = second
        del pool
        waiter.join(60)
    assert found == [16]
    assert [r.getMessage() for r in caplog.records] == [
        "no worker is ready yet: waiting for 1 CPU that other work may have (see `ray status`)"
    ]


def test_a_node_that_cannot_take_part_is_named_before_any_work(cluster: Engine) -> None:
    with pytest.raises(EngineError, match=r"^the node .* cannot take part: it has no such disk\.$"):
        cluster.start(Counting("it has no such disk."))


def test_a_gpu_that_no_node_has(cluster: Engine) -> None:
    assert cluster.device("auto") == cluster.device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"no node of the Ray cluster has a GPU .*: use --device cpu"):
        cluster.device("cuda")


def test_an_unknown_engine() -> None:
    with pytest.raises(InputError, match="unknown engine 'rey': did you mean ray"):
        engine_of("rey")


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(EngineError, match=r"no Ray cluster answers at 127.0.0.1:1 .*ray start --head"):
        engine_of("ray://127.0.0.1:1").start(Counting())


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(EngineError, match=r"^--engine ray needs Ray: pip install 'cgd\[ray\]'\.$"):
        engine_of("ray").start(Counting())
