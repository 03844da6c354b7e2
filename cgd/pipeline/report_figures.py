"""The figures of a report: similarities of teachers, precision by recall, nearest images of chosen queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cgd.data.views import CROPPED, FIXED
from cgd.pipeline import scoring
from cgd.pipeline.report_parts import Example, Row, Shown, main_value
from cgd.pipeline.report_scores import Job

if TYPE_CHECKING:
    import numpy as np

    from cgd.models.encoder import EncoderSource
    from cgd.stages.descriptors import Member
    from cgd.stages.report import Ranking, Similarities

NEAREST = 10


def _member(job: Job, source: EncoderSource, whitened: bool = False) -> Member:
    """The stored vectors of an encoder on the benchmark, without distractors."""
    from cgd.stages.descriptors import Member

    config = job.recipes[0].extract
    gallery = scoring.embed(job.session, job.benchmark.gallery, [source], FIXED, config)[source.label]
    view = CROPPED if job.cropped else FIXED
    queries = scoring.embed(job.session, job.benchmark.queries, [source], view, config)[source.label]
    whitening = (job.teaching.whitenings or {}).get(source.label) if whitened else None
    return Member(source.label, gallery, queries, whitening)


def similarities_of(job: Job) -> dict[str, tuple[Similarities, Similarities | None]]:
    """Of each teacher by label: raw, and whitened where it has a whitening."""
    from cgd.stages.report import similarities, truth_of

    store, truth = job.session.store(write=True), truth_of(job.benchmark)
    precision = job.recipes[0].evaluate.descriptors

    def of(source: EncoderSource, whitened: bool) -> Similarities:
        return similarities(store, _member(job, source, whitened), truth, precision)

    whitened = job.teaching.whitenings is not None
    return {s.label: (of(s, False), of(s, True) if whitened else None) for s in job.teaching.sources}


def curves_of(job: Job, rows: Sequence[Row]) -> dict[str, tuple[str, Ranking]]:
    """What each curve is called, and the ranking, by kind: best teacher, ensemble, student before and after."""
    from cgd.stages.report import ranking, truth_of

    whitened = job.teaching.whitenings is not None
    kind, sources = "whitened" if whitened else "raw", job.teaching.sources
    teachers = [row for row in rows if row.kind == "teacher" and row.whitened == whitened]
    best = max(teachers, key=lambda row: main_value(row.score) or 0.0).name
    models = {"teacher": (f"best teacher: {best}, {kind}", [s for s in sources if s.label == best])}
    if len(sources) > 1:
        models["ensemble"] = (f"ensemble of {len(sources)}, {kind}", list(sources))
    if job.before is not None:
        models["before"] = ("student before", [job.before])
    models["after"] = ("student after", [job.after])
    store, truth, config = job.session.store(write=True), truth_of(job.benchmark), job.recipes[0].evaluate
    scorer = scoring.scorer_on(job.session.device)
    found = {}
    for name, (title, of) in models.items():
        members = [_member(job, source, whitened) for source in of]
        found[name] = (title, ranking(store, members, truth, config, scorer))
    return found


def examples_of(job: Job, curves: Mapping[str, tuple[str, Ranking]]) -> tuple[Example, ...]:
    """Queries chosen by a rule, with the nearest images of the student before and after."""
    from cgd.stages.report import choose

    after = curves["after"][1].average_precision
    before = curves["before"][1].average_precision if "before" in curves else None
    choices = choose(before, after)
    asked = [choice.query for choice in choices]
    found = []
    for source, precision in ((job.before, before), (job.after, after)):
        shown: list[Shown | None] = [None] * len(asked)
        if source is not None and precision is not None and asked:
            rows = _nearest(job, source, asked)
            shown = [Shown(float(precision[query]), row) for query, row in zip(asked, rows, strict=True)]
        found.append(shown)
    return tuple(Example(*each) for each in zip(choices, *found, strict=True))


def _nearest(job: Job, source: EncoderSource, asked: Sequence[int]) -> np.ndarray:
    """Rows (len(asked), NEAREST) of the gallery."""
    from cgd.stages.report import nearest_rows

    store, scorer = job.session.store(write=True), scoring.scorer_on(job.session.device)
    return nearest_rows(store, [_member(job, source)], asked, NEAREST, job.recipes[0].evaluate, scorer)
