"""The page of `cgd report`: a student beside its teachers, in one file that asks for no other and runs nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from cgd.pipeline import charts
from cgd.pipeline.pages import Box, document, picture
from cgd.pipeline.report_parts import Example, Report, Row, Shown, values_of
from cgd.pipeline.report_text import TITLES, cost_cells, distractors_line, headline, protocol_line, value, vectors_of
from cgd.stages.report import PAIRS, RECALLS, truth_of
from cgd.types import GroundTruth

SIDE = 200  # pixels of the longest side of a picture

_STYLE = """
:root { --chosen: #dff0e3 } @media (prefers-color-scheme: dark) { :root { --chosen: #14331f } }
body { max-width: 1100px; line-height: 1.55 } h1 { font-size: 27px; line-height: 1.25; margin: 2px 0 10px }
h1, p { overflow-wrap: anywhere }
h2 { font-size: 20px; margin: 0 0 6px } h3 { font-size: 15px; margin: 0 0 8px }
p { max-width: 78ch; margin: 6px 0 12px } .above { text-transform: uppercase; letter-spacing: .08em; font-size: 12px;
  margin: 0 } .lead { font-size: 17px; color: var(--ink) }
section { border-top: 1px solid var(--plain); margin-top: 34px; padding-top: 22px }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.35fr); gap: 26px; align-items: start }
.beside .key { display: flex; align-items: center; margin: 2px 0 } .key svg { flex: none }
.box { overflow-x: auto; border: 1px solid var(--plain); border-radius: 8px; margin: 14px 0 }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--plain) }
th { font-weight: 600; color: var(--quiet); font-size: 13px } thead tr:first-child th { border-top: 0 }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 190px; overflow-wrap: anywhere }
td:nth-child(2), th:nth-child(2) { text-align: left } th.group { text-align: center;
  border-left: 1px solid var(--plain) }
.first { border-left: 1px solid var(--plain) }
td:first-child, th:first-child { position: sticky; left: 0 } td, th { background: var(--paper) }
tr.ensemble td { background: var(--card) } tr.after td { background: var(--chosen); font-weight: 700 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 14px }
.chart { background: #fff; color: #1b1f24; border: 1px solid var(--plain); border-radius: 8px; padding: 10px;
  max-width: 640px } .charts .chart { max-width: none }
.chart svg[role] { display: block; width: 100%; height: auto }
.legend { background: #fff; color: #1b1f24; border: 1px solid var(--plain); border-radius: 8px; padding: 7px 12px;
  margin: 0 0 10px; font-size: 13px; max-width: none } .key { display: inline-block; margin-right: 18px }
.key svg { vertical-align: middle; margin-right: 6px } .key path { fill: none }
.query { display: grid; grid-template-columns: 170px minmax(0, 1fr); gap: 18px; margin: 22px 0 }
.query figure { border-width: 1px } figcaption { padding: 6px 8px; font-size: 13px; overflow-wrap: anywhere }
.query h4 { margin: 0 0 4px; font-size: 13px; font-weight: 600; color: var(--quiet) }
ol { grid-template-columns: repeat(10, minmax(0, 1fr)); gap: 5px; margin-bottom: 12px } li { border-radius: 5px }
li .words { padding: 1px 3px; font-size: 11px; text-align: center; white-space: nowrap }
li.ignored { border-style: dotted } li.ignored img { opacity: .45 }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--plain); border-radius: 8px; padding: 12px;
  font: 13px/1.5 ui-monospace, monospace } .keys { overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace }
summary { cursor: pointer } dt { font-weight: 600; margin-top: 8px } dd { margin: 0; color: var(--quiet) }
@media (max-width: 640px) {
  h1 { font-size: 22px } .beside { grid-template-columns: minmax(0, 1fr); gap: 12px }
  th, td { padding: 6px 8px } th:first-child, td:first-child { min-width: 118px }
  .query { grid-template-columns: minmax(0, 1fr) } .query figure { max-width: 170px }
  ol { grid-template-columns: repeat(5, minmax(0, 1fr)) }
}
"""


def report_page(r: Report) -> str:
    """The whole page as HTML; equal reports give equal bytes."""
    title = f"{html.escape(r.place.about['student'])} on {html.escape(r.benchmark.name)}"
    parts = [_head(r), _scores(r), _similarities(r), _training(r), _precision(r), _examples(r), _making(r)]
    return document(f"Report: {title}", _STYLE, "\n".join(parts))


def _head(r: Report) -> str:
    protocol = html.escape(protocol_line(r))
    return f"""<header><p class="above">Distillation report</p>
<h1>{html.escape(headline(r))}</h1>
<p>A <i>student</i>, one small network, was trained to arrange photographs by likeness as several larger networks, its
<i>teachers</i>, do together. Here all of them search: each query is a photograph, the answer is the gallery in order of
likeness. mAP, mean average precision, is 100 where every right image comes before every wrong one.</p>
<p>Benchmark <b>{html.escape(r.benchmark.name)}</b>, protocol of the student’s score: {protocol}.</p></header>"""


def _section(title: str, *parts: str, beside: bool = False) -> str:
    """Parts below each other; with `beside` the last one, a chart, stands at the right where there is room."""
    found = [f"<h2>{title}</h2>", *filter(None, parts)]
    if beside:
        found = ['<div class="beside"><div>', *found[:-1], f"</div>{found[-1]}</div>"]
    return "\n".join(["<section>", *found, "</section>"])


def _scores(r: Report) -> str:
    protocols = list(values_of(r.rows[0].score))
    several = len(protocols) > 1
    added = distractors_line(r)
    titles = [TITLES[p] for p in protocols]
    wide = len(protocols)
    groups = [f'<th class="group" colspan="{wide}">mAP × 100</th>'] if several or added else []
    groups += [f'<th class="group" colspan="{wide}">with distractors</th>'] if added else []
    above = f'<tr><th></th><th colspan="4"></th>{"".join(groups)}</tr>' if groups else ""
    named = "".join(f"<th{_first(n)}>{t}</th>" for _ in range(2 if added else 1) for n, t in enumerate(titles))
    rows = "\n".join(_row(row, protocols) for row in r.rows)
    notes = [
        *(_RAW, _COST.format(device=html.escape(r.device), batch=_batches(r))),
        *([f"Distractors, images that answer no query: {html.escape(added)}."] if added else []),
        *([_ASYMMETRIC] if r.one("asymmetric") else []),
        *map(html.escape, r.notes),
    ]
    table = f"""<div class="box"><table><thead>{above}
<tr><th>network</th><th>vectors</th><th>parameters</th><th>GMACs</th><th>images/s</th>{named}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""
    return _section("Scores and costs", table, *(f"<p>{note}</p>" for note in notes))


_RAW = """<b>Raw</b> vectors are as a network gives them. <b>Whitened</b> ones were turned and stretched so that all
their directions vary alike, which puts teachers on one scale. The <b>ensemble</b> takes the mean of all teachers’
similarities, and costs all of them. The student <b>before</b> is the same network as training found it."""
_COST = """GMACs: billions of multiply-adds for one image at the network’s own size. Images/s: measured for this page,
all networks in one run on {device}: the network alone, at its own input size{batch}, about one second each after a
warm-up, in turns, the fastest pass. A dash: the network’s weights are not on this machine."""
_ASYMMETRIC = """<b>Asymmetric student</b>: the gallery was embedded once by the teachers, whose vectors were fused, and
only queries go through the student; the cost is that of a query."""


def _batches(r: Report) -> str:
    sizes = sorted({row.cost.batch for row in r.rows if row.cost})
    return f" in batches of {' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))}" if sizes else ""


def _first(number: int) -> str:
    return ' class="first"' if number == 0 else ""


def _row(row: Row, protocols: Sequence[str]) -> str:
    about = row.as_json()
    cells = cost_cells(about["parameters"], about["gmacs"], about["images_per_second"])
    values = [values_of(row.score)] + ([values_of(row.distracted)] if row.distracted else [])
    scores = "".join(f"<td{_first(n)}>{value(of[p])}</td>" for of in values for n, p in enumerate(protocols))
    costs = "".join(f"<td>{cell}</td>" for cell in cells)
    vectors = vectors_of(row.kind, row.whitened)
    return f'<tr class="{row.kind}"><td>{html.escape(row.name)}</td><td>{vectors}</td>{costs}{scores}</tr>'


def _similarities(r: Report) -> str:
    values = [a for pair in r.similarities.values() for s in pair if s for a in (s.others, s.same) if len(a)]
    if not values:
        return ""
    low = min(float(np.quantile(a, 0.0005)) for a in values)
    span = (float(np.floor(low * 20) / 20), 1.0)
    panels = [("before", "Before whitening", {n: s for n, (s, _) in r.similarities.items()})]
    whitened = {n: s for n, (_, s) in r.similarities.items() if s is not None}
    if whitened:
        panels.append(("whitened", "After whitening", whitened))
    drawn = []
    for name, title, of in panels:
        chart = charts.similarity_chart(name, title, {k: (s.others, s.same) for k, s in of.items()}, span)
        drawn.append(f'<div class="chart">{chart}</div>')
    return _section(
        "How alike images are to each teacher",
        f"<p>Cosines of queries with gallery images of a <i>different</i> object (solid) and of the <i>same</i> one "
        f"(dashed, filled), at most {PAIRS:,} pairs of each. {_to_see(r)}</p>",
        charts.legend(charts.teacher_lines(list(r.similarities)), pairs=True),
        f'<div class="charts">{"".join(drawn)}</div>',
    )


def _to_see(r: Report) -> str:
    """What the histograms say, with the middles of their solid curves."""
    raw = [float(np.median(s.others)) for s, _ in r.similarities.values() if len(s.others)]
    whitened = [float(np.median(s.others)) for _, s in r.similarities.values() if s is not None and len(s.others)]
    if len(raw) < 2:
        return "The further the dashed curve lies to the right of the solid one, the better it tells objects apart."
    apart = (
        f"Before whitening each teacher has its own scale (the solid curves’ middles: {_listed(raw)}): the same number "
        "means alike to one and unlike to another, so a maximum or mean over teachers is decided by one of them."
    )
    if not whitened:
        return apart
    if np.ptp(whitened) < np.ptp(raw):
        return f"{apart} After whitening they agree ({_listed(whitened)})."
    return f"{apart} Whitening has not brought them closer here ({_listed(whitened)})."


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{0.0 if abs(v) < 0.005 else v:.2f}" for v in values)


def _training(r: Report) -> str:
    if not r.epochs:
        return _section("Training", "<p>The student’s training log is not beside it.</p>")
    epochs, validation = [e.number for e in r.epochs], [e.validation for e in r.epochs]
    distill, best = r.place.about["distill"], r.place.about.get("best")
    told = [
        f"{len(epochs)} epochs of the method {html.escape(str(distill['method']))}, teachers joined by "
        f"{html.escape(str(distill['fusion']))}. The loss says how far the student’s likenesses are from its teachers’."
    ]
    if any(v is not None for v in validation):
        told.append("The dashed line is the mAP among images of classes held out.")
    if best:
        told.append(f"The student of epoch {int(best['epoch'])} was kept, which scored best on them.")
    chart = charts.loss_chart("loss", epochs, [e.loss for e in r.epochs], validation)
    return _section("Training", f"<p>{' '.join(told)}</p>", f'<div class="chart">{chart}</div>', beside=True)


def _precision(r: Report) -> str:
    lines = charts.curve_lines({kind: title for kind, (title, _) in r.curves.items()})
    drawn = {kind: ranking.precision for kind, (_, ranking) in r.curves.items()}
    under = "under the protocol Medium, junk taken out" if r.benchmark.truth else "by label"
    chart = charts.precision_chart("precision", RECALLS, drawn, lines)
    return _section(
        "Precision by recall",
        f"<p>Looking down a ranking until a share of the right images is found (recall), how many of the images seen "
        f"are right (precision)? The higher a curve, the better. A mean over queries {under}, of the highest precision "
        f"at each of {len(RECALLS)} levels of recall or above it; exact search, no distractors.</p>",
        charts.legend(list(lines.values())),
        f'<div class="chart">{chart}</div>',
        beside=True,
    )


def _examples(r: Report) -> str:
    if not r.examples:
        return ""
    rules = [example.choice.rule for example in r.examples]
    taken = f"{', '.join(rules[:-1])} and {rules[-1]}" if len(rules) > 1 else rules[0]
    boxed = " The frame in a query is the part that was searched for." if r.cropped else ""
    when = "by the student before and after training" if r.examples[0].before else "by the trained student"
    truth = truth_of(r.benchmark)
    return _section(
        "What it finds",
        f"<p>The ten nearest images {when}. Queries were not picked by hand: of all queries that have a right answer "
        f"these are the ones with {taken}. Solid green: right. Dashed red: wrong. Dotted grey: ignored by the "
        f"protocol.{boxed}</p>",
        *(_example(r, example, truth) for example in r.examples),
    )


def _example(r: Report, example: Example, truth: GroundTruth) -> str:
    query, rule = example.choice.query, example.choice.rule
    images = r.benchmark.queries
    box: Box | None = images.boxes[query] if r.cropped and images.boxes else None
    label = f"<br>label {html.escape(images.labels[query])}" if images.labels else ""
    shown = picture(images.root, images.paths[query], "the query", side=2 * SIDE, box=box)
    lists = [
        _list(r, truth, query, when, found)
        for when, found in (("before", example.before), ("after", example.after))
        if found is not None
    ]
    return f"""<div class="query"><div><h3>{rule[:1].upper()}{rule[1:]}</h3><figure>{shown}
<figcaption>{html.escape(images.ids[query])}{label}</figcaption></figure></div>
<div>{"".join(lists)}</div></div>"""


def _list(r: Report, truth: GroundTruth, query: int, when: str, found: Shown) -> str:
    rows = [int(row) for row in found.rows if row >= 0]
    items = "".join(_found(r, truth, query, rank, row) for rank, row in enumerate(rows, 1))
    return f"<h4>Student {when}: AP {100 * found.precision:.1f}</h4><ol>{items}</ol>"


def _found(r: Report, truth: GroundTruth, query: int, rank: int, row: int) -> str:
    gallery = r.benchmark.gallery
    itself = r.benchmark.leave_one_out and row == query
    right = row in truth.easy[query] or row in truth.hard[query]
    kind, mark, said = ("right", "✓", "right") if right else ("wrong", "✗", "wrong")
    if not right and row in truth.junk[query]:
        kind, mark, said = "ignored", "–", "the query itself" if itself else "ignored"
    title = html.escape(f"{gallery.ids[row]}: {said}")
    image = picture(gallery.root, gallery.paths[row], f"{rank}: {said}", side=SIDE)
    return f'<li class="{kind}" title="{title}">{image}<div class="words">{rank} <b class="mark">{mark}</b></div></li>'


def _making(r: Report) -> str:
    recipe = html.escape(json.dumps(r.place.about, indent=1, sort_keys=True))
    keys = [("student", [str(r.key)] if r.key else []), ("trained on", r.place.about["inputs"])]
    keys += [("whitenings of full images", [str(key) for key in (r.teaching.whitenings or {}).values()])]
    keys += [("scores", [key for row in r.rows for key in row.as_json()["keys"]])]
    listed = "".join(
        f"<dt>{name}</dt>{''.join(f'<dd>{html.escape(str(key))}</dd>' for key in of)}" for name, of in keys if of
    )
    commands = html.escape("\n".join(r.commands))
    return _section(
        "How it was made",
        f"<p>By cgd {html.escape(version('cgd'))}. These commands repeat the page and the scores from the store; "
        f"whatever is stored is not computed again.</p><pre>{commands}</pre>",
        f"<details><summary>The student’s recipe</summary><pre>{recipe}</pre></details>",
        f'<details><summary>Keys in the store</summary><dl class="keys">{listed}</dl></details>',
    )
