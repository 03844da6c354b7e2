"""The command `cgd` in a process that comes to harm at a moment told in its environment.

DIE_AT  `N REGEX`: SIGKILL where the N-th file whose path matches is about to get its name
LIMIT   bytes: longer files cannot be written, as on a full disk
START   path: wait until it exists; `START.PID` tells that this process is ready
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path


def die_at(moment: str) -> None:
    count, _, pattern = moment.partition(" ")
    left = int(count)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("os.link", "os.rename") and re.search(pattern, str(arguments[1])):
            left -= 1
            if left == 0:
                Path("children").write_text(" ".join(str(p.pid) for p in multiprocessing.active_children()))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def wait_for(start: Path) -> None:
    import cgd.stages.evaluate
    import cgd.stages.extract  # noqa: F401 - imports take longer than the work

    start.with_name(f"{start.name}.{os.getpid()}").touch()
    while not start.exists():
        time.sleep(0.001)


if __name__ == "__main__":
    from cgd.cli import main

    if "DIE_AT" in os.environ:
        die_at(os.environ["DIE_AT"])
    if "LIMIT" in os.environ:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]), resource.RLIM_INFINITY))
    if "START" in os.environ:
        wait_for(Path(os.environ["START"]))
    main(sys.argv[1:])
