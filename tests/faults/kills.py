"""Extraction by four processes that are killed at random instants: `python kills.py FOLDER KILLS SEED`.

Everything is imported once and processes are forked from here, so that a kill costs a moment and not the import of
torch. There are rounds, each with a fresh store: in one the processes have a part of the shards each, in the next they
race on the same shards. What was found is printed as one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cgd.stages.extract
from cgd.config import ExtractConfig
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.store import layout
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import ImageList, InputSpec

PROCESSES = 4
IMAGES, CUT = 192, 4
SHARDS = IMAGES // CUT
KILLS_A_ROUND = 10  # and after that the round is let finish
STORE = "features.zarr"


@dataclass
class Round:
    """One extraction in a fresh store: how often each process was killed, and what it began to compute."""

    parts: bool
    kills: list[int]
    computed: list[list[int]]
    seconds: float

    @property
    def redone(self) -> list[int]:
        """Shards that each process computed more than once."""
        return [len(shards) - len(set(shards)) for shards in self.computed]

    @property
    def twice(self) -> int:
        """Shards that were computed by more than one process."""
        return sum(n > 1 for n in Counter(s for shards in self.computed for s in set(shards)).values())


@dataclass
class Found:
    """All rounds: kills, where they hit, temporary files they left, shards computed again, and what may not be."""

    kills: int = 0
    rounds: int = 0
    shards: int = 0
    while_starting: int = 0
    in_a_shard: int = 0
    temporary: int = 0
    redone: int = 0
    raced: int = 0
    problems: list[str] = field(default_factory=list)


def network() -> Encoder:
    """A stand-in for a teacher: four means of the pixels' squares and what is drawn from a seed, slowed a little."""

    class Means(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
            self.weights = torch.nn.Parameter(weights, requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.002)
            return torch.nn.functional.adaptive_avg_pool2d(x * x, 2).flatten(1) @ self.weights

    return Encoder("means", Means(), InputSpec(size=16, resize="square"), 8)


SOURCE = EncoderSource("means", "means", {"name": "means", "weights": "random"}, None, network)


def draw_images(root: Path) -> ImageList:
    names = tuple(f"{n:03}.png" for n in range(IMAGES))
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return ImageList("drawn", None, names, names, root)


def extract(folder: Path, images: ImageList, part: tuple[int, int], log: Path) -> None:
    """As `cgd extract-teachers` does it, and every shard that is begun is a line of `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    embed = cgd.stages.extract.embed_rows

    def embed_rows(rows: Sequence[int], *arguments: Any, **options: Any) -> Any:
        os.write(handle, f"{rows[0] // CUT}\n".encode())
        return embed(rows, *arguments, **options)

    cgd.stages.extract.embed_rows = embed_rows
    compute = Compute(torch.device("cpu"), workers=0, shard_rows=CUT, part=part)
    store = FeatureStore.open(folder / STORE, write=True)
    cgd.stages.extract.extract(
        store=store, images=images, sources=[SOURCE], views=["fixed"], config=ExtractConfig(), compute=compute
    )


def fork(work: Callable[[], None], errors: Path) -> int:
    """Do it in a process; its id. What goes wrong stands in the file `errors`."""
    process = os.fork()
    if process:
        return process
    try:
        signal.alarm(100)
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells it
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(1)


def ended(process: int, errors: Path, options: int = 0) -> bool:
    """Whether it ended well, or (False) still runs or was killed."""
    found, status = os.waitpid(process, options)
    code = os.waitstatus_to_exitcode(status) if found else -signal.SIGKILL
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(errors.read_text() if errors.exists() else f"exit status {code}")
    return bool(found) and code == 0


def alone(folder: Path, images: ImageList) -> float:
    """Nothing happens to one process; how long it takes."""
    started = time.monotonic()
    process = fork(partial(extract, folder, images, (1, 1), folder / "computed"), folder / "errors")
    assert ended(process, folder / "errors")
    return time.monotonic() - started


@dataclass
class Slot:
    """One of the processes, started again when it was killed: what it is to do, and how often it was killed."""

    extract: Callable[[], None]
    log: Path
    errors: Path
    kills: int = 0
    process: int = 0
    deadline: float = 0.0
    begun: int = 0  # shards it had begun before it was started for the last time

    def start(self, delay: float) -> None:
        self.begun = len(lines(self.log))
        self.process = fork(self.extract, self.errors)
        self.deadline = time.monotonic() + delay

    def kill(self) -> bool:
        """Whether it did not end just before."""
        os.kill(self.process, signal.SIGKILL)
        if ended(self.process, self.errors):
            return False
        self.kills += 1
        return True


def killed(folder: Path, images: ImageList, kills: int, draw: random.Random, span: float, found: Found) -> Round:
    """Four processes at once, which are killed within `span` seconds and started again until `kills` is reached."""
    parts = found.rounds % 2 == 0
    slots = []
    for number in range(PROCESSES):
        part, log = ((number + 1, PROCESSES) if parts else (1, 1)), folder / f"computed{number}"
        slots.append(Slot(partial(extract, folder, images, part, log), log, folder / "errors"))
    started = time.monotonic()
    for slot in slots:
        slot.start(draw.uniform(0, span))
    running = list(slots)
    while running:
        time.sleep(0.001)
        for slot in list(running):
            if ended(slot.process, slot.errors, os.WNOHANG):
                running.remove(slot)
            elif sum(s.kills for s in slots) < kills and time.monotonic() > slot.deadline:
                if slot.kill():
                    note(folder, slot, found)
                    slot.start(draw.uniform(0, span))
                else:
                    running.remove(slot)
    seconds = time.monotonic() - started
    return Round(parts, [s.kills for s in slots], [lines(s.log) for s in slots], seconds)


def note(folder: Path, slot: Slot, found: Found) -> None:
    """Where a kill hit."""
    begun = lines(slot.log)
    receipts = {path.name for path in (folder / STORE / layout.RECEIPTS).glob("embeddings/*/*.json")}
    found.temporary += any(f"-{slot.process}-" in name for name in names(folder / STORE / ".cgd/tmp"))
    found.while_starting += len(begun) == slot.begun
    found.in_a_shard += len(begun) > slot.begun and layout.receipt_name(begun[-1]) not in receipts


def lines(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def tree(root: Path) -> dict[str, bytes]:
    """The bytes of every file by path, without who wrote them when, and without temporary files."""
    paths = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in paths.items() if not n.startswith((".cgd/provenance/", ".cgd/tmp/"))}


def check(folder: Path, expected: dict[str, bytes], problems: Path) -> None:
    """Compare the store with that of the undisturbed run, verify it, and let the next writer sweep it."""
    found = tree(folder / STORE)
    told = [f"{p} is other than undisturbed" for p in expected.keys() | found.keys() if expected.get(p) != found.get(p)]
    store = FeatureStore.open(folder / STORE, write=True)
    told += [problem for _, each in store.verify() for problem in each]
    told += [f"{entry.key} is not sealed" for entry in store.entries() if not entry.sealed]
    store.writer(identify("canaries", ["next"], 1, {}), {"vectors": (1, 1, 1)})
    told += [f"{name} is left in .cgd/tmp" for name in names(folder / STORE / ".cgd/tmp")]
    problems.write_text("".join(f"{line}\n" for line in told))


def main(folder: Path, kills: int, seed: int) -> Found:
    """Rounds until there were so many kills."""
    (folder / "images").mkdir(parents=True)
    images = draw_images(folder / "images")
    (folder / "alone").mkdir()
    seconds = alone(folder / "alone", images)
    expected = tree(folder / "alone" / STORE)
    found, draw = Found(shards=SHARDS), random.Random(seed)
    while found.kills < kills:
        place = folder / f"round{found.rounds}"
        place.mkdir()
        one = killed(place, images, min(KILLS_A_ROUND, kills // 2, kills - found.kills), draw, seconds, found)
        assert ended(fork(partial(check, place, expected, place / "problems"), place / "errors"), place / "errors")
        found.problems += (place / "problems").read_text().splitlines()
        tell(one, found)
        shutil.rmtree(place)
    return found


def tell(one: Round, found: Found) -> None:
    """Add a round to what was found."""
    found.rounds += 1
    found.kills += sum(one.kills)
    found.redone += sum(one.redone)
    found.raced += one.twice
    for kills, redone in zip(one.kills, one.redone, strict=True):
        if redone > kills:
            found.problems.append(f"a process killed {kills} times computed {redone} shards again")
    if one.parts and one.twice:
        found.problems.append(f"{one.twice} shards were computed by two parts")
    text = f"kills {one.kills}, computed {[len(c) for c in one.computed]}, again {one.redone}, by several {one.twice}"
    print(f"round {found.rounds}, {'parts' if one.parts else 'racing'}: {text}, {one.seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    os.fsync = lambda _: None  # power is not cut here
    torch.set_num_threads(1)  # and no process is forked from one with threads
    print(json.dumps(asdict(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))))
