"""Processes that are started again meet each other, whatever an earlier attempt left in their store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from cgd.stages.meeting import common_name

PATIENCE = timedelta(seconds=20)


def names(store: HashStore, delays: list[float]) -> list[str]:
    """What each process calls the attempt; it begins after its delay in seconds."""

    def one(rank: int) -> str:
        time.sleep(delays[rank])
        return common_name(store, rank, len(delays), PATIENCE)

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(one, range(len(delays))))


@pytest.mark.parametrize("delays", [[0.0, 0.1, 0.2], [0.2, 0.0, 0.1], [0.1, 0.2, 0.0]])
def test_every_attempt_has_a_name_of_its_own_whoever_comes_first(delays: list[float]) -> None:
    store = HashStore()
    attempts = [names(store, delays) for _ in range(3)]
    assert [len(set(attempt)) for attempt in attempts] == [1, 1, 1]
    assert len({attempt[0] for attempt in attempts}) == 3


def test_fewer_processes_than_before_meet_too() -> None:
    store = HashStore()
    three = names(store, [0.0] * 3)
    two = names(store, [0.1, 0.0])
    assert len(set(two)) == 1
    assert two[0] not in three


def test_one_that_never_comes_ends_the_others() -> None:
    with pytest.raises(RuntimeError, match="not all 2 processes came within"):
        common_name(HashStore(), 0, 2, timedelta(seconds=0.2))
