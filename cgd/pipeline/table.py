"""Scores as a table to read: one row per model, one column per benchmark and protocol, seeds as mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

_PROTOCOLS = {"labels": "mAP", "easy": "E", "medium": "M", "hard": "H"}


def score_table(scores: Sequence[dict[str, Any]]) -> str:
    """mAP x 100 of results as `cgd evaluate --json` gives them; `row` and `seed` join the seeds of one student."""
    columns: dict[tuple[str, str], None] = {}
    rows: dict[str, dict[tuple[str, str], list[float]]] = {}
    for score in scores:
        name = score["model"] if score.get("seed") is None else score["row"]
        for protocol, values in score["protocols"].items():
            if values["mAP"] is None:
                continue
            column = (_benchmark(score), _PROTOCOLS[protocol])
            columns[column] = None
            rows.setdefault(name, {}).setdefault(column, []).append(values["mAP"])
    head = ["mAP x 100", *(f"{b} {p}" for b, p in columns)]
    body = [[name, *(_cell(row.get(c, [])) for c in columns)] for name, row in rows.items()]
    return render([head, *body])


def render(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns: the first to the left, the others to the right, a line under the head."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))) for r in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def card_line(card: dict[str, Any]) -> str:
    """The protocol in one line, to stand beside a score."""
    crop = {True: "queries cropped", False: "full queries (not the benchmark's protocol)", None: "queries have no box"}[card["query_crop"]]
    extra = "".join(f"; + {d['name']} ({d.get('note', str(d['images']) + ' images')})" for d in card["distractors"])
    size = f"{card['resize']} {card['image_size']}" if card["resize"] != "none" else "unresized"
    scales = card["scales"] if isinstance(card["scales"][0], (int, float)) else card["scales"][0]
    return (
        f"{crop}; {size}, {card['filter']}, scales {', '.join(f'{s:g}' for s in scales)}; {card['dim']} dimensions, "
        f"{'whitened' if card['whitening'] else 'raw'}, {card['similarity']}; relevance by {card['relevance']}; {card['ap']} AP; "
        f"ties by {card['ties']}; {card['index']} search{extra}"
    )


def _benchmark(score: dict[str, Any]) -> str:
    crop = score["card"]["query_crop"]
    return score["benchmark"] + (" (full queries)" if crop is False else "") + (f" +{score['distractors']}" if score["distractors"] else "")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    spread = statistics.stdev(values)
    return f"{statistics.fmean(values):.2f} ± {spread:.2f}"
