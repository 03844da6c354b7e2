"""The command `cgd` in processes that come to harm at a told moment.

Networks are imported once; then every line of standard input is a JSON list of commands that run at the same
time, each in a process of its own, and is answered by the list of their exit statuses. A command has a `folder`
(its working directory, which gets its output as `NAME.out` and `NAME.err`), a `name`, `arguments`, and perhaps

die_at  `N REGEX`: SIGKILL where a file whose path matches is about to get or lose its name for the N-th time
limit   bytes: longer files cannot be written, as on a full disk
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from multiprocessing.util import _exit_function
from pathlib import Path
from typing import Any

TIMEOUT = 120  # seconds


def die_at(moment: str) -> None:
    count, _, pattern = moment.partition(" ")
    left = int(count)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        place = {"os.link": 1, "os.rename": 1, "os.remove": 0}.get(event)
        if place is not None and re.search(pattern, str(arguments[place])):
            left -= 1
            if left == 0:
                Path("children").write_text(" ".join(str(p.pid) for p in multiprocessing.active_children()))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run(job: dict[str, Any]) -> int:
    """The command in this process, its exit status and its traceback as an interpreter has them."""
    from cgd.cli import main

    signal.alarm(TIMEOUT)
    os.chdir(job["folder"])
    os.environ["TMPDIR"] = os.path.join(job["folder"], "tmp")
    tempfile.tempdir = None  # look again
    for number, name in ((0, os.devnull), (1, f"{job['name']}.out"), (2, f"{job['name']}.err")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    if "limit" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))
    if "die_at" in job:
        die_at(job["die_at"])
    try:
        main(job["arguments"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, an interpreter shows it and ends with 1
        traceback.print_exc()
        return 1
    return 0


def in_a_process(job: dict[str, Any]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = run(job)
            _exit_function()  # as an interpreter does at its end; else semaphores are left, and are told of
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return process


if __name__ == "__main__":
    import pandas  # noqa: F401
    import timm  # noqa: F401

    import cgd.stages.distill
    import cgd.stages.evaluate
    import cgd.stages.extract  # noqa: F401

    os.fsync = lambda _: None  # power is not cut here
    for line in sys.stdin:
        started = [in_a_process(job) for job in json.loads(line)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]), flush=True)
