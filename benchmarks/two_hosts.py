"""One training on two hosts that see each other by a network of their own, against one host; and what if one vanishes.

Usage: python benchmarks/two_hosts.py [--only NAME]… [--steps N] [--json], as root on Linux. Two network namespaces with
a name, a folder, a store and an address each, joined by a pair of virtual Ethernet devices, take the place of two
machines; on each, `torchrun --nnodes 2` trains a drawn set as docs/scale.md shows it. What is told:

alone       the losses of one process
together    those of both hosts, and the largest relative difference
killed      a process killed by SIGKILL in the midst: seconds until the training goes on, and whether the curve, byte
            for byte, is that of `together`
agent       one torchrun killed by SIGKILL and started again: the same
fewer       one torchrun killed by SIGKILL for good, both with --nnodes 1:2: the other goes on alone
unplugged   a host's cable pulled for good: seconds until the other's process notices and ends; give it --patience 1150
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cgd.data.synthetic import draw_landmarks

HOSTS = ("host-one", "host-two")
SPACES = tuple(f"cgd-{os.getpid()}-{name}" for name in HOSTS)  # namespaces, which other programs have, too
ADDRESSES = ("10.99.0.1", "10.99.0.2")
TEACHER = "mobilenet-v1?width=0.25&size=64&weights=random"
STUDENT = "mobilenet-v1?width=0.25&dim=8&size=64"
CASES = ("together", "killed", "agent", "fewer")  # unplugged takes a quarter of an hour
PORT = 29400
BIN = Path(sys.executable).parent


def argument(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces and a cable between them; nothing in them reaches anything else."""
    for space in SPACES:
        sh("ip", "netns", "add", space)
    try:
        sh("ip", "link", "add", "cgd0", "netns", SPACES[0], "type", "veth", "peer", "cgd0", "netns", SPACES[1])
        for space, address in zip(SPACES, ADDRESSES, strict=True):
            sh("ip", "-n", space, "address", "add", f"{address}/24", "dev", "cgd0")
            sh("ip", "-n", space, "link", "set", "cgd0", "up")
            sh("ip", "-n", space, "link", "set", "lo", "up")
        yield
    finally:
        for space in SPACES:
            sh("ip", "netns", "delete", space)


def cgd(folder: Path, *words: str) -> None:
    subprocess.run([BIN / "cgd", *words, "-q"], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def distill(epochs: int) -> list[str]:
    settings = ("positives=image", "batch_norm=freeze", "image_size=64", "learning_rate=1e-5")
    return [
        *("cgd", "distill", "--dataset", "lm@train", "--student", STUDENT, "--batch-pairs", "4", "--out", "student"),
        *("--epochs", str(epochs), "--device", "cpu", "--workers", "1"),
        *(word for setting in settings for word in ("--set", f"distill.{setting}")),
    ]


def prepare(folder: Path) -> None:
    """Drawn images, and their vectors in a store."""
    draw_landmarks(folder / "landmarks", labels=6, images=4, distractors=6)
    data = ("--dataset", f"manifest:{folder / 'landmarks/manifest.csv'}", "--name", "lm", "--split", "train")
    crops = ("--views", "1", "--set", "extract.crop_size=64", "--device", "cpu")
    cgd(folder, "extract-teachers", *data, "--teachers", TEACHER, *crops)
    cgd(folder, "fit-whitening", "--dataset", "lm@train", "--dim", "8")


class Host:
    """A namespace with its folder, in which torchrun is started, perhaps again."""

    def __init__(self, number: int, folder: Path, epochs: int, nodes: str) -> None:
        self.number, self.folder, self.epochs, self.nodes = number, folder, epochs, nodes
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        names = self.folder / "hosts"
        names.write_text(
            "".join(f"{a} {h}\n" for a, h in zip(("127.0.0.1", *ADDRESSES), ("localhost", *HOSTS), strict=True))
        )
        inside = f'mount --bind {names} /etc/hosts; hostname {HOSTS[self.number]}; exec "$@"'
        command = [
            *("ip", "netns", "exec", SPACES[self.number], "unshare", "--uts", "--mount", "sh", "-c", inside, "sh"),
            *(
                str(BIN / "torchrun"),
                "--nnodes",
                self.nodes,
                "--nproc-per-node",
                "1",
                "--max-restarts",
                "3",
                "--rdzv-id",
                "1",
            ),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"),
            *("--local-addr", ADDRESSES[self.number], "--no-python", *distill(self.epochs)),
        ]
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "GLOO_SOCKET_IFNAME": "cgd0",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": argument("--fresh-stores", "1"),  # or a new agent finds no address
            "OMP_NUM_THREADS": "1",
        }
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def worker(self) -> int:
        """The process that torchrun started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (found,) = (int(c) for c in children if b"distill" in Path(f"/proc/{c}/cmdline").read_bytes())
        return found

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(what: Callable[[], bool], seconds: float) -> float:
    """Seconds until it is so; infinite where it is not in time."""
    started = time.monotonic()
    while not what():
        if time.monotonic() - started > seconds:
            return float("inf")
        time.sleep(0.1)
    return time.monotonic() - started


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "student/log.jsonl").read_text().splitlines()]


def digest(folder: Path) -> str:
    """Of the student and its curve."""
    data = [(folder / "student" / name).read_bytes() for name in ("model.safetensors", "log.jsonl")]
    return hashlib.sha256(b"".join(data)).hexdigest()[:16]


def ours(line: str) -> bool:
    """Whether it is of the command and not of torchrun, for the lines that matter here."""
    return line.startswith(("error: ", "another process", "continuing", "the newest state", "no machine"))


def ended(hosts: Sequence[Host]) -> bool:
    return all(host.process.poll() is not None for host in hosts)


def run(case: str, folder: Path, prepared: Path, epochs: int, patience: float) -> dict[str, Any]:
    """One case in fresh folders; what was found."""
    folders = [Path(shutil.copytree(prepared, folder / case / host, symlinks=True)) for host in HOSTS]
    nodes = "1:2" if case == "fewer" else "2"
    hosts = [Host(number, place, epochs, nodes) for number, place in enumerate(folders)]
    found: dict[str, Any] = {}
    try:
        if case != "together":
            assert wait_for(lambda: "epoch 2 of" in hosts[0].text, patience) < patience, hosts[0].text
            worker = hosts[1].worker()
            if case == "killed":
                os.kill(worker, signal.SIGKILL)
            elif case in ("agent", "fewer"):
                os.kill(hosts[1].process.pid, signal.SIGKILL)
                hosts[1].process.wait()
                seconds = wait_for(lambda: not Path(f"/proc/{worker}").exists(), patience)
                found["seconds_until_its_process_ended"] = round(seconds, 1)
                if case == "agent":
                    hosts[1].start()
            else:
                sh("ip", "-n", SPACES[1], "link", "set", "cgd0", "down")
                seconds = wait_for(lambda: "another process of this training ended" in hosts[0].text, patience)
                found["seconds_until_the_other_noticed"] = round(seconds, 1)
                return found
            seconds = wait_for(lambda: "continuing after epoch" in hosts[0].text or ended(hosts), patience)
            found["seconds_until_it_goes_on"] = round(seconds, 1)
        found["seconds_to_the_end"] = round(wait_for(lambda: ended(hosts), patience), 1)
        found["statuses"] = [host.process.poll() for host in hosts]
        if found["statuses"][0] == 0:
            found["losses"] = losses(folders[0])
            found["digest"] = [digest(place) for place in folders if (place / "student/recipe.json").is_file()]
        found["said"] = [[line for line in host.text.splitlines() if ours(line)] for host in hosts]
    finally:
        for host in hosts:
            host.end()
    return found


def main() -> None:
    only = [sys.argv[n + 1] for n, word in enumerate(sys.argv) if word == "--only"] or CASES
    epochs, patience = int(argument("--epochs", "4")), float(argument("--patience", "240"))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepared = folder / "prepared"
        prepared.mkdir()
        prepare(prepared)
        alone = Path(shutil.copytree(prepared, folder / "alone"))
        subprocess.run([BIN / "cgd", *distill(epochs)[1:], "-q"], cwd=alone, check=True, stdout=subprocess.DEVNULL)
        found["alone"] = {"losses": losses(alone)}
        for case in only:
            with network():
                found[case] = run(case, folder, prepared, epochs, patience)
            print(json.dumps({case: found[case]}, indent=1), file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
