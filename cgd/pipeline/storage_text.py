"""What is told of a store, as text to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]
SHOWN = 6  # numbers of a vector


def listing_text(r: Result) -> str:
    places = {a["store"] for a in r["artifacts"]}
    lines = []
    for a in r["artifacts"]:
        state = "sealed" if a["sealed"] else f"not sealed, {a['shards']} shards done"
        lines.append(f"{a['key']}  {state}" + (f"  in {a['store']}" if len(places) > 1 else ""))
    return "\n".join(lines) or "the store is empty"


def info_text(r: Result) -> str:
    """The tree of what an artifact was made from, and everything that is stored of it, or of the row asked for."""
    lines = [*_branch(r["tree"], "", ""), ""]
    if "row" in r:
        return "\n".join([*lines, *(f"{name:<8} {_value_text(value)}" for name, value in r["row"].items())])
    rest = {name: value for name, value in r.items() if name not in ("tree", "provenance")}
    return "\n".join([*lines, json.dumps(rest, indent=2, ensure_ascii=False)])


def _value_text(value: Any) -> str:
    """A string as it is; of many numbers the first few, a line for each scale."""
    if not isinstance(value, list):
        return str(value)
    if value and isinstance(value[0], list):
        return f"\n{'':<9}".join(_value_text(each) for each in value)
    first = " ".join("NaN" if v is None else f"{v:.4g}" for v in value[:SHOWN])
    return first + (f" … {len(value)} numbers" if len(value) > SHOWN else "")


def _branch(node: Result, first: str, rest: str) -> Iterator[str]:
    """Lines of one artifact and of those below it; `first` and `rest` stand before them."""
    if not node["sealed"]:
        yield f"{first}{node['key']}  not here; what was made from it is whole without it"
        return
    about = "" if node["bytes_are"] == "counted" else "about "
    facts = [about + size_text(node["bytes"]), *([f"{node['rows']} rows"] if node["rows"] is not None else [])]
    facts += [f"{name} {str(value)[:12]}" for name, value in node["settings"].items()]
    if node["weights"]:
        facts.append(f"weights {str(node['weights'])[:12]}")
    yield f"{first}{node['key']}  {', '.join(facts)}"
    made = node["made"] or {}
    if made:
        libraries = ", ".join(f"{name} {version}" for name, version in made.get("libraries", {}).items())
        below = "│   " if node["inputs"] else "    "
        yield f"{rest}{below}{made.get('started', '')} by {made.get('user')} on {made.get('host')} with {libraries}"
        if made.get("command"):
            yield f"{rest}{below}{made['command']}"
    for number, each in enumerate(node["inputs"], 1):
        last = number == len(node["inputs"])
        yield from _branch(each, f"{rest}{'└── ' if last else '├── '}", f"{rest}{'    ' if last else '│   '}")


def verify_text(r: Result) -> str:
    lines = [*r["problems"]]
    lines += [f"{u['key']}: being written, {u['shards']} shards done" for u in r["unfinished"]]
    lines += [f"{each}" for each in r.get("changed_images", [])]
    lines += [f"the images of {title} are not at hand" for title in r.get("not_at_hand", [])]
    found = f"{r['artifacts']} artifacts read, {len(r['problems'])} problems"
    if "images_compared" in r:
        found += f"; {r['images_compared']} images compared, {len(r['changed_images'])} changed"
    if r["problems"]:
        found += "; `cgd store repair` mends them, --from URL takes what is lost from another store"
    return "\n".join([*lines, found])


def repair_text(r: Result) -> str:
    lines = []
    for one in r["repaired"]:
        lines += [f"restored {path}" for path in one["restored"]]
        lines += [f"dropped {what}" for what in one["dropped"]]
        if one["kept"]:
            lines.append(f"  what was whole of it stands in {one['kept']}")
        lines += [f"still wrong: {problem}" for problem in one["left"]]
        if one["dropped"] and one["command"]:
            lines.append(f"  made again by: {one['command']}")
    return "\n".join(lines) or "nothing to repair"


def copy_text(r: Result) -> str:
    lines = [f"{key}: {reason}" for key, reason in r["failed"].items()]
    lines += [f"{key}: not whole in {r['from']}, left out" for key in r["unfinished"]]
    done = f"{len(r['copied'])} artifacts copied ({size_text(r['bytes'])}), {len(r['present'])} were there"
    return "\n".join([*lines, done + (f", {len(r['failed'])} failed" if r["failed"] else "")])


def upgrade_text(r: Result) -> str:
    return f"format version {r['schema']}; {len(r['upgraded'])} artifacts upgraded"


def size_text(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
