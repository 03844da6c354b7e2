"""Scores and their comparisons as text, CSV and LaTeX, never without the protocol they were measured by."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgd.pipeline.score_cards import plain, protocol_line, shown
from cgd.pipeline.text import render
from cgd.types import Key

Result = Mapping[str, Any]
UNPUBLISHED = "not a published protocol"
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
    "†": r"\textdagger{}",
}  # fmt: skip


def list_text(r: Result) -> str:
    """A line per score: model, benchmark, how it was searched, results, and the mark that names it."""
    rows = [["model", "benchmark", "protocol", "mark", "mAP x 100"]]
    several = len({s["about"]["descriptors"] for s in r["scores"]}) > 1
    for s in r["scores"]:
        protocol = s["protocol"]
        benchmark = _benchmark(protocol) + (f" ({UNPUBLISHED})" if s["unpublished"] else "")
        crop = {True: ", cropped", False: ", full queries"}.get(protocol["query_crop"], "")
        values = "  ".join(f"{_title(name)} {_value(v['mAP'])}".strip() for name, v in s["protocols"].items())
        searched = f"{protocol['mode']}, {protocol['index']}{crop}"
        searched += f", {s['about']['descriptors']}" if several else ""
        rows.append([s["model"], benchmark, searched, Key.parse(s["key"]).mark, values])
    return "\n".join([render(_plain(rows), left=4), *_left_out(r)])


def compare_text(r: Result) -> str:
    """Who is better, by how much, how sure that is, and what else is different between the two."""
    counts = {"wins": "A better", "losses": "B better", "ties": "equal", "queries": "queries"}
    rows = [["mAP x 100", "A", "B", "A - B", _percent_interval(r["level"]), "p", *counts.values()]]
    for name, v in r["protocols"].items():
        values = [*map(_value, v["mAP"]), _value(v["difference"], "+.2f"), _interval(v, "+.2f"), _value(v["p"], ".4f")]
        rows.append([name, *values, *(str(v[count]) for count in counts)])
    differs = [f"  {name}: {_short(a)} | {_short(b)}" for name, (a, b) in r["differs"].items()]
    distractors = r["protocol"]["distractors"]
    notes = [
        protocol_line(r["protocol"]) + (f"; distractors {distractors}" if distractors else ""),
        *([_warning(r["unpublished"])] if r["unpublished"] else []),
        *([] if r["images_compared"] else [_UNKNOWN]),
        *(["different between the models (A | B):", *differs] if differs else ["the cards of both say the same"]),
        f"interval: bootstrap over queries, {r['resamples']:,} resamples; p: two-sided, by flipping the signs of the "
        f"queries' differences {r['resamples']:,} times",
        "both tell what the choice of queries does, not how a model varies with its seed",
    ]
    models = [f"{x.upper()}  {r[x]['model']}  ({r[x]['key']})" for x in "ab"]
    return "\n".join([*map(plain, models), "", render(_plain(rows)), "", *map(plain, notes)])


def table_text(r: Result) -> str:
    """Models against benchmarks, then the protocols and whatever else is to be told."""
    titles = [_heading(c) + ("†" if c["unpublished"] else "") for c in r["columns"]]
    rows = [["mAP x 100", *r["fields"], *titles]]
    for row in r["rows"]:
        rows.append([row["model"], *map(_short, row["fields"].values()), *map(_cell, row["cells"])])
    table = render(_plain(rows), left=1 + len(r["fields"]))
    return "\n".join([table, "", *map(plain, _notes(r)), *_left_out(r)])


def table_csv(r: Result) -> str:
    """The same for spreadsheets: numbers in full precision, the protocol in the last column.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    several = any(len(row["about"]["members"]) > 1 for row in r["rows"])
    fused = any(row["about"]["fused_gallery"] for row in r["rows"])
    made = [*(["members"] if several else []), *(["fused_gallery"] if fused else [])]
    made = [name for name in made if name not in r["fields"]]
    head = ["model", *r["fields"], *made]
    for c in r["columns"]:
        title = _heading(c) + (f" ({UNPUBLISHED})" if c["unpublished"] else "")
        head += [f"{title} mAP", *([f"{title} low", f"{title} high"] if r["level"] else [])]
    parts = ("mAP", "low", "high") if r["level"] else ("mAP",)
    protocol = " | ".join(_protocols(r))
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(map(_no_formula, [*head, "protocol"]))
    for row in r["rows"]:
        texts = [row["model"], *map(shown, row["fields"].values()), *(shown(row["about"][name]) for name in made)]
        numbers = [cell[part] if cell else "" for cell in row["cells"] for part in parts]
        writer.writerow([*map(_no_formula, texts), *numbers, _no_formula(protocol)])
    return file.getvalue().removesuffix("\n")


def table_latex(r: Result) -> str:
    """The same for LaTeX with booktabs: the best of each column in bold, the protocol in the caption."""
    best = [max((f"{x['mAP']:.2f}" for x in column if x), key=float, default="") for column in _transposed(r)]
    if r["mixed"]:
        best = [""] * len(best)  # none is the best of what does not compare
    rows = []
    for row in r["rows"]:
        values = [_latex_cell(cell, bold) for cell, bold in zip(row["cells"], best, strict=True)]
        rows.append([latex(row["model"]), *(latex(_short(v)) for v in row["fields"].values()), *values])
    caption = latex(" ".join(f"{note}." for note in _notes(r)))
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{mAP $\times$ 100. {caption}}}",
        rf"  \begin{{tabular}}{{{'l' * (1 + len(r['fields']))}{'r' * len(r['columns'])}}}",
        r"    \toprule",
        *_latex_head(r),
        r"    \midrule",
        *map(_latex_row, rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _latex_head(r: Result) -> list[str]:
    """Benchmarks over their protocols, or alone where all are scored by label."""
    names = [latex(name) for name in ("model", *r["fields"])]
    spans, rules, at = [], [], len(names)
    for (title, unpublished), columns in itertools.groupby(r["columns"], lambda c: (_benchmark(c), c["unpublished"])):
        width = len(list(columns))
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{latex(title + ('†' if unpublished else ''))}}}")
        rules.append(rf"\cmidrule(lr){{{at + 1}-{at + width}}}")
        at += width
    protocols = [latex(_title(c["protocol"])) for c in r["columns"]]
    if not any(protocols):
        return [_latex_row([*names, *spans])]
    return [_latex_row([*([""] * len(names)), *spans]), f"    {' '.join(rules)}", _latex_row([*names, *protocols])]


def _latex_row(cells: Sequence[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def latex(text: str) -> str:
    """`text` as LaTeX prints it, also at the start of a row, where `[` and `*` would be read as something else."""
    escaped = "".join(_LATEX.get(c, c) for c in plain(text)).replace("--", "-{}-")
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _latex_cell(cell: Result | None, best: str) -> str:
    if cell is None:
        return "--"
    value = f"{cell['mAP']:.2f}"
    value = rf"\textbf{{{value}}}" if value == best else value
    return f"{value} {{\\scriptsize {_interval(cell)}}}" if "low" in cell else value


def _transposed(r: Result) -> Sequence[Sequence[Result | None]]:
    return [[row["cells"][n] for row in r["rows"]] for n in range(len(r["columns"]))]


def _protocols(r: Result) -> list[str]:
    """By what each benchmark was measured, where rows do not compare, and which columns are in no paper."""
    notes = [protocol_line(protocol, r["mixed"]) for protocol in r["protocols"].values()]
    if r["mixed"]:
        notes.append(f"rows that differ in {', '.join(r['mixed'])} were not measured alike and do not compare")
    if any(p["images"] is None for p in r["protocols"].values()):
        notes.append(_UNKNOWN)
    return notes + [_warning(text, "†") for text in dict.fromkeys(c["unpublished"] for c in r["columns"]) if text]


def _notes(r: Result) -> list[str]:
    """What has to be said beside a table: protocols, how some models are made, what brackets are."""
    made: dict[str, dict[str, None]] = {}
    for row in r["rows"]:
        about = row["about"]
        if len(about["members"]) > 1:
            how = f"{shown(about['similarity'])}: {shown(about['members'])}"
            made.setdefault(how, {})[row["model"]] = None
        if about["fused_gallery"]:
            made.setdefault(f"gallery by {about['fused_gallery']}", {})[row["model"]] = None
    notes = [*_protocols(r), *(f"{'; '.join(models)}: {how}" for how, models in made.items())]
    return [*notes, f"brackets: {_percent_interval(r['level'])}, by bootstrap over queries"] if r["level"] else notes


_UNKNOWN = "the images behind the scores are not in this store: only their numbers and the ground truth were compared"


def _warning(note: str, mark: str = "") -> str:
    return f"{mark} {UNPUBLISHED}: {note.removesuffix(f': {UNPUBLISHED}')}".strip()


def _left_out(r: Result) -> list[str]:
    return [f"left out: {plain(reason)}" for reason in r["left_out"].values()]


def _benchmark(column: Result) -> str:
    return column["benchmark"] + (f" + {column['distractors']}" if column["distractors"] else "")


def _heading(column: Result) -> str:
    return f"{_benchmark(column)} {_title(column['protocol'])}".strip()


def _title(protocol: str) -> str:
    return "" if protocol == "labels" else protocol


def _value(number: float | None, form: str = ".2f") -> str:
    return "-" if number is None else format(number, form)


def _interval(cell: Result, form: str = ".2f") -> str:
    return "-" if cell["low"] is None else f"[{cell['low']:{form}}, {cell['high']:{form}}]"


def _percent_interval(level: float) -> str:
    return f"{100 * level:g} % interval"


def _cell(cell: Result | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mAP']:.2f} {_interval(cell)}" if "low" in cell else f"{cell['mAP']:.2f}"


def _short(value: Any) -> str:
    """A field in a column; of a whitening what it was fitted on, and the beginnings of the marks that tell it apart."""
    keys = [Key.parse(v) for v in (value if isinstance(value, list) else [value]) if Key.is_name(_name(v))]
    if not keys:
        return shown(value)
    return f"{keys[0].label.split('.')[0]} {'/'.join(k.mark[:4] for k in keys)}"


def _name(value: Any) -> str:
    return value.partition("/")[2] if isinstance(value, str) else ""


def _no_formula(text: str) -> str:
    """What begins like a formula, for a spreadsheet too, is text."""
    return f"'{text}" if text[:1] in ("\t", "\r", "\n") or text.lstrip().startswith(("=", "+", "-", "@")) else text


def _plain(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[plain(cell) for cell in row] for row in rows]


TABLES: Mapping[str, Callable[[Result], str]] = {"text": table_text, "csv": table_csv, "latex": table_latex}
