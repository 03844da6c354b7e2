"""A recipe end to end, twice: the second time nothing is left to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cgd.config import Recipe
from cgd.errors import CgdError
from cgd.pipeline.recipe import change, read_recipe
from cgd.pipeline.runner import _tell_of_overlap, run
from cgd.pipeline.steps import Session
from cgd.pipeline.text import run_text
from cgd.types import Benchmark, ImageList


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Modification time and inode of every file."""
    return {
        p.relative_to(root).as_posix(): (p.stat().st_mtime_ns, p.stat().st_ino) for p in root.rglob("*") if p.is_file()
    }


def without_times(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in s.items() if k != "seconds"} for s in scores]


def test_a_recipe_runs_and_is_not_done_twice(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    first = run(session, tiny_recipe, out=tmp_path / "out")
    before = snapshot(tmp_path)

    def no_network(*_: object) -> None:
        raise AssertionError("a network was built although everything is stored")

    for builder in ("cgd.models.teachers.timm.timm_network", "cgd.models.teachers.mobilenet_v1.trunk_of"):
        monkeypatch.setattr(builder, no_network)
    second = run(session, tiny_recipe, out=tmp_path / "out")
    assert without_times(second.scores) == without_times(first.scores)
    assert [s["key"] for s in second.students] == [s["key"] for s in first.students]
    after = snapshot(tmp_path)
    assert after == before
    rows = {s["row"] for s in first.scores}
    assert rows == {"teacher", "student before", "student"}
    assert len(first.scores) == 2 * (2 + 1) + 2
    for score in first.scores:
        assert set(score["protocols"]) == {"easy", "medium", "hard"}
        assert all(0 <= v["mAP"] <= 100 for v in score["protocols"].values())
        assert score["card"]["artifacts"]
    assert "queries cropped" in run_text(first.as_json())


def test_two_seeds_make_two_students(session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    report = run(session, tiny_recipe, seeds=(0, 1), out=tmp_path / "out")
    assert len({s["key"] for s in report.students}) == 2
    starts = [s["protocols"]["easy"]["mAP"] for s in report.scores if s["row"] == "student before"]
    assert len(starts) == 2
    assert starts[0] != starts[1]
    assert "±" in run_text(report.as_json())


@pytest.mark.shared
def test_a_saved_recipe_runs_without_the_weights(
    session: Session, tiny_recipe: Recipe, drawn: Path, shared: Path, tmp_path: Path
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    recipe = change(
        tiny_recipe, "extract", teachers=("mobilenet-v1?width=0.25&weights=mobilenetv1_025.safetensors&size=64",)
    )
    recipe = change(recipe, "distill", init="mobilenetv1_025.safetensors", batch_norm="unfold")
    with_weights = dataclasses.replace(session, weights=shared / "data/weights")
    first = run(with_weights, recipe, out=tmp_path / "out")
    saved = read_recipe(tmp_path / "out/recipe.yaml")
    assert without_times(run(session, saved, out=tmp_path / "again").scores) == without_times(first.scores)
    with pytest.raises(CgdError, match="give the folder that holds it"):
        run(session, change(saved, "extract", views=3), out=tmp_path / "more")


ROWS = {
    "mean": {"distill": {"fusion": "mean", "epochs": 1}},
    "one raw": {"distill": {"space": "raw", "teachers": ["mobilenet-v1-width-0.25"], "epochs": 1}},
    "cgd": {
        "distill": {"method": "cgd", "fusion": "cgd-two", "student": "mobilenet-v1?width=0.25&dim=16&size=64"},
        "cgd": {"positions": 4, "bits": 2, "restarts": 1},
        "evaluate": {"mode": "both"},
    },
}


def test_a_table_fills_row_by_row(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    recipe = dataclasses.replace(tiny_recipe, rows=ROWS)
    report = run(session, recipe, only=["mean"], out=tmp_path / "out")
    lines = run_text(report.as_json()).splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith(("mean", "one raw", "cgd"))] == list(ROWS)
    assert next(line for line in lines if line.startswith("one raw")).split()[2:] == ["-"] * 3
    report = run(session, recipe, only=["one raw", "cgd"], out=tmp_path / "out")
    assert len(report.students) == 3
    names = [line.split("  ")[0] for line in run_text(report.as_json()).splitlines()]
    assert names[names.index("mean") :][:4] == ["mean", "one raw", "cgd", "cgd, asymmetric"]
    caplog.clear()
    again = run(session, recipe, out=tmp_path / "out")
    assert "epoch 1" not in caplog.text
    assert without_times(again.scores) == without_times(report.scores)
    seeds = run(session, recipe, only=["mean"], seeds=(0, 1), out=tmp_path / "out")
    assert [Path(s["folder"]).name for s in seeds.students] == [
        "mean-seed0",
        "mean-seed1",
        "one-raw-seed0",
        "cgd-seed0",
    ]


def test_results_of_other_seeds_and_rows_stay(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    recipe = dataclasses.replace(tiny_recipe, rows={"a": None, "b": {"distill": {"fusion": "mean"}}})
    run(session, recipe, seeds=(0, 1), only=["a"], out=tmp_path / "out")
    one = run(session, recipe, seeds=(1,), only=["b"], out=tmp_path / "out")
    assert [(s["row"], s["seed"]) for s in one.scores if s["row"] in ("a", "b")] == [("a", 1), ("b", 1)]
    both = run(session, recipe, seeds=(0, 1), only=["a"], out=tmp_path / "out")
    assert [(s["row"], s["seed"]) for s in both.scores if s["row"] in ("a", "b")] == [("a", 0), ("a", 1), ("b", 1)]
    other = change(recipe, "distill", epochs=1)
    only_b = run(session, other, only=["b"], out=tmp_path / "out")
    assert [s["row"] for s in only_b.scores if s["row"] in ("a", "b")] == ["b"]  # a is of other settings


def test_starts_of_different_students_stand_apart(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    small = "mobilenet-v1?width=0.25&dim=32&size=48"
    recipe = dataclasses.replace(tiny_recipe, rows={"a": None, "b": {"distill": {"student": small}}})
    report = run(session, recipe, seeds=(0, 1), out=tmp_path / "out")
    lines = [line.split("  ")[0] for line in run_text(report.as_json()).splitlines()]
    assert [line for line in lines if line.endswith(" before")] == [
        "mobilenet-v1?width=0.25&dim=32&size=64 before",
        f"{small} before",
    ]


class Places:
    """Names and the kinds of data sets they stand for."""

    def __init__(self, **kinds: str) -> None:
        self.kind = kinds.__getitem__


def overlap(train: str, benchmark: str, exclude: str, labels: tuple[str, str]) -> None:
    images = ImageList("train", None, ("a",), ("a.png",), labels=(labels[0],))
    gallery = ImageList("bench", None, ("b",), ("b.png",), labels=(labels[1],))
    session: Any = dataclasses.replace(Session("nowhere"), workspace=Places(train=train, bench=benchmark))  # type: ignore[arg-type]
    recipe = change(Recipe(), "distill", exclude=exclude)
    _tell_of_overlap(session, recipe, images, [Benchmark("bench", gallery, gallery, None)])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("gldv2-clean", "roxford5k", "", ("1", "2")), "GLDv2-clean holds landmarks of bench"),
        (("gldv2-clean", "rparis6k", "", ("1", "2")), "GLDv2-clean holds landmarks of bench"),
        (("gldv2-clean", "roxford5k", "overlap.txt", ("1", "2")), ""),
        (("sfm120k", "roxford5k", "", ("1", "2")), ""),
        (("folder", "folder", "", ("x", "x")), "train and bench have 1 labels in common, e.g. x"),
        (("folder", "folder", "", ("x", "y")), ""),
        (("folder", "folder", "overlap.txt", ("x", "x")), ""),
    ],
)
def test_what_training_and_benchmark_share_is_told(arguments: Any, told: str, caplog: pytest.LogCaptureFixture) -> None:
    overlap(*arguments)
    assert told in caplog.text
    assert bool(caplog.records) == bool(told)


def test_a_table_refuses_a_row_it_does_not_have_and_a_teacher_nobody_extracted(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    recipe = dataclasses.replace(tiny_recipe, rows={"x": {"distill": {"teachers": ["gem"]}}})
    with pytest.raises(CgdError, match=r"unknown row 'y': known: x\."):
        run(session, recipe, only=["y"], out=tmp_path / "out")
    with pytest.raises(CgdError, match=r"distill\.teachers: unknown teacher 'gem'"):
        run(session, recipe, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("change_of_row", "told"),
    [
        ({"teachers": ["gem"]}, r"distill\.teachers: unknown teacher 'gem'"),
        ({"fusion": "maxmin"}, "unknown fusion 'maxmin'"),
        ({"fusion": "cgd-two"}, "use max-mean or"),
        ({"method": "cdg"}, "unknown method 'cdg': did you mean cgd"),
        ({"exclude": "nowhere.txt"}, "cannot read the labels to exclude from nowhere.txt"),
        ({"validation": 0.01}, "at least two must be held out"),
    ],
)
def test_a_row_that_cannot_be_is_told_before_any_teacher_runs(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path, change_of_row: Any, told: str
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    recipe = dataclasses.replace(tiny_recipe, rows={"good": None, "bad": {"distill": change_of_row}})
    with pytest.raises(CgdError, match=told):
        run(session, recipe, out=tmp_path / "out")
    assert not (tmp_path / "features.zarr").exists()


def test_damaged_results_of_earlier_runs_cost_nothing(
    session: Session, tiny_recipe: Recipe, drawn: Path, tmp_path: Path
) -> None:
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    first = run(session, tiny_recipe, out=tmp_path / "out")
    for damage in ("{", "[]", '{"student": 3}', '{"student": {"0": {}}}'):
        (tmp_path / "out/results.json").write_text(damage)
        again = run(session, tiny_recipe, out=tmp_path / "out")
        assert without_times(again.scores) == without_times(first.scores)
