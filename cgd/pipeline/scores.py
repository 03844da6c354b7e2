"""Stored scores: listed, compared over the same queries, and put into one table where that is honest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.errors import InputError, MissingError, unknown
from cgd.pipeline import score_cards as cards
from cgd.pipeline.score_cards import StoredScore, plain, shown
from cgd.store.layout import WEIGHTS
from cgd.types import Key

if TYPE_CHECKING:
    from cgd.pipeline.steps import Session

LEVEL = 0.95
MOST_NAMED = 8  # keys in one message
ONLY_TO_TELL_APART = ("members", "similarity", "fused_gallery", "weights")
Where = Mapping[str, Sequence[str]]


def list_scores(session: Session, *, benchmarks: Sequence[str] = (), where: Where | None = None) -> dict[str, Any]:
    """The object of `cgd scores ls --json`: every score, its protocol and what is said of its model."""
    scores, left_out = cards.read_scores(session.store())
    entries = [
        {
            "key": str(s.key),
            "model": s.model,
            "protocols": dict(s.results),
            "protocol": dict(s.protocol),
            "about": dict(s.about),
            "unpublished": s.unpublished,
        }
        for s in _chosen(scores, benchmarks, where or {})
    ]
    return {"scores": entries, "left_out": left_out}


def compare(
    session: Session, a: str, b: str, *, benchmarks: Sequence[str] = (), where: Where | None = None
) -> dict[str, Any]:
    """The object of `cgd compare --json`: `a` against `b`, paired over the queries both scored; mAP in percent.

    Either is a score's key or part of one, a model's name, or a student's folder or key. `difference` is that of `a`
    minus that of `b`, `low` and `high` the ends of its interval; `wins` are the queries on which `a` is better.
    Refuses scores of other queries, or that were made by another protocol.
    """
    from cgd.retrieval.bootstrap import RESAMPLES, paired

    one, two = (_find(session, text, benchmarks, where or {}) for text in (a, b))
    if one.key == two.key:
        raise InputError(f"'{plain(a)}' and '{plain(b)}' are the same score, {one.key}: name two.")
    if differ := cards.differing(one.protocol, two.protocol):
        said = "; ".join(f"{n} is {plain(shown(x))} and {plain(shown(y))}" for n, (x, y) in differ.items())
        raise InputError(
            f"{one.key} and {two.key} cannot be compared, they were not measured alike: {said}. "
            "Score both models by one protocol with `cgd evaluate`."
        )
    protocols = {}
    for name in (n for n in one.results if n in two.results):
        found = paired(one.average_precision(name), two.average_precision(name), level=LEVEL)
        protocols[name] = {
            "mAP": [_percent(found.mean_a), _percent(found.mean_b)],
            "difference": _percent(found.difference),
            "low": _percent(found.low),
            "high": _percent(found.high),
            "p": _number(found.p),
            "wins": found.wins,
            "losses": found.losses,
            "ties": found.ties,
            "queries": found.queries,
        }
    same_name = one.model == two.model
    about = {name: [one.about[name], two.about[name]] for name in cards.MODEL if name != "weights" or same_name}
    return {
        "a": {"key": str(one.key), "model": one.model},
        "b": {"key": str(two.key), "model": two.model},
        "benchmark": one.protocol["benchmark"],
        "protocol": dict(one.protocol),
        "images_compared": None not in (one.protocol["images"], two.protocol["images"]),
        "differs": {name: values for name, values in about.items() if values[0] != values[1]},
        "unpublished": one.unpublished,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "protocols": protocols,
    }


def table(
    session: Session,
    *,
    benchmarks: Sequence[str] = (),
    where: Where | None = None,
    allow_mixed: bool = False,
    intervals: bool = False,
) -> dict[str, Any]:
    """The object of `cgd scores table --json`: a row per model, a column per benchmark, distractors and protocol.

    Refuses scores of different protocols unless `allow_mixed`; then the fields that differ are `fields` of every row,
    as those are that tell the models apart. A cell is None, or holds `key`, `mAP` (percent), `queries`, and `low` and
    `high` of the interval where `intervals` are asked for.
    """
    scores, left_out = cards.read_scores(session.store())
    scores = _chosen(scores, benchmarks, where or {})
    mixed = cards.conflicts(scores)
    if mixed and not allow_mixed:
        raise InputError(_refusal(mixed, scores))
    rows = _rows(scores, tuple(mixed))
    first: dict[tuple[str, str | None], StoredScore] = {}
    for s in scores:
        first.setdefault(_column(s), s)
    columns = [(*c, n) for c in sorted(first, key=lambda c: (c[0], c[1] or "")) for n in _scored(scores, c)]
    told = _told(rows, tuple(mixed))
    rows.sort(key=lambda row: (row[0].model.lower(), [shown(_field(row[0], name)) for name in told]))
    return {
        "columns": [
            {"benchmark": b, "distractors": d, "protocol": name, "unpublished": first[b, d].unpublished}
            for b, d, name in columns
        ],
        "fields": list(told),
        "rows": [
            {
                "model": row[0].model,
                "fields": {name: _field(row[0], name) for name in told},
                "about": dict(row[0].about),
                "cells": [_cell(row, column, intervals) for column in columns],
            }
            for row in rows
        ],
        "mixed": list(mixed),
        "protocols": {b: dict(next(s for s in scores if s.protocol["benchmark"] == b).protocol) for b, *_ in columns},
        "level": LEVEL if intervals else None,
        "left_out": left_out,
    }


def _chosen(scores: Sequence[StoredScore], benchmarks: Sequence[str], where: Where) -> list[StoredScore]:
    """Those whose fields are as wanted; several values of a field are alternatives, `*` stands for any text."""
    conditions = {**({"benchmark": benchmarks} if benchmarks else {}), **where}
    left = list(scores)
    for name, wanted in conditions.items():
        if name not in cards.FIELDS:
            raise unknown("field of a score", name, cards.FIELDS)
        patterns = [re.compile(re.escape(text).replace(r"\*", ".*"), re.DOTALL) for text in wanted]
        fits = [s for s in left if any(p.fullmatch(shown(s.fields[name])) for p in patterns)]
        if not fits:
            known = _named(dict.fromkeys(plain(shown(s.fields[name])) for s in left), "; ")
            raise MissingError(f"no score has {name} {plain(' or '.join(wanted))}; there is: {known}.")
        left = fits
    return left


def _find(session: Session, text: str, benchmarks: Sequence[str], where: Where) -> StoredScore:
    """The one score that `text` names."""
    store = session.store()
    if Key.is_name(text.partition("/")[2]) and text.count("/") == 1:
        key = Key.parse(text)
        if key.kind == "scores":
            return cards.read_score(store, key)
        if key.kind != "students":
            raise InputError(f"{key} is no score; `cgd scores ls` lists them.")
    scores, left_out = cards.read_scores(store)
    named = [s for s in scores if s.model == text] or _of_student(session, text, scores)
    named = named or [s for s in scores if text in str(s.key)]
    if not named:
        for damaged in (name for name in left_out if text in name):
            return cards.read_score(store, Key.parse(damaged))  # which says what is wrong with it
        raise MissingError(
            f"'{plain(text)}' is no score's key or part of one, no model that was scored, and no student; "
            "`cgd scores ls` lists what there is."
        )
    left = _chosen(named, benchmarks, where)
    if len(left) > 1:
        keys = _named((str(s.key) for s in left), ", ")
        differ = [name for name in cards.FIELDS if len({shown(s.fields[name]) for s in left}) > 1]
        raise InputError(
            f"'{plain(text)}' fits {len(left)} scores, which differ in {', '.join(differ) or 'none of their fields'}: "
            f"choose with --benchmark or --where, or name one of: {keys}."
        )
    return left[0]


def _of_student(session: Session, text: str, scores: Sequence[StoredScore]) -> list[StoredScore]:
    """Scores of the student in the folder `text`, or with this key, known by the digest of its weights."""
    if not Path(text).is_dir() and not text.startswith("students/"):
        return []
    from cgd.models.checkpoints import file_digest  # torch comes with it
    from cgd.pipeline import steps

    folder, _ = steps.find_student(session, text)
    digest = file_digest(folder / WEIGHTS)
    found = [s for s in scores if any(m.endswith(f"-{digest[:8]}") for m in s.about["members"])]
    if not found:
        raise MissingError(
            f"the student {plain(text)} has no score: run `cgd evaluate --student {text} --benchmark NAME` first."
        )
    return found


def _refusal(mixed: Mapping[str, Mapping[str, int]], scores: Sequence[StoredScore]) -> str:
    said = "; ".join(
        f"{name} is {' or '.join(f'{plain(value)} ({n})' for value, n in counts.items())}"
        for name, counts in mixed.items()
    )
    choice = " ".join(
        f"--where {shlex.quote(f'{name}={max(counts, key=lambda v: counts[v])}')}" for name, counts in mixed.items()
    )
    if "query_crop" in mixed and any(s.protocol["query_crop"] is None for s in scores):
        choice += " --where query_crop=none"  # benchmarks without boxes stay
    return (
        f"these {len(scores)} scores were not measured alike, so one table of them would mislead: {said}. Choose, for "
        f"example with {plain(choice)}, or see them all, told apart, with --mixed."
    )


def _rows(scores: Sequence[StoredScore], mixed: tuple[str, ...]) -> list[list[StoredScore]]:
    """Scores of one model, in all benchmarks; what has two scores in one column is two rows."""
    grouped: dict[str, list[StoredScore]] = {}
    for s in scores:
        row = [s.model, [s.protocol[name] for name in mixed], sorted(s.about.items())]
        grouped.setdefault(repr(row), []).append(s)
    rows: list[list[StoredScore]] = []
    for group in grouped.values():
        alone = len({_column(s) for s in group}) == len(group)
        rows += [group] if alone else [[s] for s in group]
    return rows


def _told(rows: Sequence[Sequence[StoredScore]], mixed: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that stand beside every model: those of the protocol that are mixed, those in which models differ.

    What is as different as the models are, such as their weights, only where nothing else tells two rows apart.
    """

    def values(name: str) -> list[str]:
        return [repr(_field(row[0], name)) for row in rows]

    told = [*mixed, *(n for n in cards.MODEL if n not in ONLY_TO_TELL_APART and len(set(values(n))) > 1)]
    for name in (*ONLY_TO_TELL_APART, "key"):
        if len(set(zip(*map(values, ["model", *told]), strict=True))) == len(rows):
            break
        if len(set(values(name))) > 1:
            told.append(name)
    return tuple(told)


def _field(score: StoredScore, name: str) -> Any:
    return score.key.mark if name == "key" else score.fields[name]


def _column(score: StoredScore) -> tuple[str, str | None]:
    return score.protocol["benchmark"], score.protocol["distractors"]


def _scored(scores: Sequence[StoredScore], column: tuple[str, str | None]) -> list[str]:
    """Names of the protocols under which any score of a column has a mAP."""
    results = [s.results for s in scores if _column(s) == column]
    return list(dict.fromkeys(n for r in results for n, values in r.items() if values["mAP"] is not None))


def _cell(row: Sequence[StoredScore], column: tuple[str, str | None, str], intervals: bool) -> dict[str, Any] | None:
    """What stands in a row under a column; None where it was not scored, or no query has a positive."""
    *place, name = column
    found = next((s for s in row if _column(s) == tuple(place)), None)
    values = found.results.get(name) if found else None
    if found is None or values is None or values["mAP"] is None:
        return None
    cell = {"key": str(found.key), "mAP": values["mAP"], "queries": values["queries"]}
    if intervals:
        from cgd.retrieval.bootstrap import interval

        low, high = interval(found.average_precision(name), level=LEVEL)
        cell |= {"low": _percent(low), "high": _percent(high)}
    return cell


def _named(texts: Iterable[str], separator: str) -> str:
    every = list(texts)
    more = [f"and {len(every) - MOST_NAMED} more"] if len(every) > MOST_NAMED else []
    return separator.join([*every[:MOST_NAMED], *more])


def _percent(fraction: float) -> float | None:
    return _number(100 * fraction)


def _number(value: float) -> float | None:
    """NaN is no JSON."""
    return None if value != value else float(value)
