"""Extraction by four processes that are killed at random instants ends in the bytes of an undisturbed one.

`make faults` kills a hundred times, `make test` a few times; counts are printed with `-s`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = os.environ.get("CGD_FAULTS") == "full"
KILLS = 100 if FULL else 8
SEED = 6


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, Path(__file__).with_name("kills.py"), tmp_path_factory.mktemp("kills") / "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    limit = 1700 if FULL else 250
    done = subprocess.run(
        [*command, str(KILLS), str(SEED)], capture_output=True, text=True, env=environment, timeout=limit
    )
    print(done.stderr, done.stdout, sep="")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(1800 if FULL else 300)
def test_processes_were_killed_in_the_midst_of_shards(found):
    assert found["kills"] == KILLS
    assert found["in_a_shard"] > 0


def test_arrays_receipts_and_seals_are_those_of_an_undisturbed_run(found):
    """And verify finds nothing, no temporary file is left, and a killed process computes one shard again at most."""
    assert found["problems"] == []
    assert found["redone"] <= KILLS
