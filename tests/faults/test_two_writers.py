"""Several processes extract the same data set into one store, without a lock."""

from __future__ import annotations

import json

import pytest

from cgd.store.feature_store import FeatureStore

STORE = "features.zarr"
WRITTEN = ("images/lm-train", "embeddings/lm-train.mobilenet")
VIEWS, SHARDS = 2, 6
ARTIFACTS = 1 + 2 * VIEWS  # the image list; embeddings and canaries of each view


def verified(folder):
    """How many artifacts the store holds; each of them is whole."""
    found = dict(FeatureStore.open(folder / STORE).verify())
    assert not any(found.values()), found
    return len(found)


def shards(outcomes, count):
    return [sum(t[f"shards_{count}"] for t in json.loads(o.output)["teachers"].values()) for o in outcomes]


@pytest.fixture
def extract(command):
    """The extraction by the first teacher only."""
    teachers = f"--teachers={command.recipe.extract.teachers[0]}"
    return [teachers if a.startswith("--teachers=") else a for a in command.extract]


@pytest.fixture
def alone(undisturbed, tree):
    """What a single process writes."""
    expected = tree(undisturbed / STORE, *WRITTEN)
    assert len([p for p in expected if "receipts/embeddings" in p]) == VIEWS * SHARDS
    return expected


def test_two_processes_at_once_leave_what_one_leaves(command, extract, alone, tree, tmp_path):
    outcomes = command.together(tmp_path, [extract, extract])
    assert [o.code for o in outcomes] == [0, 0], outcomes
    assert verified(tmp_path) == ARTIFACTS
    assert tree(tmp_path / STORE, *WRITTEN) == alone
    assert sum(shards(outcomes, "written")) >= VIEWS * SHARDS


def test_three_parts_at_once_leave_what_one_process_leaves(command, extract, alone, tree, tmp_path):
    outcomes = command.together(tmp_path, [[*extract, f"--part={n}/3"] for n in (1, 2, 3)])
    assert [o.code for o in outcomes] == [0, 0, 0], outcomes
    assert shards(outcomes, "written") == [4, 4, 4]
    assert verified(tmp_path) == ARTIFACTS
    assert tree(tmp_path / STORE, *WRITTEN) == alone


def test_parts_one_after_the_other_in_any_order(command, extract, alone, tree, tmp_path):
    second = command(tmp_path, [*extract, "--part=2/2"])
    assert second.code == 0, second.errors
    store = FeatureStore.open(tmp_path / STORE)
    for entry in store.entries("embeddings"):
        assert (entry.sealed, entry.shards_done) == (False, 3)
        receipts = (tmp_path / STORE / f".cgd/receipts/{entry.key}").iterdir()
        assert sorted(int(r.stem) for r in receipts) == [1, 3, 5]
    first = command(tmp_path, [*extract, "--part=1/2"])
    assert shards([second, first], "written") == [6, 6]
    assert verified(tmp_path) == ARTIFACTS
    assert tree(tmp_path / STORE, *WRITTEN) == alone
