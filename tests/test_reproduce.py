"""`cgd reproduce`: what papers have, recipes that can be run, tables beside ours, and what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cgd import registry
from cgd.cli import cli
from cgd.models.load import teacher
from cgd.pipeline import recipe as recipes
from cgd.pipeline import reproduce, runner, steps
from cgd.pipeline.demo import TRAINED
from cgd.pipeline.steps import Session
from cgd.registry import Spec
from cgd.stages.fuse import make_method

PAPERS = ("cgd", "context-unaware", "data-efficient", "embedding-distillation", "whiten-mtd")
every_paper = pytest.mark.parametrize("name", PAPERS)


def cgd(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments)


def job(session: Session, paper: reproduce.Paper, number: str, miniature: bool = False) -> Any:
    return reproduce._Job(session, paper, paper.tables[number], miniature, (), ())


# what papers have


def numbers(value: Any) -> list[list[float]]:
    """Every list of numbers below `value`, in order."""
    if isinstance(value, list):
        return [value] if value and isinstance(value[0], (int, float)) else []
    return [found for v in value.values() for found in numbers(v)] if isinstance(value, dict) else []


@pytest.mark.shared
def test_the_numbers_are_the_transcribed_ones_and_none_is_left_out(shared: Path) -> None:
    known = json.loads((shared / "reference/losses/published_results.json").read_text())
    of_paper = {
        "whiten-mtd": [v for k, v in known["whiten_mtd"].items() if k.startswith("table")],
        "cgd": [known["cgd"]],
    }
    for name, tables in of_paper.items():
        rows = [list(r.published) for t in reproduce.read_paper(name).tables.values() for r in t.rows.values()]
        assert sorted(rows) == sorted(found for table in tables for found in numbers(table)), name
    before, after = known["embedding_distillation"]["known"]["MobileNet-0.25_recall_at_1_before_after"]
    rows = reproduce.read_paper("embedding-distillation").tables["abstract"].rows
    assert [row.published for row in rows.values()] == [(before,), (after,)]


def test_rows_and_columns_are_those_of_the_paper() -> None:
    """A few numbers by their place: the largest is where the paper says that its method is best."""
    paper = reproduce.read_paper("whiten-mtd")
    fusions = paper.tables["2"]
    best = max(fusions.rows, key=lambda name: fusions.rows[name].published[0] or 0)
    assert (best, fusions.rows[best].changes) == ("max-min, whitened", {"distill": {"fusion": "max-min"}})
    columns = paper.tables["5"].columns
    assert list(columns)[4] == "ROxf+1M M"
    assert columns["ROxf+1M M"] == reproduce.Column("roxford5k", "medium", distractors=True)
    assert paper.tables["5"].rows["R18"].published[4] == 74.05
    search = reproduce.read_paper("cgd").tables["1"].rows
    assert search["EfficientNet-B3, asymmetric"].published[0] == 85.48
    assert search["EfficientNet-B3, asymmetric"].mode == "asymmetric"


def _source(text: str, miniature: bool) -> Any:
    """The teacher by its name, its weights drawn where nobody has them."""
    if miniature:
        return teacher(text, TRAINED)
    bare = re.sub(r"[?&]weights=[^&]*", "", text)
    return teacher(f"{bare}{'&' if '?' in bare else '?'}weights=random", None)


@every_paper
@pytest.mark.parametrize("miniature", [False, True], ids=["real", "miniature"])
def test_every_row_is_a_recipe_whose_parts_there_are(session: Session, name: str, miniature: bool) -> None:
    paper = reproduce.read_paper(name)
    assert paper.deviations
    for number, table in paper.tables.items():
        if all(row.not_run for row in table.rows.values()) or (miniature and table.not_small):
            continue
        recipe = job(session, paper, number, miniature).recipe()
        assert recipe.data.train, number
        for row in recipe.rows:
            one = recipes.row(recipe, row)
            make_method(one.distill.method, steps.method_config(one), one.distill.fusion)
            registry.find("cgd.models.students", Spec.parse(one.distill.student).name)
        labels = {_source(text, miniature).label for text in recipe.extract.teachers}
        for row in table.rows.values():
            wanted = {job(session, paper, number, miniature).renamed(row.teacher)} - {"", "ensemble"}
            assert wanted <= labels or miniature, (number, wanted, labels)
            assert not row.of or row.of in table.rows
        assert {column.benchmark for column in table.columns.values()} <= set(paper.data)


# tables beside ours


@dataclass
class Ran:
    """A stand-in for `runner.run`: the recipes it was given; row n has 50 + n, one more for every seed."""

    recipes: list[Any]

    def __call__(self, _: Session, recipe: Any, *, seeds: Any, students: bool, out: Path) -> runner.RunReport:
        self.recipes.append((recipe, out, students))
        shared = {"mode": "symmetric", "distractors": 99 if recipe.evaluate.distractors else 0}
        scores: list[Any] = []
        for n, name in enumerate(recipe.rows):
            for benchmark in recipe.data.benchmarks:
                for seed in seeds or (0,):
                    found = {"medium": {"mAP": 50.0 + n + seed}, "hard": {"mAP": 20.0}}
                    row = {"row": name, "seed": seed, "model": name, "benchmark": benchmark, "protocols": found}
                    scores.append({**shared, **row})
        for label, bonus in (("ensemble of 3", 0), ("ensemble of 3, whitened", 5)):
            teacher = {"row": "teacher", "seed": None, "model": label, "mode": "symmetric", "distractors": 0}
            scores.append({**teacher, "benchmark": "roxford5k", "protocols": {"medium": {"mAP": 60.0 + bonus}}})
        return runner.RunReport(tuple(recipe.rows), scores)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Everything is there but the Paris benchmark."""
    found = Ran([])
    monkeypatch.setattr(runner, "run", found)
    monkeypatch.setattr(reproduce._Job, "missing", lambda _: iter(()))
    monkeypatch.setattr(reproduce._Job, "is_there", lambda *wanted: wanted[1] == "roxford5k")
    return found


def test_published_ours_and_the_difference_stand_in_one_row(session: Session, ran: Ran, tmp_path: Path) -> None:
    result = reproduce.reproduce(session, "whiten-mtd", tables=["4"], seeds=(0, 1), out=tmp_path)
    rows = {row["row"]: row for row in result["tables"][0]["rows"]}
    assert rows["EM"]["ours"] == [65.0, None, None, None]  # whitened, as the row says
    assert rows["ED"]["ours"] == [50.5, 20.0, None, None]  # the mean of two seeds; Paris is not there
    assert rows["CL"]["difference"][0] == pytest.approx(51.5 - 65.72)
    assert rows["CL"]["difference"][2] is None
    text = reproduce.reproduction_text(result)
    assert "not run" in text
    assert "-14.22" in text
    assert not reproduce.nothing_was_run(result)
    ((recipe, out, students),) = ran.recipes
    assert recipe.data.benchmarks == ("roxford5k",)
    assert (out.name, students) == ("table-4", True)


def test_columns_with_distractors_are_a_second_run_of_the_same_students(
    session: Session, ran: Ran, tmp_path: Path
) -> None:
    result = reproduce.reproduce(session, "whiten-mtd", tables=["3"], out=tmp_path)
    assert [(r.evaluate.distractors, out.name) for r, out, _ in ran.recipes] == [
        ((), "table-3"),
        (("1m",), "table-3-distractors"),
    ]
    assert ran.recipes[0][0].rows == ran.recipes[1][0].rows
    row = next(r for r in result["tables"][0]["rows"] if r["row"] == "R18 of GeM")
    assert [v is None for v in row["ours"]] == [False, False, True, True, False, False, True, True]


def test_a_table_of_teachers_trains_nobody(session: Session, ran: Ran, tmp_path: Path) -> None:
    reproduce.reproduce(session, "whiten-mtd", tables=["1"], out=tmp_path)
    assert [students for _, _, students in ran.recipes] == [False]


def test_a_miniature_tells_no_difference_but_the_order(
    session: Session, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(session.workspace), "introduce", lambda *_: None)
    monkeypatch.setattr(reproduce._Job, "is_there", lambda *_: True)
    result = reproduce.reproduce(session, "data-efficient", miniature=True, out=tmp_path)
    (table,) = result["tables"]
    assert all(value is None for row in table["rows"] for value in row["difference"])
    assert result["deviations"][0] == reproduce.NOT_HERE
    recipe = ran.recipes[0][0]
    assert recipe.data.benchmarks == ("miniature",)
    assert recipe.extract.teachers == ("drawn-resnet",)
    assert recipe.rows["10 %"] == {"distill": {"images": 64}}


def test_the_order_of_rows_is_counted_in_pairs() -> None:
    rows = [
        {"published": [p], "ours": [o]} for p, o in ((1.0, 10.0), (2.0, 30.0), (3.0, 20.0), (None, 5.0), (4.0, None))
    ]
    assert reproduce._agreement(rows, 0) == [2, 3]


def test_what_is_set_here_is_a_deviation(session: Session, ran: Ran, tmp_path: Path) -> None:
    result = reproduce.reproduce(session, "whiten-mtd", tables=["4"], settings=["distill.epochs=7"], out=tmp_path)
    assert ran.recipes[0][0].distill.epochs == 7
    assert "set here: distill.epochs=7" in result["deviations"]


# the command


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every_paper
def test_a_dry_run_tells_what_is_missing_and_leaves_nothing(empty: Path, name: str) -> None:
    result = cgd("reproduce", name, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["dry_run"]
    for table in told["tables"]:
        assert any("--data" in what or "no row" in what for what in table["missing"])
        assert all(value is None for row in table["rows"] for value in row["ours"])
    assert list(empty.iterdir()) == []


def test_without_anything_it_prints_the_published_table_and_ends_with_1(empty: Path) -> None:
    result = cgd("reproduce", "whiten-mtd", "--table", "2")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nothing of whiten-mtd could be run")
    for part in ("74.67", "not run", "data set gldv2, GLDv2-clean", "the weights file gem.safetensors is not here",
                 "--weights DIR with resnet18-f37072fd.pth", "deviations:", "4 crops per image"):  # fmt: skip
        assert part in result.stdout
    assert "table 3" not in result.stdout
    assert list(empty.iterdir()) == []


@pytest.mark.usefixtures("empty")
def test_unknown_papers_and_tables_and_a_miniature_of_ones_own_data_are_refused() -> None:
    assert "did you mean whiten-mtd?" in cgd("reproduce", "whiten-mdt").stderr
    assert "unknown table of cgd '7': known: 1." in cgd("reproduce", "cgd", "--table", "7").stderr
    refused = cgd("reproduce", "cgd", "--miniature", "--data", "gldv2=folder:x")
    assert refused.exit_code == 2
    assert cgd("reproduce", "cgd", "--data", "gldv2").exit_code == 1


def test_a_miniature_runs_and_its_second_run_does_nothing(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = reproduce.read_paper("data-efficient")
    rows = {name: row for name, row in paper.tables["1"].rows.items() if name in ("teacher", "10 %")}
    few = replace(paper, tables={"1": replace(paper.tables["1"], rows=rows)})
    monkeypatch.setattr(reproduce, "read_paper", lambda _: few)
    monkeypatch.setattr(reproduce, "SMALL", "synthetic:landmarks?labels=4&images=2&searched=2&distractors=2")
    command = (
        "reproduce", "data-efficient", "--miniature", "--device", "cpu", "--workers", "1", "--json",
        "--set", "distill.epochs=1", "--set", "distill.batch_pairs=4", "--set", "distill.image_size=32",
        "--set", "whiten.dim=4",
    )  # fmt: skip
    first = cgd(*command)
    assert first.exit_code == 0, first.output
    (table,) = json.loads(first.stdout)["tables"]
    assert all(value is not None for row in table["rows"] for value in row["ours"])
    before = sorted((p, p.stat().st_mtime_ns) for p in (empty / "features.zarr").rglob("*.json"))
    assert json.loads(cgd(*command).stdout) == json.loads(first.stdout)
    assert sorted((p, p.stat().st_mtime_ns) for p in (empty / "features.zarr").rglob("*.json")) == before
