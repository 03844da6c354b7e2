"""Benchmarks, small: that they run and tell what they measured; their figures mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_metadata_of_a_long_artifact(tmp_path: Path) -> None:
    arguments = ["--rows", "6400000", "--kinds", "raw", "--folder", tmp_path, "--json"]
    command = [sys.executable, "-W", "error", BENCHMARKS / "metadata_scale.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["raw"]
    assert (found["shards"], found["pages"], found["unfinished_shards"]) == (4167, 5, 4)
    assert found["seal_bytes"] < 2000
    assert found["bytes_told"] > 6_400_000 * 2048 * 4
    names = ("unfinished", "seal", "open", "ls", "info", "row")
    assert all(found[f"{name}_{what}"] > 0 for name in names for what in ("seconds", "peak_rss_mb"))
    assert list(tmp_path.iterdir()) == []


def test_targets_of_an_epoch_beside_a_loop_that_reads(tmp_path: Path) -> None:
    options = ["--images=900", "--labels=300", "--dim=8", "--rounds=1", f"--folder={tmp_path}", "--json"]
    arguments = [part for option in options for part in option.split("=")]
    command = [sys.executable, "-W", "error", BENCHMARKS / "epoch_targets.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"] == 300
    assert found["ours_over_read"].keys() == {"cold", "warm"}
    names = ("peak_rss_mb", "write_over_copy", "verify_over_copy", "write_mb_per_s", "read_mb_per_s_cold")
    assert all(found[name] > 0 for name in names)
    assert list(tmp_path.iterdir()) == []
