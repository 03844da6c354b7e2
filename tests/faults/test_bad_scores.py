"""What can be wrong with stored scores, through the command line: one sentence, and what is whole stays usable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import accepted, cgd, refused
from stored_scores import write_score

from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import Key

GOOD, BAD = {"labels": [0.9, 0.8, 0.7]}, {"labels": [0.5, 0.8, 0.3]}


@pytest.fixture
def store(bare: Path) -> FeatureStore:
    return FeatureStore.open(bare / "features.zarr", write=True)


@pytest.fixture
def two(store: FeatureStore) -> tuple[Key, Key]:
    return write_score(store, "gem", GOOD), write_score(store, "solar", BAD)


def flip(store: FeatureStore, path: str) -> None:
    file = store.files.root / path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_whole_scores_are_listed_tabulated_and_compared(two: tuple[Key, Key]) -> None:
    assert [s["key"] for s in accepted("scores", "ls")["scores"]] == [str(key) for key in two]
    assert [row["model"] for row in accepted("scores", "table", "--intervals")["rows"]] == ["gem", "solar"]
    assert accepted("compare", "gem", two[1].mark)["protocols"]["labels"]["wins"] == 2
    for form in ((), ("--csv",), ("--latex",)):
        assert "80.0" in cgd("scores", "table", *form).stdout


@pytest.mark.parametrize("command", [("scores", "ls"), ("scores", "table"), ("compare", "gem", "solar")])
def test_a_store_without_scores_names_the_command_that_makes_one(store: FeatureStore, command: tuple[str, ...]) -> None:
    assert "there is no feature store" in refused(*command)
    store.write_whole(identify("canaries", ["net"], 1, {}), {"vectors": np.zeros((1, 1, 2), np.float32)})
    message = refused(*command)
    assert "has no scores" in message
    assert "`cgd evaluate --student DIR --benchmark NAME` makes one" in message


@pytest.mark.usefixtures("two")
def test_what_is_no_score(store: FeatureStore) -> None:
    other = store.write_whole(identify("canaries", ["net"], 1, {}), {"vectors": np.zeros((1, 1, 2), np.float32)})
    assert f"{other} is no score" in refused("compare", "gem", str(other))
    assert "'nothing' is no score's key or part of one" in refused("compare", "nothing", "gem")
    assert "there is no scores/a-0123456789abcdef" in refused("compare", "gem", "scores/a-0123456789abcdef")
    assert "is no folder of a student, nor its key" in refused("compare", "gem", "students/a-0123456789abcdef")


@pytest.mark.usefixtures("two")
def test_a_folder_without_a_student() -> None:
    Path("begun").mkdir()
    assert "holds no finished student" in refused("compare", "gem", "begun")
    Path("begun/recipe.json").write_text('{"student": "resnet18"}')
    assert "cannot read the weights file" in refused("compare", "gem", "begun")


def test_one_damaged_score_is_left_out_and_told(store: FeatureStore, two: tuple[Key, Key]) -> None:
    flip(store, f"{two[0]}/zarr.json")
    for command in (("scores", "ls"), ("scores", "table")):
        assert list(accepted(*command)["left_out"]) == [str(two[0])]
        assert f"left out: {two[0]}/zarr.json differs from its seal" in cgd(*command).stdout
    for text in (str(two[0]), two[0].mark):
        assert "differs from its seal" in refused("compare", "solar", text)


def test_damaged_precisions_are_never_compared(store: FeatureStore, two: tuple[Key, Key]) -> None:
    flip(store, f"{two[0]}/average_precision/c/0/0")
    assert "differs from its seal" in refused("compare", "gem", "solar")
    assert "differs from its seal" in refused("scores", "table", "--intervals")


def test_only_damaged_scores(store: FeatureStore, two: tuple[Key, Key]) -> None:
    for key in two:
        flip(store, f"{key}/zarr.json")
    message = refused("scores", "table")
    assert "differs from its seal" in message
    assert "makes one" in message


def test_a_score_that_was_never_sealed(store: FeatureStore, two: tuple[Key, Key]) -> None:
    (store.files.root / f".cgd/seals/{two[0]}.json").unlink()
    assert "is not whole yet: repeat the command that makes it" in refused("compare", str(two[0]), "solar")
    assert "not whole yet" in accepted("scores", "ls")["left_out"][str(two[0])]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"model": "odd"},
        {"model": "odd", "result": []},
        {
            "model": "odd",
            "result": {
                "benchmark": "lm",
                "gallery": 1,
                "card": {"members": ["x"], "query_crop": []},
                "protocols": {"labels": {"mAP": 1.0, "queries": 1}},
            },
        },
        {"model": "odd", "result": {"card": {}, "protocols": {}}},
        {"model": "odd", "result": {"benchmark": "lm", "gallery": "many", "card": {"members": ["x"]}, "protocols": {}}},
        {"model": "odd", "result": {"benchmark": "lm", "gallery": 1, "card": {"members": ["x"]}, "protocols": {}}},
        {
            "model": "odd",
            "result": {
                "benchmark": "lm",
                "gallery": 1,
                "card": {"members": ["x"]},
                "protocols": {"labels": {"mAP": "high", "queries": 1}},
            },
        },
    ],
)
def test_a_score_of_another_shape_is_left_out_and_told(store: FeatureStore, attributes: dict[str, object]) -> None:
    arrays = {"queries": np.array(["q"], dtype=object), "average_precision": np.ones((1, 1))}
    identity = identify("scores", ["lm", "odd"], 2, {"truth": "t"})
    store.write_whole(identity, arrays, attributes=attributes)
    assert "is not as `cgd evaluate` writes it" in accepted("scores", "table")["left_out"][str(identity.key)]
    assert "is not as `cgd evaluate` writes it" in refused("compare", str(identity.key), "gem")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scores", "ls", "--where", "query_crop"), "expected FIELD=VALUE"),
        (("scores", "table", "--csv", "--json"), "give either --json or --csv"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], message: str) -> None:
    result = cgd(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.usefixtures("two")
def test_choices_that_leave_nothing() -> None:
    assert "unknown field of a score 'crop'" in refused("scores", "ls", "--where", "crop=true")
    assert "no score has mode asymmetric; there is: symmetric." in refused(
        "scores", "table", "--where", "mode=asymmetric"
    )
    assert "no score has benchmark other; there is: lm." in refused("scores", "ls", "--benchmark", "other")


def test_names_of_others_stay_on_one_line_of_an_error(store: FeatureStore) -> None:
    for crop in (True, False):
        write_score(store, "two\nlines", GOOD, benchmark="a\nb", query_crop=crop, ties="x\ny" if crop else "z")
    for command in (("scores", "table"), ("compare", "two\nlines", "x"), ("scores", "ls", "--where", "model=a\nb")):
        assert "\\n" in refused(*command)


@pytest.mark.usefixtures("two")
def test_nothing_is_written(bare: Path) -> None:
    before = sorted(bare.rglob("*"))
    for command in (("scores", "ls"), ("scores", "table"), ("compare", "gem", "solar")):
        assert json.loads(cgd(*command, "--json").stdout)
    assert sorted(bare.rglob("*")) == before
