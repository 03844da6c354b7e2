"""A store's metadata at 10^9 images: opening, info, the unfinished shards, sealing, one row; seconds and peak memory.

Usage: python benchmarks/metadata_scale.py [--rows N] [--kinds raw,whitened] [--folder DIR] [--json]

raw is `embeddings` of 2048 dimensions in single precision, whitened of 512 in half: shards as the writer cuts them.
Receipts are made up, 4 kB of disk each (2.7 GB at 10^9 rows of raw), and so are the digests in them; only the first,
the middle and the last shard have files. What is measured is the package's own code, each in a process of its own that
has imported what it needs: seconds without that, the peak with it. Every folder is removed in the end.

unfinished  `Writer.missing` while every 1,009th shard lacks its receipt
seal        `Writer.seal`: every receipt read, checked and put into a page
open        `FeatureStore.open` and `get`
ls, info    `cgd store ls` and `cgd store info KEY`, with all that these commands import
row         the id and the vector of the row in the middle, from opening on
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import option, peak_rss_mb, report_each

if TYPE_CHECKING:
    from cgd.store.keys import Identity
    from cgd.store.writer import Writer

STEP = 1_009
Found = tuple[float, Any]


@dataclass(frozen=True)
class Job:
    """Which artifact: the store's folder, the kind of vectors, and how many rows."""

    store: Path
    vectors: str
    rows: int

    @property
    def kind(self) -> str:
        return {"raw": "embeddings", "whitened": "whitened"}[self.vectors]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"ids": (self.rows,), "valid": (self.rows,), "digests": (self.rows, 32)}
        if self.vectors == "raw":
            return shapes | {"vectors": (self.rows, 1, 2048), "reasons": (self.rows,)}
        return shapes | {"vectors": (self.rows, 512)}

    @property
    def identity(self) -> Identity:
        from cgd.store.keys import identify

        return identify(self.kind, ["made-up", "teacher", "fixed"], 1, {"dataset": "made-up", "view": "fixed"})


def writer_of(job: Job) -> Writer:
    from cgd.store.feature_store import FeatureStore

    return FeatureStore.open(job.store, write=True).writer(job.identity, job.shapes)


# What is measured, each in a process of its own; seconds and what else is told


def begin(job: Job) -> Found:
    """Three whole shards, and a made-up receipt of every other one but each `STEP`-th. Told: shards."""
    started = time.perf_counter()
    writer = writer_of(job)
    for shard in {0, writer.shard_count // 2, writer.shard_count - 1}:
        writer.write(shard, made_up(job, writer.shard_range(shard)))
    make_receipts(writer, [shard for shard in writer.missing() if shard % STEP != STEP - 1])
    return time.perf_counter() - started, writer.shard_count


def made_up(job: Job, rows: range) -> dict[str, Any]:
    import numpy as np

    blocks: dict[str, Any] = {
        "ids": np.array([id_of(row) for row in rows], object),
        "vectors": np.ones((len(rows), *job.shapes["vectors"][1:]), np.float32 if job.vectors == "raw" else np.float16),
        "valid": np.ones(len(rows), bool),
        "digests": np.zeros((len(rows), 32), np.uint8),
    }
    if "reasons" in job.shapes:
        blocks["reasons"] = np.full(len(rows), "", object)
    return blocks


def id_of(row: int) -> str:
    return f"{row % 997:03d}/image-{row:012d}"


def make_receipts(writer: Writer, shards: list[int]) -> None:
    """Not through the writer, which waits for the disk at every file."""
    from cgd.store.keys import sha256
    from cgd.store.seals import read_receipt, receipt_path

    first = read_receipt(writer.files, writer.key, 0)
    for shard in shards:
        rows = writer.shard_range(shard)
        named = {path.replace("/c/0", f"/c/{shard}"): sha256(f"{path} {shard}".encode()) for path in first.files}
        receipt = type(first)(first.key, shard, (rows.start, rows.stop), named, first.metadata)
        Path(writer.files.url, receipt_path(writer.key, shard)).write_bytes(receipt.text())


def complete(job: Job) -> Found:
    """The receipts that `begin` left out."""
    started = time.perf_counter()
    writer = writer_of(job)
    make_receipts(writer, writer.missing())
    return time.perf_counter() - started, None


def unfinished(job: Job) -> Found:
    writer = writer_of(job)
    started = time.perf_counter()
    missing = writer.missing()
    return time.perf_counter() - started, len(missing)


def seal(job: Job) -> Found:
    """Told: bytes of the seal, its pages, and their bytes."""
    from cgd.store.seals import seal_path

    writer = writer_of(job)
    started = time.perf_counter()
    writer.seal()
    seconds = time.perf_counter() - started
    pages = [path.stat().st_size for path in (job.store / f".cgd/pages/{writer.key}").glob("*.json")]
    return seconds, [writer.files.size(seal_path(writer.key)), len(pages), sum(pages)]


def open_(job: Job) -> Found:
    from cgd.store import artifact  # noqa: F401 (opening imports it)
    from cgd.store.feature_store import FeatureStore

    started = time.perf_counter()
    opened = FeatureStore.open(job.store).get(job.identity.key)
    seconds = time.perf_counter() - started
    assert opened.rows == job.rows
    return seconds, None


def ls(job: Job) -> Found:
    return command("store", "ls", "--store", str(job.store), "--json")


def info(job: Job) -> Found:
    return command("store", "info", str(job.identity.key), "--store", str(job.store), "--json")


def command(*arguments: str) -> Found:
    """Told: what the command printed."""
    from click.testing import CliRunner

    from cgd.cli import cli

    started = time.perf_counter()
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    seconds = time.perf_counter() - started
    assert done.exit_code == 0, done.output
    return seconds, json.loads(done.stdout)


def row(job: Job) -> Found:
    import numpy as np

    from cgd.store import artifact  # noqa: F401
    from cgd.store.feature_store import FeatureStore

    started = time.perf_counter()
    opened = FeatureStore.open(job.store).get(job.identity.key)
    wanted = np.array([opened.shard_range(opened.shard_count // 2)[1]])
    ids, vectors = opened.gather("ids", wanted), opened.gather("vectors", wanted)
    seconds = time.perf_counter() - started
    assert ids.tolist() == [id_of(int(wanted[0]))]
    assert vectors.all()
    return seconds, None


STEPS: dict[str, Callable[[Job], Found]] = {
    "begin": begin, "unfinished": unfinished, "complete": complete, "seal": seal, "open": open_, "ls": ls,
    "info": info, "row": row,
}  # fmt: skip
MEASURED = ("unfinished", "seal", "open", "ls", "info", "row")


def alone(name: str, job: Job) -> dict[str, Any]:
    line = [sys.executable, __file__, "--one", name, str(job.store), job.vectors, str(job.rows)]
    started = time.perf_counter()
    found = dict(json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout))
    found["process_seconds"] = time.perf_counter() - started
    print(f"{job.vectors} {name}: {found['seconds']:.2f} s, {found['peak_rss_mb']:.0f} MB", file=sys.stderr)
    return found


def measure(job: Job) -> dict[str, Any]:
    found = {name: alone(name, job) for name in STEPS}
    seal_bytes, pages, page_bytes = found["seal"]["found"]
    told = found["info"]["found"]
    assert found["ls"]["found"]["artifacts"][0]["shards"] == found["begin"]["found"]
    assert found["unfinished"]["found"] == found["begin"]["found"] // STEP
    result = {
        "shards": found["begin"]["found"],
        "unfinished_shards": found["unfinished"]["found"],
        "seal_bytes": seal_bytes,
        "pages": pages,
        "page_bytes": page_bytes,
        "bytes_told": told["bytes"],
    }
    for name in MEASURED:
        result |= {f"{name}_{what}": found[name][what] for what in ("seconds", "process_seconds", "peak_rss_mb")}
    return result


def main() -> None:
    if "--one" in sys.argv:
        name, store, vectors, rows = sys.argv[sys.argv.index("--one") + 1 :]
        seconds, found = STEPS[name](Job(Path(store), vectors, int(rows)))
        print(json.dumps({"seconds": seconds, "found": found, "peak_rss_mb": peak_rss_mb()}))
        return
    rows, results = int(option("--rows", "1000000000")), {}
    for vectors in option("--kinds", "raw,whitened").split(","):
        with tempfile.TemporaryDirectory(prefix="cgd-bench-", dir=option("--folder", tempfile.gettempdir())) as folder:
            results[vectors] = measure(Job(Path(folder) / "features.zarr", vectors, rows))
    report_each(f"metadata of {rows:,} images", results)


if __name__ == "__main__":
    main()
