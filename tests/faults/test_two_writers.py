"""Several processes extract the same data set into one store, without a lock."""

from __future__ import annotations

import json

import pytest

from cgd.store.feature_store import FeatureStore

STORE = "features.zarr"
WRITTEN = ("images/lm-train", "embeddings/lm-train")


def verified(folder):
    """How many artifacts the store holds; each of them is whole."""
    found = dict(FeatureStore.open(folder / STORE).verify())
    assert not any(found.values()), found
    return len(found)


def shards(outcomes, count):
    return [sum(t[f"shards_{count}"] for t in json.loads(o.output)["teachers"].values()) for o in outcomes]


@pytest.fixture
def alone(undisturbed, tree):
    """What a single process writes."""
    expected = tree(undisturbed / STORE, *WRITTEN)
    assert len([p for p in expected if "receipts/embeddings" in p]) == 4 * 6
    return expected


def test_two_processes_at_once_leave_what_one_leaves(command, alone, tree, tmp_path):
    outcomes = command.together(tmp_path, [command.extract, command.extract])
    assert [o.code for o in outcomes] == [0, 0], outcomes
    assert verified(tmp_path) == 1 + 4
    assert tree(tmp_path / STORE, *WRITTEN) == alone
    assert sum(shards(outcomes, "written")) >= 4 * 6
    assert [sum(both) for both in zip(shards(outcomes, "written"), shards(outcomes, "skipped"), strict=True)] == [
        24,
        24,
    ]


def test_three_parts_at_once_leave_what_one_process_leaves(command, alone, tree, tmp_path):
    outcomes = command.together(tmp_path, [[*command.extract, f"--part={n}/3"] for n in (1, 2, 3)])
    assert [o.code for o in outcomes] == [0, 0, 0], outcomes
    assert shards(outcomes, "written") == [8, 8, 8]
    assert verified(tmp_path) == 1 + 4
    assert tree(tmp_path / STORE, *WRITTEN) == alone


def test_parts_one_after_the_other_in_any_order(command, alone, tree, tmp_path):
    second = command(tmp_path, [*command.extract, "--part=2/2"])
    assert second.code == 0, second.errors
    store = FeatureStore.open(tmp_path / STORE)
    for entry in store.entries("embeddings"):
        assert (entry.sealed, entry.shards_done) == (False, 3)
        receipts = (tmp_path / STORE / f".cgd/receipts/{entry.key}").iterdir()
        assert sorted(int(r.stem) for r in receipts) == [1, 3, 5]
    first = command(tmp_path, [*command.extract, "--part=1/2"])
    assert shards([second, first], "written") == [12, 12]
    assert verified(tmp_path) == 1 + 4
    assert tree(tmp_path / STORE, *WRITTEN) == alone


def test_other_teachers_at_once_share_a_store_and_its_images(command, alone, tree, tmp_path):
    each = [
        [f"--teachers={teacher}" if a.startswith("--teachers=") else a for a in command.extract]
        for teacher in command.recipe.extract.teachers
    ]
    outcomes = command.together(tmp_path, each)
    assert [o.code for o in outcomes] == [0, 0], outcomes
    assert tree(tmp_path / STORE, *WRITTEN) == alone
