"""`torchrun --nnodes N cgd distill` as its agents do it, on loopback, each in a folder of its own.

Networks are imported once; then every line of standard input is a JSON list of agents that run at the same time, each
in a process of its own, and is answered by the list of their exit statuses. An agent is torchrun's own, but forks its
worker instead of starting a program, which would import torch again. It has a `folder` (the working directory, which
gets its output as `out` and `err`), a `name` (the host's, as far as the command can tell), `arguments`, `restarts`, and
perhaps

die_at  the step before which its worker is killed, where it was not started again; steps count over epochs
order   in a list sorted by which the agents are started; torch gives the first rank to the oldest process

The state of a training is kept after every step.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import tempfile
from typing import Any

TIMEOUT = 150  # seconds
NEW_NETWORK, SET_FLAGS, UP = 0x40000000, 0x8914, 1


def apart() -> None:
    """A network of its own, with nothing but loopback, where one may: torch's stores listen on every interface."""
    if os.geteuid() == 0 and sys.platform == "linux" and not ctypes.CDLL(None).unshare(NEW_NETWORK):
        with socket.socket() as handle:
            fcntl.ioctl(handle, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))


def free_port() -> int:
    with socket.socket() as handle:
        handle.bind(("127.0.0.1", 0))
        return int(handle.getsockname()[1])


def worker(agent: dict[str, Any]) -> None:
    """The command, as the program that torchrun starts."""
    import cgd.stages.training
    from cgd.cli import main
    from cgd.stages.update import Update

    socket.gethostname = lambda: agent["name"]
    cgd.stages.training.KEEP_SECONDS = 0.0
    step, left = Update.step, agent.get("die_at", 0)

    def watched(self: Update, *arguments: Any) -> float:
        nonlocal left
        left -= 1
        if left == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    if "die_at" in agent and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Update.step = watched
    main(agent["arguments"])


def run(agent: dict[str, Any], hosts: int, port: int) -> int:
    """One torchrun; its exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    signal.alarm(TIMEOUT)
    os.chdir(agent["folder"])
    os.environ["TMPDIR"] = agent["folder"]
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    tempfile.tempdir = None  # look again
    for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    config = LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=1,
        run_id="hosts",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{port}",
        local_addr="127.0.0.1",
        max_restarts=agent["restarts"],
        start_method="fork",
    )
    try:
        elastic_launch(config, worker)(agent)
    except (ChildFailedError, RendezvousError):  # its worker, or the agent that has the rendezvous, ended
        return 1
    return 0


def in_a_process(agent: dict[str, Any], hosts: int, port: int) -> int:
    process = os.fork()
    if process == 0:
        code = 2
        try:
            code = run(agent, hosts, port)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return process


if __name__ == "__main__":
    apart()
    import timm  # noqa: F401

    import cgd.stages.distill  # noqa: F401

    os.fsync = lambda _: None  # power is not cut here
    for line in sys.stdin:
        agents, port = json.loads(line), free_port()
        order = sorted(range(len(agents)), key=lambda number: agents[number].get("order", number))
        started = {number: in_a_process(agents[number], len(agents), port) for number in order}
        ends = [os.waitpid(started[number], 0)[1] for number in range(len(agents))]
        print(json.dumps([os.waitstatus_to_exitcode(end) for end in ends]), flush=True)
