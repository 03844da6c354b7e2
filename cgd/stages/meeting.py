"""How processes that torchrun started again find each other, and not what those before them left."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

PAUSE_SECONDS = 0.05


def meeting_place(rank: int, count: int, patience: timedelta) -> Store:
    """A store that only these `count` processes use. Raises `RuntimeError` where they do not meet in time.

    torchrun keeps one store for all attempts of a command. In it a process that is started again could read the
    address of one that was killed, and would call there.
    """
    serving = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(
        *place, is_master=rank == 0 and not serving, timeout=patience, wait_for_workers=False, multi_tenant=not serving
    )
    return PrefixStore(common_name(store, rank, count, patience), store)


def common_name(store: Store, rank: int, count: int, patience: timedelta) -> str:
    """A name that the processes of this attempt have in common, and no earlier one.

    Each says a word of its own. The first says which words it heard, again where one changes, until everybody has
    confirmed the very list that holds the own word; what an earlier attempt left holds none of these.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    store.set(f"word/{rank}", own)
    while time.monotonic() < deadline:
        if rank == 0:
            heard = " ".join(_read(store, f"word/{other}") for other in range(count))
            store.set("heard", heard)
            agreed = all(_read(store, f"confirmed/{other}") == heard for other in range(1, count))
            if agreed:
                store.set("agreed", heard)
        else:
            heard = _read(store, "heard")
            if own in heard.split(" "):
                store.set(f"confirmed/{rank}", heard)
            agreed = own in heard.split(" ") and _read(store, "agreed") == heard
        if agreed:
            return hashlib.sha256(heard.encode()).hexdigest()
        time.sleep(PAUSE_SECONDS)
    raise RuntimeError(f"not all {count} processes came within {patience}")


def _read(store: Store, key: str) -> str:
    """What stands there, or nothing."""
    return store.get(key).decode() if store.check([key]) else ""
