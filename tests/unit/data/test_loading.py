"""Work in threads ahead of its use: order, errors in their place, and a bound on what is ahead."""

import threading
import time
from collections.abc import Iterator

import pytest

from cgd.data.loading import ahead


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_order_whatever_the_threads_do(workers: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item * item

    assert list(ahead(slow_first, range(20), workers, 8)) == [i * i for i in range(20)]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_nothing_in_gives_nothing_out(workers: int) -> None:
    assert list(ahead(str, [], workers, 8)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_place(workers: int) -> None:
    def fail_at_three(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item

    results = ahead(fail_at_three, range(10), workers, 8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="3"):
        next(results)


def test_no_more_than_the_depth_is_worked_on_ahead() -> None:
    started: list[int] = []
    results = ahead(started.append, range(100), 2, 5)
    next(results)
    time.sleep(0.1)  # time enough to run away
    assert len(started) <= 6


def test_items_are_taken_one_by_one_not_all_at_once() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    next(ahead(lambda i: i, items(), 2, 4))
    assert len(taken) <= 6


def test_several_threads_work_at_once() -> None:
    together = threading.Barrier(3)

    def meet(_: int) -> int:
        return together.wait(timeout=20)  # breaks unless three arrive

    assert sorted(ahead(meet, range(3), 3, 6)) == [0, 1, 2]


def test_leaving_early_cancels_what_has_not_begun() -> None:
    started: list[int] = []
    release = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item:
            release.wait(20)
        return item

    results = ahead(work, range(50), 1, 10)
    assert next(results) == 0
    threading.Timer(0.1, release.set).start()
    results.close()  # waits for the one that runs
    assert set(started) <= {0, 1}
