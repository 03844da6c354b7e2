"""Run a recipe from photographs to scores; whatever is stored already is not done again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import Recipe
from cgd.errors import InputError, unknown
from cgd.pipeline import scoring, steps
from cgd.pipeline.recipe import change, row, to_yaml
from cgd.pipeline.steps import Session
from cgd.registry import slug
from cgd.stages import select
from cgd.store.files import replace_file
from cgd.store.keys import canonical, ids_digest, labels_digest, sha256
from cgd.types import Benchmark, ImageList, Key

if TYPE_CHECKING:
    from cgd.models.encoder import EncoderSource

STUDENT = "student"  # the row of a recipe that has no rows
RESULTS = "results.json"
Result = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass
class RunReport:
    """Every score as `cgd evaluate --json` gives it, grouped in rows of the table, and the students.

    `rows` are all rows there are; those without scores have not been run yet.
    """

    rows: tuple[str, ...]
    scores: list[Result] = field(default_factory=list)
    students: list[Result] = field(default_factory=list)

    def as_json(self) -> Result:
        """The object of `cgd run --json`."""
        return {"rows": list(self.rows), "scores": self.scores, "students": self.students}


def run(
    session: Session,
    recipe: Recipe,
    *,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    students: bool = True,
    out: Path,
) -> RunReport:
    """Extract, whiten, score the teachers and their ensemble, then distil and score each row once per seed.

    A recipe without rows is one row. `only` names the rows to do now; of the others the table has what earlier runs
    left in `out`. Without `students` only teachers are scored.
    """
    seeds = tuple(seeds) or (recipe.distill.seed,)
    images = _training_images(session, recipe)
    benchmarks = [session.workspace.benchmark(name) for name in recipe.data.benchmarks]
    recipe = steps.pin(session, recipe)
    rows = {name: steps.pin(session, row(recipe, name)) for name in recipe.rows} or {STUDENT: recipe}
    for name in only:
        if name not in rows:
            raise unknown("row", name, rows)
    todo = [name for name in rows if students and (not only or name in only)]
    sources = steps.teacher_sources(session, recipe.extract.teachers)
    labels = [source.label for source in sources]
    for name in todo:
        steps.check_distillation(rows[name], images, labels)
    _save(to_yaml(recipe).encode(), out / "recipe.yaml")

    _tell_of_overlap(session, recipe, images, benchmarks)
    log.info("1/4 teachers look at %d images of %s", len(images), images.title)
    extracted = steps.extract_teachers(session, images, recipe.extract)
    sources = [source for source in sources if source.identity["name"] != select.MAPS]
    embeddings = {source.label: extracted.encoders[source.label].keys for source in sources}
    log.info("2/4 whitening")
    whitened = steps.fit_whitening(session, embeddings, recipe.whiten)
    log.info("3/4 scores of teachers and untrained students on %s", ", ".join(b.name for b in benchmarks))
    report = RunReport(tuple(rows))
    whitenings = {label: reports["fixed"].key for label, (reports, _) in whitened.items()}
    report.scores += teacher_scores(session, benchmarks, sources, recipe, whitenings)
    report.scores += _starting_scores(session, benchmarks, recipe, [rows[name] for name in todo], seeds)
    content = _content(images, benchmarks)
    for number, name in enumerate(todo, 1):
        log.info("4/4 students, row %d of %d: %s; %d seed(s)", number, len(todo), name, len(seeds))
        vectors = embeddings
        if rows[name].distill.space != "raw":
            vectors = {k: v for k, (_, v) in steps.fit_whitening(session, embeddings, rows[name].whiten).items()}
        for seed in seeds:
            seeded = change(rows[name], "distill", seed=seed)
            folder = out / f"{slug(name)}-seed{seed}"
            student = steps.distill(session, images, vectors, seeded, folder)
            scores = _student_scores(session, benchmarks, seeded, folder)
            result: Result = {
                "mark": _mark(seeded, content),
                "keys": [str(student.key), *(score["key"] for score in scores)],
                "student": student.as_json(),
                "scores": [{**score, "row": name, "seed": seed} for score in scores],
            }
            _keep(out / RESULTS, name, seed, result)
    found = _results(out / RESULTS)
    for name in rows:
        for seed in seeds:
            result = found.get(name, {}).get(str(seed), {})
            if result.get("mark") == _mark(change(rows[name], "distill", seed=seed), content):
                report.students.append(result["student"])
                report.scores += result["scores"]
    return report


def _tell_of_overlap(session: Session, recipe: Recipe, images: ImageList, benchmarks: Sequence[Benchmark]) -> None:
    """Say where a benchmark has what is trained on, which inflates its score."""
    if recipe.distill.exclude:
        return
    for benchmark in benchmarks:
        kinds = session.workspace.kind(images.name), session.workspace.kind(benchmark.name)
        common = sorted(set(images.labels or ()) & set(benchmark.gallery.labels or ()))
        if kinds[0] == "gldv2-clean" and kinds[1] in ("roxford5k", "rparis6k"):
            log.warning(
                "GLDv2-clean holds landmarks of %s (Song et al., CVPR 2024), so its scores are not those of unseen "
                "landmarks: list these landmarks in a file and set distill.exclude to it.",
                benchmark.name,
            )
        elif common:
            log.warning(
                "%s and %s have %d labels in common, e.g. %s: scores are not those of unseen classes; list the labels "
                "in a file and set distill.exclude to it.",
                images.title,
                benchmark.name,
                len(common),
                common[0],
            )


def _results(path: Path) -> dict[str, dict[str, Result]]:
    """What runs in this folder found so far, by row and seed."""
    try:
        found = json.loads(path.read_text())
        assert all(isinstance(result, dict) for seeds in found.values() for result in seeds.values())
    except (OSError, ValueError, AttributeError, AssertionError):
        return {}  # nothing is lost: a row that is run again finds its student and scores in the store
    return found


def _keep(path: Path, name: str, seed: int, result: Result) -> None:
    """Put one result into the file, beside what other runs put there."""
    found = _results(path)
    earlier = found.setdefault(name, {}).get(str(seed), {})
    if (earlier.get("mark"), earlier.get("keys")) != (result["mark"], result["keys"]):
        found[name][str(seed)] = result
        replace_file(path, json.dumps(found).encode())


def _content(images: ImageList, benchmarks: Sequence[Benchmark]) -> list[Any]:
    """What tells the images, their labels and the ground truths from others under the same names."""
    lists = [images, *(part for b in benchmarks for part in (b.gallery, b.queries))]
    truths = [b.truth for b in benchmarks if b.truth]
    relevant = [sha256(b"".join(rows.tobytes() for rows in (*t.easy, *t.hard, *t.junk))) for t in truths]
    return [*([ids_digest(part), labels_digest(part), part.boxes] for part in lists), *relevant]


def _mark(recipe: Recipe, content: Sequence[Any]) -> str:
    """What tells one experiment from another."""
    path = Path(recipe.distill.exclude)
    excluded = path.read_bytes().hex() if recipe.distill.exclude and path.is_file() else ""
    return sha256(canonical([to_yaml(recipe), excluded, list(content)]))


def teacher_scores(
    session: Session,
    benchmarks: Sequence[Benchmark],
    sources: Sequence[EncoderSource],
    recipe: Recipe,
    whitenings: Mapping[str, Key] | None,
) -> list[Result]:
    """Each teacher and their ensemble, raw, then whitened where `whitenings` by label are given."""
    return [
        {**score, "row": "teacher", "seed": None}
        for whitening in ([None] if whitenings is None else [None, whitenings])
        for benchmark in benchmarks
        for score in scoring.evaluate(
            session,
            benchmark,
            sources,
            recipe,
            whitening=whitening,
            ensemble=recipe.evaluate.ensemble,
        )
    ]


def _starting_scores(
    session: Session, benchmarks: Sequence[Benchmark], recipe: Recipe, rows: Sequence[Recipe], seeds: Sequence[int]
) -> list[Result]:
    """The students as they begin, each kind of them once; a start without a random part is the same for all seeds."""
    starts = dict.fromkeys((r.distill.student, r.distill.init) for r in rows)
    scores = []
    for student, init in starts:
        weights = f" from {init.partition('?')[0]}" if init else ""
        name = "student before" if len(starts) == 1 else f"{student}{weights} before"
        for seed in seeds:
            source = steps.student_source(session, change(recipe, "distill", student=student, init=init, seed=seed))
            scores += [{**s, "row": name, "seed": seed} for s in _scores(session, benchmarks, recipe, source)]
    return scores


def _student_scores(session: Session, benchmarks: Sequence[Benchmark], recipe: Recipe, folder: Path) -> list[Result]:
    """The trained student alone, against a gallery of its fused teachers, or both."""
    scores: list[Result] = []
    if recipe.evaluate.mode != "asymmetric":
        scores += _scores(session, benchmarks, recipe, steps.load_student(session, str(folder)))
    if recipe.evaluate.mode != "symmetric":
        for benchmark in benchmarks:
            scores += scoring.evaluate_asymmetric(
                session,
                benchmark,
                str(folder),
                recipe,
                teachers=recipe.extract.teachers,
            )
    return scores


def _scores(session: Session, benchmarks: Sequence[Benchmark], recipe: Recipe, source: EncoderSource) -> list[Result]:
    return [score for benchmark in benchmarks for score in scoring.evaluate(session, benchmark, [source], recipe)]


def _save(data: bytes, path: Path) -> None:
    """Write a file beside what it tells of, unless it is there already."""
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)


def _training_images(session: Session, recipe: Recipe) -> ImageList:
    if not recipe.data.train:
        raise InputError("the recipe names no training images: set data.train to NAME or NAME@SPLIT.")
    return session.workspace.images(recipe.data.train)
