"""A plan as one JSON object, and as tables with the assumptions they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from cgd.pipeline.plan import Plan, Stage
from cgd.pipeline.text import render
from cgd.registry import Spec

Result = Mapping[str, Any]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The object of `cgd plan --json`; hours, bytes and plain numbers."""
    total = {
        "device_hours": plan.total("gpu") / 3600,
        "cpu_hours": plan.total("cpu") / 3600,
        "wall_hours": plan.wall / 3600,
        **asdict(plan.left),
        "cost": plan.cost,
    }
    return {
        **asdict(plan.work),
        "list_bytes": plan.work.list_bytes,
        "teachers": [asdict(teacher) for teacher in plan.teachers],
        "student": asdict(plan.student),
        "rates": asdict(plan.rates),
        "stages": [_stage(stage) for stage in plan.stages],
        "total": total,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "on": stage.on,
        "rows": stage.rows,
        "rows_per_second": stage.rate.value if stage.seconds else None,
        "rate_from": stage.rate.known,
        "hours": stage.seconds / 3600,
        "wall_hours": stage.wall / 3600,
        **asdict(stage.left),
        "cost": stage.cost,
    }


def plan_text(r: Result) -> str:
    """A line per teacher, a line per stage, and what was taken for granted."""
    return "\n".join([_teachers(r), "", _stages(r), "", *_assumptions(r)])


def _teachers(r: Result) -> str:
    head = ["teacher", "dimensions", "scales", "full images/s", "", "crops/s", ""]
    rows = [
        [
            _short(t["name"]),
            str(t["dim"]),
            str(t["scales"]),
            *_rate(t["full"]),
            *(_rate(t["crops"]) if r["views"] else "--"),
        ]
        for t in r["teachers"]
    ]
    return render([head, *rows])


def _rate(rate: Result) -> list[str]:
    return [_number(rate["value"]), rate["known"]]


def _stages(r: Result) -> str:
    priced = r["price"] is not None
    head = ["stage", "on", "rows", "rows/s", "rate", "hours", "wall", "GB", "files", "shards", *["cost"] * priced]
    rows = [
        [
            s["stage"],
            s["on"],
            f"{s['rows']:,}",
            "-" if s["rows_per_second"] is None else _number(s["rows_per_second"]),
            "" if s["rows_per_second"] is None else s["rate_from"],
            _hours(s["hours"]),
            _hours(s["wall_hours"]),
            *_left(s),
            *[_cost(s["cost"])] * priced,
        ]
        for s in r["stages"]
    ]
    t = r["total"]
    spent = [_hours(t["device_hours"] + t["cpu_hours"]), _hours(t["wall_hours"])]
    return render([head, *rows, ["total", "", "", "", "", *spent, *_left(t), *[_cost(t["cost"])] * priced]])


def _left(s: Result) -> list[str]:
    if not s["files"]:
        return ["-", "-", "-"]
    return [f"{s['bytes'] / 1e9:,.3f}", f"{s['files']:,}", f"{s['shards']:,}"]


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3f}" if hours >= 0.01 or not hours else f"{hours:.1g}"


def _cost(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:,.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _assumptions(r: Result) -> list[str]:
    """What the figures rest on, a sentence each."""
    rates, gpus, cpus = r["rates"], r["gpus"], r["processes"]
    read = f"read at {_mega(rates['read'])} by all" if rates["read"] else "read at a rate that is not known"
    together = "" if gpus == 1 else f", {gpus} devices at {100 * r['scaling']:g} % of {gpus} times that (assumed)"
    load = (
        f"; {_told(rates['load'])} a second decoded and cut by a process's threads, meanwhile" if rates["load"] else ""
    )
    lines = [
        f"images: {r['image_bytes'] / 1e3:,.0f} kB each, {read}{load}",
        f"memory: the list of images takes {r['list_bytes'] / 1e9:,.2f} GB in every process",
        f"store: a process reads and checks {_mega(rates['fetch'])}, writes {_mega(rates['write'])} and "
        f"{_told(rates['files'])} files a second",
        f"whitening and scoring: {_told(rates['flops'], 1e9)} GFLOP/s a process",
        f"training: {r['student']['name']}, {r['epochs']} epochs of {r['pairs'] or r['images']:,} pairs, "
        f"{_told(rates['train'])} images a second{together}; targets are built meanwhile",
        f"wall: hours with {gpus} devices (gpu) or {cpus} processes (cpu), stage after stage, whole shards each",
        "derived: by the pixels that a network sees, or from other rates",
        "files: shards, receipts, seals, zarr.json; not counted is provenance, two files for each process and artifact",
    ]
    if r["price"] is not None:
        lines.append(f"cost: {gpus} devices at {r['price']:g} an hour each while a stage needs them")
    return lines


def _told(rate: Result, unit: float = 1.0) -> str:
    return f"{_number(rate['value'] / unit)} ({rate['known']})"


def _mega(rate: Result) -> str:
    return f"{_number(rate['value'] / 1e6)} MB/s ({rate['known']})"


def _short(teacher: str) -> str:
    """A teacher's name without what hardly matters for its speed."""
    spec = Spec.parse(teacher)
    left = {n: v for n, v in spec.options.items() if n not in ("weights", "sha256", "mean", "std")}
    return replace(spec, options=left).typed
