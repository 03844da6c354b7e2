"""Papers' tables beside ours: which recipe gives each row, what is missing for it, and how far apart they are."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from cgd.config import Recipe
from cgd.errors import CgdError, InputError, unknown
from cgd.pipeline import runner, steps
from cgd.pipeline.demo import TRAINED
from cgd.pipeline.recipe import build_recipe, change, merged, override
from cgd.pipeline.steps import Session
from cgd.pipeline.text import render

FOLDER = Path(__file__).with_name("reproductions")
PAPERS = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))
SMALL = "synthetic:landmarks?labels=48&searched=24&distractors=60"  # what `--miniature` draws, as MINIATURE
MINIATURE = "miniature"
NOT_HERE = "miniature: not the paper's images, teachers or student, so only the order of rows can be compared."
Result = dict[str, Any]
Number = float | None


@dataclass(frozen=True)
class Column:
    """One number of a row: of which benchmark, under which protocol, which value, with distractors or without.

    In a miniature `small_protocol` and `small_value` stand for these, where they are given.
    """

    benchmark: str
    protocol: str
    value: str = "mAP"
    distractors: bool = False
    small_protocol: str = ""
    small_value: str = ""


@dataclass(frozen=True)
class Row:
    """What the paper says (None where that is unknown to us), and whose score stands beside it.

    That is the student of `changes` to the table's recipe, the student of the row `of` searched in another `mode`, or
    the `teacher` of that label (or `ensemble`), whitened or not. `not_run` is why there is none.
    """

    published: tuple[Number, ...]
    changes: Mapping[str, Any] | None = None
    miniature: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    mode: str = "symmetric"
    teacher: str = ""
    whitened: bool = False
    not_run: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper; `recipe` and `miniature` change the paper's own, `not_small` is why there is no miniature."""

    title: str
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    miniature: Mapping[str, Any] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    not_small: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper's tables with the recipe that they share, and every known deviation from what its authors did.

    `data` are the data sets by the name the recipe has for them, and what they are; `names` the teachers, students and
    benchmarks that stand in a miniature for the paper's.
    """

    title: str
    source: str
    data: Mapping[str, str]
    recipe: Mapping[str, Any]
    miniature: Mapping[str, Any]
    names: Mapping[str, str]
    deviations: tuple[str, ...]
    tables: Mapping[str, Table]


def read_paper(name: str) -> Paper:
    """The paper of that name; raises `InputError` with the known ones."""
    if name not in PAPERS:
        raise unknown("paper", name, PAPERS)
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    tables = {str(number): _table(table) for number, table in content.pop("tables").items()}
    return Paper(**{**content, "deviations": tuple(content["deviations"])}, tables=tables)


def _table(content: dict[str, Any]) -> Table:
    columns = {name: Column(**column) for name, column in content.pop("columns").items()}
    rows = {}
    for name, row in content.pop("rows").items():
        published = tuple(row.pop("published", [None] * len(columns)))
        rows[name] = Row(published=published, **row)
        assert len(published) == len(columns), name
    return Table(columns=columns, rows=rows, **{**content, "deviations": tuple(content.get("deviations", ()))})


def reproduce(
    session: Session,
    name: str,
    *,
    tables: Sequence[str] = (),
    miniature: bool = False,
    dry_run: bool = False,
    settings: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path,
) -> Result:
    """The object of `cgd reproduce --json`: the tables of a paper, each row as published and as found here.

    Whatever is stored already is not done again. `dry_run` only tells what would be run and what is missing. A
    `miniature` is on drawn landmarks, with the teachers that come with the package; `settings` are those of `--set`.
    """
    paper = read_paper(name)
    for number in tables:
        if number not in paper.tables:
            raise unknown(f"table of {name}", number, paper.tables)
    if miniature:
        session = replace(session, weights=TRAINED)
        if not dry_run:
            session.workspace.introduce(MINIATURE, SMALL)
    done = []
    for number in tables or paper.tables:
        job = _Job(session, paper, paper.tables[number], miniature, tuple(settings), tuple(seeds))
        done.append({"table": number, **job.result(dry_run, out / f"table-{number}")})
    return {
        "paper": name,
        "title": paper.title,
        "source": paper.source,
        "miniature": miniature,
        "dry_run": dry_run,
        "tables": done,
        "deviations": [*([NOT_HERE] if miniature else []), *paper.deviations, *(f"set here: {s}" for s in settings)],
    }


@dataclass(frozen=True)
class _Job:
    """One table to be run."""

    session: Session
    paper: Paper
    table: Table
    miniature: bool
    settings: tuple[str, ...]
    seeds: tuple[int, ...]

    def result(self, dry_run: bool, out: Path) -> Result:
        recipe, missing = self.recipe(), list(self.missing())
        students = [name for name, row in self.table.rows.items() if row.changes is not None and not row.not_run]
        passes = list(self.passes(recipe))
        scores = []
        if not dry_run and not any(m["needed"] for m in missing):
            for distractors, prepared in passes:
                folder = out.with_name(f"{out.name}-distractors") if distractors else out
                report = runner.run(self.session, prepared, seeds=self.seeds, students=bool(students), out=folder)
                scores += report.scores
        rows = [self.row(name, row, scores) for name, row in self.table.rows.items()]
        return {
            "title": self.table.title,
            "columns": list(self.table.columns),
            "rows": rows,
            "agreement": {c: _agreement(rows, n) for n, c in enumerate(self.table.columns)},
            "students": students,
            "teachers": list(recipe.extract.teachers),
            "train": recipe.data.train,
            "benchmarks": sorted({b for _, prepared in passes for b in prepared.data.benchmarks}),
            "missing": [m["what"] for m in missing],
            "deviations": list(self.table.deviations),
        }

    def recipe(self) -> Recipe:
        """The paper's, changed for the table, and again where it is to be small."""
        content = merged(self.paper.recipe, self.table.recipe)
        if self.miniature:
            content = merged(merged(content, self.paper.miniature), self.table.miniature)
        rows = {}
        for name, row in self.table.rows.items():
            if row.changes is not None and not row.not_run:
                rows[name] = merged(row.changes, row.miniature) if self.miniature else row.changes
        content = {**content, "rows": rows}
        return override(build_recipe(self.renamed(content), f"reproduce: {self.table.title}"), self.settings)

    def renamed(self, value: Any) -> Any:
        """Names of the paper's teachers, students and benchmarks become those of the miniature, wherever they stand."""
        if not self.miniature:
            return value
        if isinstance(value, Mapping):
            return {key: self.renamed(v) for key, v in value.items()}
        if isinstance(value, list):
            return [self.renamed(v) for v in value]
        return self.paper.names.get(value, value) if isinstance(value, str) else value

    def passes(self, recipe: Recipe) -> Iterator[tuple[bool, Recipe]]:
        """The recipe without distractors, then with them, each with the benchmarks that are there."""
        for distractors in (False, True):
            wanted = [c.benchmark for c in self.table.columns.values() if c.distractors == distractors]
            names = [self.renamed(b) for b in dict.fromkeys(wanted) if self.is_there(b, distractors)]
            if names:
                sets = (f"{MINIATURE}@distractors" if self.miniature else "1m",) if distractors else ()
                yield (
                    distractors,
                    change(
                        change(recipe, "data", benchmarks=tuple(dict.fromkeys(names))), "evaluate", distractors=sets
                    ),
                )

    def is_there(self, benchmark: str, distractors: bool) -> bool:
        if self.miniature:
            return True
        try:
            root = self.session.workspace.benchmark(benchmark).gallery.root
        except CgdError:
            return False
        return not distractors or (root is not None and (root.parent / "revisitop1m").is_dir())

    def missing(self) -> Iterator[dict[str, Any]]:
        """What has to be got first: `needed` is whether nothing can be run without it."""
        if self.miniature:
            if self.table.not_small:
                yield {"what": self.table.not_small, "needed": True}
            return
        if all(row.not_run for row in self.table.rows.values()):
            yield {"what": "no row of it can be run", "needed": True}
            return
        recipe = self.recipe()
        train = recipe.data.train.partition("@")[0]
        with_distractors = {c.benchmark for c in self.table.columns.values() if c.distractors}
        benchmarks = {c.benchmark: self.is_there(c.benchmark, False) for c in self.table.columns.values()}
        try:
            self.session.workspace.images(recipe.data.train)
        except CgdError as error:
            yield {"what": self.told_data(train, error), "needed": True}
        for benchmark, there in benchmarks.items():
            if not there and benchmark != train:
                yield {"what": self.told_data(benchmark, None), "needed": not any(benchmarks.values())}
            elif benchmark in with_distractors and not self.is_there(benchmark, True):
                yield {"what": f"the million distractors beside {benchmark}: revisitop1m/", "needed": False}
        for teacher in recipe.extract.teachers:
            try:
                steps.teacher_sources(self.session, [teacher])
            except CgdError as error:
                yield {"what": f"teacher {teacher}: {error}", "needed": True}
        for init in dict.fromkeys((recipe.distill.init, *_values(recipe.rows, "init")) if recipe.rows else ()):
            if init and not (self.session.weights and (self.session.weights / init).is_file()):
                yield {"what": f"weights that students begin with: --weights DIR with {init}", "needed": True}

    def told_data(self, name: str, error: CgdError | None) -> str:
        reason = f" ({error})" if error is not None and "unknown data set" not in str(error) else ""
        return f"data set {name}, {self.paper.data[name]}: --data {name}=KIND:PATH{reason}"

    def row(self, name: str, row: Row, scores: Sequence[Result]) -> Result:
        found = [self.value(name, row, column, scores) for column in self.table.columns.values()]
        apart = [
            None if self.miniature or ours is None or known is None else ours - known
            for ours, known in zip(found, row.published, strict=True)
        ]
        why = {"not_run": row.not_run} if row.not_run else {}
        return {"row": name, "published": list(row.published), "ours": found, "difference": apart, **why}

    def value(self, name: str, row: Row, column: Column, scores: Sequence[Result]) -> Number:
        """The mean over seeds."""
        teacher = self.renamed(row.teacher)
        protocol = (self.miniature and column.small_protocol) or column.protocol
        wanted = (self.miniature and column.small_value) or column.value
        values = []
        for score in scores:
            if row.teacher:
                label = str(score["model"]).removesuffix(", whitened")
                ours = score["row"] == "teacher" and str(score["model"]).endswith(", whitened") == row.whitened
                ours = ours and (label == teacher or (teacher == "ensemble" and label.startswith("ensemble of ")))
            else:
                ours = score["row"] == (row.of or name) and score["mode"] == row.mode
            there = score["benchmark"] == self.renamed(column.benchmark)
            if ours and there and bool(score["distractors"]) == column.distractors:
                values.append(score["protocols"].get(protocol, {}).get(wanted))
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None


def _values(content: Any, key: str) -> Iterator[str]:
    """Every value of `key` below `content`."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from [value] if name == key else _values(value, key)


def _agreement(rows: Sequence[Result], column: int) -> list[int]:
    """How many pairs of rows are in the published order, and of how many; equal ones are no pair."""
    both = [(r["published"][column], r["ours"][column]) for r in rows]
    known = [(p, o) for p, o in both if p is not None and o is not None]
    pairs = [(a, b) for a, b in combinations(known, 2) if a[0] != b[0]]
    return [sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)]


def nothing_was_run(result: Result) -> bool:
    """Whether no table has a number of ours although that was wanted."""
    found = (value for table in result["tables"] for row in table["rows"] for value in row["ours"])
    return not result["dry_run"] and all(value is None for value in found)


def reproduction_text(result: Result) -> str:
    """Each table, then what is missing and what is not as the authors did it."""
    lines = [result["title"], f"published numbers: {result['source']}"]
    for table in result["tables"]:
        lines += ["", f"table {table['table']}: {table['title']}", _rendered(table, result["dry_run"])]
        agreed = [f"{c} {same} of {pairs}" for c, (same, pairs) in table["agreement"].items() if pairs]
        lines += [f"pairs of rows in the published order: {', '.join(agreed)}"] if agreed else []
        lines += [f"  {row['row']}: {row['not_run']}" for row in table["rows"] if "not_run" in row]
        if result["dry_run"]:
            lines.append(
                f"would run: {len(table['teachers'])} teachers on {table['train']}, {len(table['students'])} students, "
                f"scored on {', '.join(table['benchmarks']) or 'nothing that is here'}"
            )
        lines += [f"  deviation: {text}" for text in table["deviations"]]
    needed: dict[str, list[str]] = {}
    for table in result["tables"]:
        for what in table["missing"]:
            needed.setdefault(what, []).append(table["table"])
    if needed:
        lines += ["", "missing:", *(f"  {what} (table {', '.join(numbers)})" for what, numbers in needed.items())]
    return "\n".join([*lines, "", "deviations:", *(f"  {text}" for text in result["deviations"])])


def _rendered(table: Result, dry_run: bool) -> str:
    """A line for what is published, one for what was found, and one for the difference where both are known."""
    lines = [["row", "", *table["columns"]]]
    for row in table["rows"]:
        lines.append([row["row"], "published", *(_cell(v, "unknown") for v in row["published"])])
        if not dry_run:
            lines.append(["", "ours", *(_cell(v, "not run") for v in row["ours"])])
        if any(v is not None for v in row["difference"]):
            lines.append(["", "difference", *(_cell(v, "", "+.2f") for v in row["difference"])])
    return render(lines, left=2)


def _cell(value: Number, otherwise: str, form: str = ".2f") -> str:
    return otherwise if value is None else f"{value:{form}}"


def introduce(session: Session, data: Sequence[str]) -> None:
    """Remember where data sets are, each `NAME=KIND:PATH`."""
    for item in data:
        name, equals, spec = item.partition("=")
        if not equals:
            raise InputError(f"--data {item}: expected NAME=KIND:PATH.")
        session.workspace.introduce(name, spec)
