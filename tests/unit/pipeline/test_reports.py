"""The report about a student: its table, its page, what is left out where weights are gone, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from trained import train

from cgd.cli import cli
from cgd.config import Recipe
from cgd.errors import CgdError, InputError, MissingError, StoreError
from cgd.models import speed
from cgd.models.speed import Cost
from cgd.models.trunks import mobilenet_v1
from cgd.pipeline import report as pipeline
from cgd.pipeline import report_text, reported, scoring, steps
from cgd.pipeline.recipe import change, override, to_yaml
from cgd.pipeline.report_page import report_page
from cgd.pipeline.report_parts import Report
from cgd.pipeline.steps import Session

FROM_FILE = "mobilenet-v1?width=0.25&size=64&weights=trunk.safetensors"
RANDOM = "timm:resnet10t?size=64&weights=random"
STUDENT = "mobilenet-v1?width=0.25&dim=16&size=64"


@dataclasses.dataclass(frozen=True)
class Place:
    """A session with the weights, one without them, and the student of a run of one row."""

    session: Session
    bare: Session
    recipe: Recipe
    student: Path


@pytest.fixture(scope="module", autouse=True)
def _one_thread_in_fixtures() -> Iterator[None]:
    """Those of this file embed and train, and begin before a test's own fixtures."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(drawn: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A student of the method cgd, one of whose teachers and whose trunk came from a file."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    trunk = {k.removeprefix("network."): v for k, v in mobilenet_v1(0.25, None)[0].state_dict().items()}
    save_file(trunk, folder / "weights/trunk.safetensors")
    settings = (
        "distill.method=cgd", "distill.fusion=cgd-two", "cgd.positions=4", "cgd.bits=2", f"distill.student={STUDENT}",
        f"distill.init={folder / 'weights/trunk.safetensors'}",
    )  # fmt: skip
    recipe = dataclasses.replace(
        tiny_recipe, extract=dataclasses.replace(tiny_recipe.extract, teachers=(FROM_FILE, RANDOM))
    )
    # The test helper makes its own session: weights lie where its names say.
    here = tuple(t.replace("trunk.safetensors", str(folder / "weights/trunk.safetensors")) for t in (FROM_FILE, RANDOM))
    session, recipe, _ = train(folder, drawn, change(recipe, "extract", teachers=here), *settings)
    run = folder / "run"
    run.mkdir()
    (folder / "student").rename(run / "row-seed0")
    named = change(recipe, "extract", teachers=(FROM_FILE, RANDOM))
    (run / "recipe.yaml").write_text(
        to_yaml(steps.pin(dataclasses.replace(session, weights=folder / "weights"), named))
    )
    (run / "results.json").write_text("{}")
    with_weights = dataclasses.replace(session, weights=folder / "weights")
    return Place(with_weights, session, recipe, run / "row-seed0")


def made(place: Place, out: Path, session: Session | None = None, **changes: Any) -> Report:
    """The report as the command makes it: of the run's folder, with the run's recipe."""
    used = session or place.session
    found = reported.find(used, str(changes.pop("student", place.student.parent)))
    recipe = override(pipeline_recipe(found, place), changes.pop("settings", ["evaluate.distractors=[lm@distractors]"]))
    return pipeline.report(used, found, recipe, out=out, **changes)


def pipeline_recipe(found: reported.Place, place: Place) -> Recipe:
    from cgd.pipeline.recipe import read_recipe

    return read_recipe(found.run) if found.run else place.recipe


@pytest.fixture(scope="module")
def told(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return made(place, tmp_path_factory.mktemp("page") / "r.html", baselines=("pixels",))


@pytest.fixture(scope="module")
def page(told: Report) -> str:
    return told.out.read_text()


class Ids(HTMLParser):
    """Every id of a page, what refers to one, and whether tags that are opened are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.used: set[str] = set(re.findall(r"url\(#([^)]*)\)", text))
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {key: value or "" for key, value in attrs}
        self.ids += [known["id"]] if "id" in known else []
        self.used |= {known["href"].removeprefix("#")} if "href" in known else set()
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    assert not re.search(r"https?:|<script|<link|@import|url\((?!#)", page)
    assert set(re.findall(r'src="([^,"]*)', page)) == {"data:image/jpeg;base64"}
    found = Ids(page)
    assert not found.open
    assert len(found.ids) == len(set(found.ids))
    assert found.used <= set(found.ids)
    assert page.count('role="img"') == 4


def test_the_table_has_every_network_in_order_with_the_scores_of_evaluate(told: Report, place: Place) -> None:
    kinds = [row.kind for row in told.rows]
    each = ["teacher", "teacher", "ensemble"]
    assert kinds == ["baseline", *each, *each, "before", "after", "asymmetric"]
    assert [row.whitened for row in told.rows[1:7]] == [False] * 3 + [True] * 3
    student = steps.load_student(place.session, str(place.student))
    alone = change(place.recipe, "evaluate", distractors=())
    with_more = change(place.recipe, "evaluate", distractors=("lm@distractors",))
    after = told.one("after")
    assert after is not None
    for recipe, score in ((alone, after.score), (with_more, after.distracted)):
        assert score == scoring.evaluate(place.session, told.benchmark, [student], recipe)[0] | {
            "seconds": score["seconds"]
        }
    asymmetric = told.one("asymmetric")
    assert asymmetric is not None
    assert asymmetric.score["mode"] == "asymmetric"


def test_costs_are_those_of_the_networks(told: Report, place: Place) -> None:
    about = json.loads((place.student / "recipe.json").read_text())
    costs = {row.kind: row.cost for row in told.rows}
    assert (costs["after"].parameters, costs["after"].gmacs) == (about["parameters"], pytest.approx(about["gmacs"]))
    assert costs["before"] == costs["after"]
    assert (costs["baseline"].parameters, costs["baseline"].gmacs) == (0, 0)
    teachers = [row.cost for row in told.rows if row.kind == "teacher" and not row.whitened]
    assert costs["ensemble"].parameters == sum(cost.parameters for cost in teachers)


def test_curves_rank_as_the_scores_do(told: Report) -> None:
    for kind in ("teacher", "ensemble", "before", "after"):
        row = told.one(kind)
        assert row is not None
        mean = 100 * np.nanmean(told.curves[kind][1].average_precision)
        assert mean == pytest.approx(row.score["protocols"]["medium"]["mAP"])


def test_examples_are_framed_by_the_ground_truth(told: Report, page: str) -> None:
    truth = told.benchmark.truth
    assert truth is not None
    frames = {"right": 0, "wrong": 0, "ignored": 0}
    for example in told.examples:
        assert example.before is not None
        query = example.choice.query
        for row in (*example.before.rows, *example.after.rows):
            right = row in truth.easy[query] or row in truth.hard[query]
            frames["right" if right else "ignored" if row in truth.junk[query] else "wrong"] += 1
    assert frames["right"] > 0
    assert frames["wrong"] > 0
    assert {kind: page.count(f'<li class="{kind}"') for kind in frames} == frames
    assert page.count('<div class="query">') == len(told.examples) == len(told.benchmark.queries)


def test_the_same_again_computes_no_score_and_gives_the_same_bytes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cgd.store.writer import Writer

    monkeypatch.setattr(speed, "costs_of", lambda encoders, *_: [Cost(1, 1.0, 1.0, 1)] * len(encoders))
    first = made(place, tmp_path / "r.html").out.read_bytes()
    monkeypatch.setattr(Writer, "write", lambda *_: pytest.fail("something was written again"))
    assert made(place, tmp_path / "r.html").out.read_bytes() == first


def test_a_benchmark_by_label_ignores_the_query_itself(place: Place, drawn: Path, tmp_path: Path) -> None:
    images = place.session.workspace.images("lm@train")
    for label, path in zip(images.labels or (), images.paths, strict=True):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / path, tmp_path / "photos" / label)
    report = made(
        place, tmp_path / "r.html", benchmark=f"folder:{tmp_path / 'photos'}", settings=["evaluate.distractors=[]"]
    )
    text = report.out.read_text()
    assert text.count('the query itself"') == 2 * 2 * len(
        report.examples
    )  # before and after; the picture and its title
    assert "by label" in text
    assert "with distractors" not in text
    assert report_text.report_json(report)["rows"][0]["mAP"].keys() == {"labels"}
    assert max(map(len, report_text.report_text({**report_text.report_json(report), "page": ""}).splitlines())) <= 80


def test_the_headline_says_what_is_known(told: Report) -> None:
    assert re.fullmatch(
        r"The student needs .*× fewer multiply-adds than its two teachers together and reaches [0-9.]+ mAP \(Medium\) "
        r"on lm, where their ensemble has [0-9.]+ and it had [0-9.]+ before training\.",
        report_text.headline(told),
    )
    unknown = dataclasses.replace(told, rows=tuple(dataclasses.replace(row, cost=None) for row in told.rows))
    assert "The student reaches" in report_text.headline(unknown)
    assert "where the ensemble of its teachers has" in report_text.headline(unknown)
    single = dataclasses.replace(
        told,
        teaching=dataclasses.replace(told.teaching, sources=told.teaching.sources[:1]),
        rows=tuple(row for row in told.rows if row.kind != "ensemble"),
    )
    assert "multiply-adds than its teacher and reaches" in report_text.headline(single)
    assert "where its teacher has" in report_text.headline(single)


def test_the_commands_parse_and_name_what_was_used(told: Report, place: Place) -> None:
    words = [shlex.split(line) for line in told.commands]
    assert [w[1] for w in words] == ["report", *["evaluate"] * 4]
    for line in words:
        assert line[line.index("--store") + 1] == place.session.store_url
        assert line[line.index("--distractors") + 1] == "lm@distractors"
        command = cli.commands[line[1]]
        command.make_context(line[1], line[2:])
    assert words[-1][words[-1].index("--whitening") + 1] == "lm@train"
    assert "--mode" in words[2]


def test_what_users_name_cannot_become_markup(told: Report) -> None:
    hostile = '<b onload="x">&$'
    queries, gallery = (
        dataclasses.replace(part, labels=(hostile,) * len(part), ids=tuple(f"{hostile}{n}" for n in range(len(part))))
        for part in (told.benchmark.queries, told.benchmark.gallery)
    )
    benchmark = dataclasses.replace(told.benchmark, name=hostile, queries=queries, gallery=gallery)
    about = {**told.place.about, "student": hostile}
    changed = dataclasses.replace(
        told, benchmark=benchmark, place=dataclasses.replace(told.place, about=about), notes=(hostile,)
    )
    text = report_page(changed)
    assert "<b onload" not in text
    assert "&lt;b onload=&quot;x&quot;&gt;&amp;$" in text
    assert not Ids(text).open


def test_pictures_that_are_gone_leave_their_place(told: Report, tmp_path: Path) -> None:
    gone = dataclasses.replace(told.benchmark.gallery, root=tmp_path)
    text = report_page(dataclasses.replace(told, benchmark=dataclasses.replace(told.benchmark, gallery=gone)))
    assert text.count('class="missing"') == text.count("<li ")


def test_weights_that_are_gone_leave_dashes_and_never_fail(place: Place, told: Report, tmp_path: Path) -> None:
    assert place.session.weights is not None
    with pytest.MonkeyPatch.context() as patch, _hidden(place):
        patch.chdir(tmp_path)
        report = made(place, tmp_path / "r.html", place.bare)
    costs = {row.name: row.cost for row in report.rows}
    assert [name for name, cost in costs.items() if cost is None] == ["mobilenet-v1-width-0.25", "ensemble of 2"]
    assert [r.score["key"] for r in report.rows] == [r.score["key"] for r in told.rows if r.kind != "baseline"]
    assert "<td>–</td>" in report.out.read_text()
    assert not report.notes


def test_without_vectors_and_weights_the_teachers_are_asked_for(place: Place, drawn: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, _hidden(place):
        patch.chdir(tmp_path)
        told = r"no vectors of mobilenet-v1-width-0.25 for other@gallery, .* give --weights DIR, .*weights=FILE"
        with pytest.raises(MissingError, match=told):
            made(place, tmp_path / "r", place.bare, benchmark=f"manifest:{drawn / 'manifest.csv'}", name="other")
        benchmark = place.bare.workspace.benchmark(f"manifest:{drawn / 'manifest.csv'}", "other")
        lists = reported.image_lists(benchmark, True, [])
        found = reported.find(place.bare, str(place.student))
        source, reason = reported.start_or_reason(place.bare, found, lists, place.recipe)
    assert source is None
    assert re.search(
        r"left out; it began from .*trunk.safetensors, which is not here.*--weights", reason.replace(":", ";")
    )


class _hidden:
    """The weights file under another name for a while."""

    def __init__(self, place: Place) -> None:
        assert place.session.weights is not None
        self.file = place.session.weights / "trunk.safetensors"

    def __enter__(self) -> None:
        self.file.rename(self.file.with_suffix(".away"))

    def __exit__(self, *_: object) -> None:
        self.file.with_suffix(".away").rename(self.file)


def test_a_student_without_its_start_is_told_of_and_shown_alone(told: Report) -> None:
    rows = tuple(row for row in told.rows if row.kind != "before")
    examples = tuple(dataclasses.replace(example, before=None) for example in told.examples)
    curves = {kind: curve for kind, curve in told.curves.items() if kind != "before"}
    alone = dataclasses.replace(told, rows=rows, examples=examples, curves=curves, notes=("why",), epochs=())
    text = report_page(alone)
    assert "Student before" not in text
    assert "<p>why</p>" in text
    assert "training log is not beside it" in text
    assert "before training" not in report_text.headline(alone)


def test_without_a_whitening_teachers_are_shown_raw(place: Place, told: Report) -> None:
    recipe = override(place.recipe, ["whiten.dim=7"])
    session = dataclasses.replace(place.session)
    raw = {**told.place.about, "inputs": [str(store_input(place, key)) for key in told.place.about["inputs"][:2]]}
    found = reported.teaching_of(session, dataclasses.replace(told.place, about=raw), recipe, ())
    assert found.whitenings is None
    assert "teachers are shown raw only; `cgd fit-whitening --dataset lm@train`" in found.notes[0]
    fitted = reported.teaching_of(session, dataclasses.replace(told.place, about=raw), place.recipe, ())
    assert fitted.whitenings == {label: told.teaching.whitenings[label] for label in fitted.whitenings}


def store_input(place: Place, key: str) -> Any:
    from cgd.types import Key

    store = place.session.store()
    return store.get(Key.parse(key)).inputs[0]


def test_whitenings_are_those_of_full_images(told: Report, place: Place) -> None:
    assert told.teaching.whitenings is not None
    store = place.session.store()
    assert [store.get(key).settings["view_kind"] for key in told.teaching.whitenings.values()] == ["fixed", "fixed"]


def test_no_line_of_the_plain_table_is_wider_than_80_columns(told: Report) -> None:
    text = report_text.report_text({**report_text.report_json(told), "page": "r.html"})
    assert max(map(len, text.splitlines())) <= 80
    assert text.endswith("page: r.html")
    assert "with distractors: lm (6 images)" in text
    assert report_text.shortened("abcdefghij", 5) == "ab…ij"


def test_the_command_prints_one_object_and_names_the_page(place: Place, tmp_path: Path) -> None:
    shutil.copy(place.session.workspace.file, tmp_path / "roots.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / ".cgd").mkdir()
        (tmp_path / "roots.yaml").rename(tmp_path / ".cgd/roots.yaml")
        arguments = ["report", str(place.student), "--store", place.session.store_url, "--device", "cpu", "--json"]
        done = CliRunner().invoke(cli, [*arguments, "--weights", str(place.session.weights), "--queries", "full"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["page"], result["benchmark"]) == ("report.html", "lm")
    assert "full queries" in result["protocol"]
    assert result["student"].startswith("students/")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert all(row["mAP_with_distractors"] is None for row in result["rows"])


def test_a_run_has_one_student_or_says_which(place: Place, tmp_path: Path) -> None:
    assert reported.find(place.session, str(place.student.parent)).folder == place.student
    run = shutil.copytree(place.student.parent, tmp_path / "run")
    shutil.copytree(run / "row-seed0", run / "row-seed1")
    with pytest.raises(InputError, match=r"run holds 2 students; name one of: .*row-seed0, .*row-seed1\.$"):
        reported.find(place.session, str(run))
    for folder in run.glob("row-*"):
        (folder / "recipe.json").unlink()
    with pytest.raises(MissingError, match=r"run holds no finished student: repeat its `cgd run`"):
        reported.find(place.session, str(run))
    with pytest.raises(MissingError, match=r"holds no finished student \(recipe.json is missing\)"):
        reported.find(place.session, str(run / "row-seed0"))
    with pytest.raises(MissingError, match="is no folder of a student, nor its key"):
        reported.find(place.session, "nobody")


def test_benchmarks_that_are_unknown_or_not_named_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'ml': did you mean lm"):
        made(place, tmp_path / "r.html", benchmark="ml")
    alone = shutil.copytree(place.student, tmp_path / "alone")
    with pytest.raises(InputError, match="no benchmark is named: give --benchmark NAME"):
        made(place, tmp_path / "r.html", student=alone, settings=["data.benchmarks=[]"])
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("out", ["file/below/r.html", "folder"])
def test_a_place_that_cannot_be_written_is_refused_first(
    place: Place, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(scoring, "evaluate", lambda *_: pytest.fail("work was done first"))
    with pytest.raises(StoreError, match=r"cannot write .*: name another file with --out"):
        made(place, tmp_path / out)


@pytest.mark.parametrize("line", ["{", '{"epoch": 1, "loss": NaN}', "[]", '{"epoch": 1}'])
def test_a_damaged_log_is_told_of(place: Place, tmp_path: Path, line: str) -> None:
    folder = shutil.copytree(place.student, tmp_path / "student")
    (folder / "log.jsonl").write_text(line)
    found = reported.find(place.session, str(folder))
    with pytest.raises(CgdError, match=r"log.jsonl is damaged \(.*\): take it away, or restore it"):
        reported.epochs_of(found)
    (folder / "log.jsonl").unlink()
    assert reported.epochs_of(found) == ()
