"""What the benchmarks share: competitors that take turns, peak memory, and one JSON object."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def take_turns(competitors: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of each competitor, A B A B …, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(rounds + 1):
        for name, run in competitors.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median of the rounds' ratios; each round's two runs saw the same machine."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def peak_rss_mb() -> float:
    """Largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def option(name: str, default: str) -> str:
    """The value after `name` on the command line."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def report_each(titles: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """A table for each of `results`, its name at the end of the title, or one JSON object with `--json`."""
    if "--json" in sys.argv:
        print(json.dumps(results))
        return
    for name, figures in results.items():
        report(f"{titles}: {name}", figures)


def report(title: str, result: Mapping[str, Any]) -> None:
    """A table, or one JSON object with `--json`."""
    if "--json" in sys.argv:
        print(json.dumps(result))
        return
    print(title)
    for name, value in result.items():
        print(f"  {name:34} {value:.4g}" if isinstance(value, float) else f"  {name:34} {value}")
