"""`cgd plan` against the run that it plans: extraction and whitening of real photographs, and what they leave.

Usage: python benchmarks/plan.py --data DIR/grocery --weights DIR [--images N] [--seconds S] [--rounds N] [--json]. The
first N training images of `manifest.csv` and the three MobileNets of recipes/grocery.yaml. A round is plan, run, plan,
because a shared machine does not stay as fast as it was; `plan_over_run` is the mean of both plans' hours over the
run's. Files and bytes of shards are compared with the file system and with `cgd store info`: both have to be equal.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from timing import option, report

from cgd.cli import cli
from cgd.pipeline.recipe import read_recipe
from cgd.store.feature_store import FeatureStore

RECIPE = Path(__file__).resolve().parents[1] / "recipes/grocery.yaml"
STAGES = ("teachers: full images", "teachers: crops", "teachers: waiting", "fit whitening", "apply whitening")


def cgd(*words: str) -> dict[str, Any]:
    """The JSON object of a command, run in this process."""
    done = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def subset(data: Path, folder: Path, count: int) -> Path:
    """A manifest of the first training images, beside a link to all of them."""
    (folder / "images").symlink_to((data / "images").resolve())
    with (data / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"][:count]
    with (folder / "manifest.csv").open("w") as file:
        writer = csv.DictWriter(file, ["image_id", "path", "label", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


def plan_of(dataset: str, teachers: str, settings: list[str], seconds: str) -> dict[str, Any]:
    """What is planned; no student is trained, so how fast is told, not measured."""
    extra = ["--dim", "128", "--train-rate", "1", "--seconds", seconds]
    return cgd("plan", "--dataset", dataset, "--teachers", teachers, "--views", "4", *settings, *extra)


def run(dataset: str, teachers: str, settings: list[str], weights: str, store: str) -> dict[str, float]:
    """Seconds of the two commands."""
    started = time.perf_counter()
    options = ["--teachers", teachers, "--views", "4", "--weights", weights, "--store", store, *settings]
    cgd("extract-teachers", "--dataset", dataset, *options)
    extracted = time.perf_counter()
    cgd("fit-whitening", "--dataset", Path(dataset.partition(":")[2]).parent.name, "--dim", "128", "--store", store)
    return {"extract": extracted - started, "whiten": time.perf_counter() - extracted}


def left(store: Path) -> dict[str, int]:
    """Files and shard bytes of all artifacts by the file system, and shard bytes by what the store says of them."""
    inside = [p for p in store.rglob("*") if p.is_file()]
    files = [p for p in inside if len(p.relative_to(store).parts) > 2 and ".cgd" not in p.parts]
    below = [p for p in inside if set(p.parts) & {"receipts", "seals", "pages"} and ".cgd" in p.parts]
    opened = FeatureStore.open(str(store))
    told = sum(opened.get(entry.key).size for entry in opened.entries())
    return {
        "files": len(files) + len(below),
        "bytes": sum(p.stat().st_size for p in files if p.name != "zarr.json"),
        "bytes_of_store_info": told - sum(p.stat().st_size for p in files if p.name == "zarr.json"),
    }


def main() -> None:
    extract = read_recipe(RECIPE).extract
    teachers = ",".join(extract.teachers)
    settings = [
        "--set",
        f"extract.crop_size={extract.crop_size}",
        "--set",
        f"extract.crop_filter={extract.crop_filter}",
    ]
    data, weights = Path(option("--data", "")).resolve(), str(Path(option("--weights", "")).resolve())
    count, seconds, rounds = int(option("--images", "300")), option("--seconds", "20"), int(option("--rounds", "1"))
    planned, runs, ratios = [], [], []
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        (Path(name) / "some").mkdir()
        dataset = f"manifest:{subset(data, Path(name) / 'some', count)}"
        for number in range(rounds):
            before = plan_of(dataset, teachers, settings, seconds)
            runs.append(run(dataset, teachers, settings, weights, f"{number}.zarr"))
            plans = [before, plan_of(dataset, teachers, settings, seconds)]
            hours = [sum(s["wall_hours"] for s in p["stages"] if s["stage"] in STAGES) for p in plans]
            planned.append(3600 * statistics.mean(hours))
            ratios.append(planned[-1] / sum(runs[-1].values()))
        found = left(Path(name) / "0.zarr")
    total = before["total"]
    result = {
        "images": before["images"],
        "planned_seconds": statistics.median(planned),
        "run_seconds": statistics.median(sum(r.values()) for r in runs),
        "of_which_whitening": statistics.median(r["whiten"] for r in runs),
        "plan_over_run": statistics.median(ratios),
        "planned_files": total["files"],
        **found,
        "planned_bytes": total["bytes"],
    }
    report("what was planned, and the run", result)
    assert (total["files"], total["bytes"], total["bytes"]) == tuple(found.values()), "the sizes are not those planned"


if __name__ == "__main__":
    main()
