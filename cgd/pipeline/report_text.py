"""A report in words and as JSON: the sentence at its head, protocol and costs, and its table as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cgd.pipeline.report_parts import Report, main_value, values_of
from cgd.pipeline.score_cards import plain
from cgd.pipeline.text import card_line, render

TITLES = {"labels": "mAP", "easy": "Easy", "medium": "Medium", "hard": "Hard"}
WIDTH = 80  # columns of the plain table, at most
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def headline(r: Report) -> str:
    """The result in one sentence: cost against the teachers', then mAP against their ensemble's and the start's."""
    student, start = r.one("after"), r.one("before")
    whole = r.one("ensemble") or r.one("teacher")
    assert student is not None
    assert whole is not None
    count = len(r.teaching.sources)
    teachers = f"its {_number(count)} teachers together" if count > 1 else "its teacher"
    cheaper = ""
    if whole.cost and student.cost and whole.cost.gmacs and student.cost.gmacs:
        ratio = whole.cost.gmacs / student.cost.gmacs
        times = f"{_times(ratio)} fewer" if ratio >= 1 else f"{_times(1 / ratio)} more"
        cheaper = f"needs {times} multiply-adds than {teachers} and "
    reached = main_value(student.score)
    medium = " (Medium)" if "medium" in values_of(student.score) else ""
    others = []
    if (goal := main_value(whole.score)) is not None:
        others.append(f"{'their ensemble' if cheaper else 'the ensemble of its teachers'} has {goal:.1f}")
        if count == 1:
            others = [f"its teacher has {goal:.1f}"]
    if start and (began := main_value(start.score)) is not None:
        others.append(f"it had {began:.1f} before training")
    where = f", where {' and '.join(others)}" if others else ""
    score = "no mAP, as no query has a right image," if reached is None else f"{reached:.1f} mAP{medium}"
    return f"The student {cheaper}reaches {score} on {r.benchmark.name}{where}."


def _times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:,.0f}×"


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def protocol_line(r: Report) -> str:
    """How the student after training was scored."""
    after = r.one("after")
    assert after is not None
    return (
        f"{len(r.benchmark.queries):,} queries, {len(r.benchmark.gallery):,} gallery images; "
        f"{card_line(after.score['card'])}"
    )


def distractors_line(r: Report) -> str:
    """Which images were added to the gallery; empty where none were."""
    after = r.one("after")
    assert after is not None
    if after.distracted is None:
        return ""
    sets = after.distracted["card"]["distractors"]
    return " and ".join(f"{d['name']} ({d.get('note', '{:,} images'.format(d['images']))})" for d in sets)


def report_json(r: Report) -> dict[str, Any]:
    """The object of `cgd report --json`."""
    return {
        "student": str(r.key or r.place.folder),
        "benchmark": r.benchmark.name,
        "headline": headline(r),
        "protocol": protocol_line(r),
        "distractors": distractors_line(r),
        "device": r.device,
        "rows": [row.as_json() for row in r.rows],
        "notes": list(r.notes),
        "page": str(r.out),
    }


def cost_cells(parameters: int | None, gmacs: float | None, images_per_second: float | None) -> tuple[str, str, str]:
    """As they are printed; dashes where they are not known."""
    if parameters is None or gmacs is None or images_per_second is None:
        return ("–", "–", "–")
    return millions(parameters), f"{gmacs:.3f}" if gmacs else "0", rate(images_per_second)


def millions(parameters: int) -> str:
    if not parameters:
        return "none"
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e4 else str(parameters)


def rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.1f}"


def value(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def report_text(r: Mapping[str, Any]) -> str:
    """The table of `cgd report`, never wider than 80 columns, and where the page is."""
    protocols = list(r["rows"][0]["mAP"])
    titles = [TITLES[p] for p in protocols]
    rows = [["mAP x 100", "", "params", "GMACs", "images/s", *titles]]
    for row in r["rows"]:
        values = (value(row["mAP"][p]) for p in protocols)
        rows.append([plain(row["model"]), _vectors(row), *_costs(row), *values])
    parts = [_wrapped(r["headline"]), _fitted(rows)]
    if r["distractors"]:
        rows = [["mAP x 100", "", *titles]]
        for row in r["rows"]:
            values = (value(row["mAP_with_distractors"][p]) for p in protocols)
            rows.append([plain(row["model"]), _vectors(row), *values])
        parts.append(f"{_wrapped('with distractors: ' + r['distractors'])}\n{_fitted(rows)}")
    notes = [f"{r['benchmark']}: {r['protocol']}", f"images/s: networks alone, {r['device']}", *r["notes"]]
    return "\n\n".join([*parts, "\n".join(map(_wrapped, notes)), f"page: {r['page']}"])


def _costs(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return cost_cells(row["parameters"], row["gmacs"], row["images_per_second"])


def _vectors(row: Mapping[str, Any]) -> str:
    return vectors_of(row["kind"], row["whitened"])


def vectors_of(kind: str, whitened: bool) -> str:
    """Whether a row is of raw or whitened vectors, where both could be."""
    if kind not in ("teacher", "ensemble", "baseline"):
        return ""
    return "whitened" if whitened else "raw"


def _wrapped(text: str) -> str:
    return textwrap.fill(plain(text), WIDTH, break_long_words=False, break_on_hyphens=False)


def _fitted(rows: Sequence[Sequence[str]]) -> str:
    """The table, names without their middle where it would be too wide."""
    longest = max(len(row[0]) for row in rows)
    excess = len(render(rows, left=2).splitlines()[0]) - WIDTH
    return render([[shortened(row[0], longest - max(0, excess)), *row[1:]] for row in rows], left=2)


def shortened(name: str, most: int) -> str:
    """`name` without its middle where it is too long: names of teachers differ at either end."""
    if len(name) <= most:
        return name
    head = max(1, most - 1) // 2
    return f"{name[:head]}…{name[len(name) - max(1, most - 1 - head) :]}"
