"""Real processes that meet over loopback, for what several of them must do as one."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each of `count` processes of one gloo group, by rank."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()
        processes = [
            context.Process(target=_work, args=(rank, count, f"file://{folder}/meet", results, function, arguments))
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            found: dict[int, Any] = {}
            for _ in processes:
                rank, value, trouble = results.get()
                assert not trouble, trouble
                found[rank] = value
            for process in processes:
                process.join(60)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
    return [found[rank] for rank in range(count)]


def _work(rank: int, count: int, meet: str, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count)
        value = function(*arguments)
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, value, ""))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        Path(meet.removeprefix("file://")).unlink(missing_ok=True)
        raise
