"""What an engine costs: `--engine ray` over `--engine local`, with as many workers, on shards that take a fixed time.

    python benchmarks/engines.py --shards 200 --seconds 0.3 --workers 2

Both extract the same drawn images with a teacher that sleeps. Counted is the time from an engine's first receipt to its
last one, which leaves out the start of processes; that is told beside it. They take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cgd.data.synthetic import draw_landmarks

HERE = Path(__file__).resolve().parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shards", type=int, default=200)
    arguments.add_argument("--seconds", type=float, default=0.3, help="of a shard, which is one image")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    o = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw_landmarks(folder / "drawn", labels=-(-o.shards // 6), seed=0, images=6, distractors=0)
        keep(drawn / "manifest.csv", o.shards)
        runs: dict[str, list[tuple[float, float]]] = {"local": [], "ray": []}
        for number in range(o.rounds):
            for engine, seconds in runs.items():
                seconds.append(extract(folder, f"{engine}-{number}.zarr", engine, o))
    ratios = [ray[0] / local[0] for ray, local in zip(runs["ray"], runs["local"], strict=True)]
    least = (o.shards - 1) * o.seconds / o.workers
    result = {
        "ray_over_local": statistics.median(ratios),
        "ratios": ratios,
        "local_over_sleep": statistics.median(s for s, _ in runs["local"]) / least,
        "start_seconds": {name: statistics.median(s for _, s in seconds) for name, seconds in runs.items()},
        "shards": o.shards,
        "workers": o.workers,
    }
    if o.json:
        print(json.dumps(result))
        return
    print(f"ray over local: {result['ray_over_local']:.3f} ({', '.join(f'{r:.3f}' for r in ratios)})")
    print(f"local over nothing but sleeping: {result['local_over_sleep']:.3f}")
    print("until the first shard: " + ", ".join(f"{n} {s:.0f} s" for n, s in result["start_seconds"].items()))  # type: ignore[attr-defined]


def keep(manifest: Path, count: int) -> None:
    """The header and the first training images of a manifest."""
    header, *lines = manifest.read_text().splitlines()
    training = [line for line in lines if line.endswith("train") or ",train," in line]
    manifest.write_text("\n".join([header, *training[:count]]) + "\n")


def extract(folder: Path, store: str, engine: str, o: argparse.Namespace) -> tuple[float, float]:
    """Seconds from the first receipt to the last, and until the first."""
    command = [sys.executable, "-c", "from cgd.cli import main; main()", "extract-teachers", "--quiet",
               "--dataset", f"manifest:{folder / 'drawn/manifest.csv'}", "--split", "train", "--name", "drawn",
               "--teachers", f"stand_in:teacher?seconds={o.seconds}", "--shard-rows", "1", "--device", "cpu",
               "--workers", "1", "--store", str(folder / store),
               "--engine", engine, "--processes", str(o.workers), "--threads", "1"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "RAY_AUTH_MODE": "disabled"}
    started = time.time()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    moments = sorted(p.stat().st_mtime for p in (folder / store / ".cgd/receipts/embeddings").rglob("*.json"))
    assert len(moments) == o.shards, f"{len(moments)} shards"
    return moments[-1] - moments[0], moments[0] - started


if __name__ == "__main__":
    main()
