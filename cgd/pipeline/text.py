"""Results as text to read: tables, protocol cards and one-line summaries."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CROP = {True: "queries cropped", False: "full queries (not the benchmark's protocol)", None: "queries have no box"}
_PROTOCOLS = {
    "labels": "mAP",
    "easy": "E",
    "medium": "M",
    "hard": "H",
    "top-100": "mAP@100",
    "all": "mAP",
    "hamming": "mAP",
}
Result = Mapping[str, Any]


def score_table(scores: Sequence[Result], rows: Sequence[str] = ()) -> str:
    """mAP x 100 of results as `cgd evaluate --json` gives them; `row` and `seed` join the seeds of one student.

    `rows` come last, in their order, those without scores with empty cells.
    """
    columns: dict[tuple[str, str], None] = {}
    cells: dict[str, dict[tuple[str, str], list[float]]] = {}
    of_row: dict[Any, list[Result]] = {}
    for score in scores:
        of_row.setdefault(score.get("row"), []).append(score)
    for row in [*(name for name in of_row if name not in rows), *rows]:
        for score in of_row.get(row, []):
            cell = cells.setdefault(_name(score), {})
            for protocol, values in score["protocols"].items():
                if values["mAP"] is not None:
                    column = (_benchmark(score), _PROTOCOLS[protocol])
                    columns[column] = None
                    cell.setdefault(column, []).append(values["mAP"])
        if row not in of_row:
            cells[row] = {}
    head = ["mAP x 100", *(f"{b} {p}" for b, p in columns)]
    return render([head, *([name, *(_cell(cell.get(c, [])) for c in columns)] for name, cell in cells.items())])


def _name(score: Result) -> str:
    """What a line of the table is called: the row of a student, else the model."""
    if score.get("seed") is None:
        return str(score["model"])
    return f"{score['row']}, asymmetric" if score.get("mode") == "asymmetric" else str(score["row"])


def card_line(card: Result) -> str:
    """The protocol in one line, to stand beside a score."""
    sized = f"{card['resize']} {card['image_size']}, {card['filter']}"
    size = {"none": f"unresized, {card['filter']}", "unknown": "input unknown"}.get(card["resize"], sized)
    scales = card["scales"] if isinstance(card["scales"][0], (int, float)) else card["scales"][0]
    fused = card.get("gallery")
    gallery = f"asymmetric: gallery by {', '.join(fused['teachers'])} fused by {fused['fusion']}" if fused else ""
    parts = [
        *filter(None, [gallery]),
        CROP[card["query_crop"]],
        f"{size}, scales {', '.join(f'{s:g}' for s in scales)}",
        *([f"images shrunk to {card['degrade']} pixels and enlarged again"] if "degrade" in card else []),
        *([f"{card['frames']} frames of a video, pixels {card['pixels']}"] if "frames" in card else []),
        f"{_width(card)}, {'whitened' if card['whitening'] else 'raw'}, {card['similarity']}",
        f"relevance by {card['relevance']}",
        *([_drawn(card["random_queries"])] if "random_queries" in card else []),
        f"{card['ap']} AP",
        f"ties by {card['ties']}",
        _search(card["index"]),
        *(f"+ {d['name']}: {d.get('note', str(d['images']) + ' distractors')}" for d in card["distractors"]),
    ]
    return "; ".join(parts)


def _width(card: Result) -> str:
    return f"codes of {card['bits']} bits" if "bits" in card else f"{card['dim']} dimensions"


def _drawn(queries: Result) -> str:
    return f"{queries['drawn']:,} of {queries['of']:,} queries drawn at random with seed {queries['seed']}"


def _search(index: str | Result) -> str:
    """How the gallery was searched; all that an approximate index was told."""
    if isinstance(index, str):
        return f"{index} search"
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in index.items() if name != "kind")
    return f"{index['kind']} index ({settings}; positives not found are missed)"


def scores_text(scores: Sequence[Result]) -> str:
    """The table, then how sure each score is, and each model's protocol."""
    lines = [score_table(scores), ""]
    for score in scores:
        lines += [
            f"{score['model']}: {card_line(score['card'])}",
            *recall_lines(score),
            *_hamming_lines(score),
            *_sureness(score),
        ]
    return "\n".join(lines)


def recall_lines(score: Result) -> list[str]:
    """Recall among the first k by label: the share of all queries with a hit, those that cannot have one included."""
    values = score["protocols"].get("labels", {})
    told = [f"@{name[7:]} {value:.2f}" for name, value in values.items() if name.startswith("recall@")]
    return [f"  recall{', '.join(told)}"] if told else []


def _hamming_lines(score: Result) -> list[str]:
    """How far ties of distance could move a score of binary codes, and how much the first k hold."""
    lines = []
    for values in score["protocols"].values():
        if "mAP_optimistic" in values:
            bounds = f"{values['mAP_pessimistic']:.2f} to {values['mAP_optimistic']:.2f}"
            told = [
                f"{name} {value:.2f}" for name, value in values.items() if name.startswith(("precision@", "recall@"))
            ]
            lines.append(f"  however ties fall {bounds}; {', '.join(told)} (of the positives)")
    return lines


def _sureness(score: Result) -> list[str]:
    """The interval over queries, and what an approximate index missed."""
    ends = {p: v["mAP_interval"] for p, v in score["protocols"].items() if "mAP_interval" in v}
    told = ", ".join(f"{_PROTOCOLS[p]} {low:.2f} to {high:.2f}" for p, (low, high) in ends.items())
    lines = [f"  95 % interval over queries: {told}"] if ends else []
    if measured := score.get("index"):
        recalls = ", ".join(f"{100 * v:.1f} % of the {n[7:]}" for n, v in measured.items() if n.startswith("recall@"))
        speed = f"{measured['queries_per_second']:,.0f} queries a second, {measured['bytes_per_vector']:.0f} bytes"
        lines.append(f"  of the nearest by exact search it found {recalls}; {speed} a vector")
    return lines


def search_text(r: Result) -> str:
    """For each picture a table of what was found."""
    lines = [f"{r['images']:,} images of {r['gallery']}, student {r['student']}, {r['index']['kind']} search"]
    verdict = {True: "right", False: "wrong", None: ""}
    for query in r["queries"]:
        lines += ["", query["image"] + (f" ({query['label']})" if query["label"] else "")]
        rows = [
            [x["id"], x["label"] or "", "itself" if x["itself"] else verdict[x["right"]], f"{x['score']:.4f}"]
            for x in query["results"]
        ]
        lines.append(render([["image", "label", "", "cosine"], *rows]))
    return "\n".join(lines)


def index_text(r: Result) -> str:
    """What stands in an index and how it compares with exact search."""
    recall = next(name for name in r if name.startswith("recall@"))
    built = "" if r["seconds_to_build"] is None else f"; built in {r['seconds_to_build']:.1f} s"
    grown = f" ({r['added']:,} added to {r['extends']})" if r["extends"] else ""
    return "\n".join(
        [
            f"{r['kind']} index of {r['gallery']}: {r['vectors']:,} images{grown}, "
            f"{r['bytes_per_vector']:.0f} bytes each{built}",
            f"{100 * r[recall]:.1f} % of the {recall.partition('@')[2]} nearest images are found, "
            f"{r['queries_per_second']:,.0f} queries a second ({r['queries']} images of the gallery as queries)",
            f"kept as {r['key']}" if r["key"] else "nothing to keep: a flat index is the descriptors themselves",
        ]
    )


def run_text(result: Result) -> str:
    """The table of a recipe, its students, and every protocol that students were scored by."""
    rows = result["rows"]
    cards = dict.fromkeys(f"{s['benchmark']}: {card_line(s['card'])}" for s in result["scores"] if s["row"] in rows)
    return "\n".join([score_table(result["scores"], rows), "", *map(student_text, result["students"]), *cards])


def student_text(r: Result) -> str:
    steps = ", ".join(f"{k} {v:.3f}" for k, v in r["seconds_per_step"].items())
    return (
        f"{r['folder']}: {r['parameters']:,} parameters, {r['gmacs']:.3f} GMACs, {r['epochs']} epochs, "
        f"loss {r['final_loss']:.4f}; seconds per step: {steps}{_queries(r.get('teacher_queries'))}"
    )


def _queries(queries: Mapping[str, int] | None) -> str:
    """How often teachers had to look; results kept by earlier versions do not tell."""
    if not queries:
        return ""
    parts = f"{queries['images']:,} images x {queries['views']} views x {queries['teachers']} teachers"
    return f"; {queries['total']:,} teacher queries ({parts})"


def extract_text(r: Result) -> str:
    beyond = f", {r['not_asked']} were not asked for" if r["not_asked"] else ""
    lines = [f"{r['valid']} of {r['images']} images are valid{beyond}"]
    lines += [f"  invalid: {f['id']}: {f['reason']}" for f in r["failed"]]
    for label, t in r["teachers"].items():
        rate = f", {t['images_per_second']:.0f} images/s in the network" if t["images_per_second"] else ""
        done = f"{t['shards_written']} shards written, {t['shards_skipped']} skipped"
        copied = f", {t['images_copied']:,} rows copied from earlier artifacts" if t["images_copied"] else ""
        lines.append(f"{label}: {len(t['keys'])} views, {done}{copied}{rate}")
    return "\n".join(lines)


def whitening_text(r: Result) -> str:
    return "\n".join(
        f"{label} ({kind}): {w['rows']} rows, {w['dim_in']} to {w['dim_out']} dimensions, "
        f"{100 * w['energy_kept']:.1f} % of the variance, {w['clamped']} eigenvalues clamped"
        for label, kinds in r.items()
        for kind, w in kinds.items()
    )


def estimate_text(r: Result) -> str:
    free = "unknown space" if r["free_bytes"] is None else f"{r['free_bytes'] / 1e9:.1f} GB"
    size = f"{r['bytes'] / 1e9:.3f} GB to write, {free} free"
    if not r["artifacts"]:
        return f"all {r['images']} images are embedded already; {size}"
    rate = f"about {r['seconds'] / 3600:.2f} hours at {r['images_per_second']:.1f} images/s"
    copied = f", about {100 * r['share_copied']:.0f} % of the rows copied" if r.get("share_copied") else ""
    return f"{r['artifacts']} artifacts to make of {r['images']} images: {size}, {rate}{copied}"


def training_text(r: Result) -> str:
    return (
        f"{r['epochs']} epochs of {r['steps_per_epoch']} steps, {r['target_bytes'] / 1e6:.1f} MB of targets an epoch: "
        f"about {r['seconds'] / 3600:.2f} hours at {r['seconds_per_step']:.2f} s a step"
    )


def teachers_text(r: Result) -> str:
    """Two lines per published teacher: what is here, and what was published where."""
    lines = []
    for entry in r["teachers"]:
        weights = entry["weights"]
        if "problem" in weights:
            here = f"{weights['file']} is here and cannot be used: {weights['problem']}"
        elif weights["present"]:
            here = f"{weights['file']} is here, from a file with SHA-256 {weights['source']['sha256'][:12]}…"
        elif "published_file" in weights:
            here = f"not imported: cgd teachers import {entry['name']} {weights['published_file']}"
        else:
            here = "not here"
        sizes = ", ".join(f"{dim} {form}" for form, dim in entry["dimensions"].items())
        known = "digest known" if entry["digest_known"] else "no digest published"
        lines.append(f"{entry['name']:13} {sizes}; {here}")
        lines.append(f"{'':13} {entry['file']}, {known}: {entry['where']}")
    others = ", ".join(r["others"])
    return "\n".join([*lines, f"{'with weights of your own:':13} {others}, or module:function"])


def import_text(r: Result) -> str:
    """What was read, what was written, and what was left out."""
    source = f"a file with SHA-256 {r['source']['sha256']}"
    if "whitening" in r:
        keys = "\n".join(f"  {kind}: {key}" for kind, key in r["whitening"].items())
        head = f"whitening of {r['teacher']} from {source}: {r['dim_in']} to {r['dim_out']} dimensions"
        return f"{head}\n{keys}\n  dropped: {', '.join(r['dropped'])}"
    facts = ", ".join(f"{k} {v}" for k, v in r["facts"].items()) or "none"
    return (
        f"{r['written']}: {r['tensors']} tensors of {r['teacher']} from {source}\n"
        f"  kept beside them: {facts}\n  dropped: {', '.join(r['dropped']) or 'nothing'}\n"
        f"next: cgd teachers check {r['teacher']} --weights {Path(r['written']).parent}"
    )


def check_text(results: Sequence[Result]) -> str:
    """A line per teacher, then one per descriptor that was compared."""
    lines = []
    for r in results:
        verdict = "right" if r["passed"] else "WRONG"
        lines.append(
            f"{r['teacher']}: {verdict} on {r['device']}; largest difference {r['max_relative_difference']:.1e}, "
            f"allowed {r['tolerance']:.0e}"
        )
        if not r["tensors_as_published"]:
            lines.append("  the random numbers of this NumPy are not those of the rule: the comparison means nothing")
        lines += [f"  {name:20} {value:.1e}" for name, value in r["differences"].items()]
        lines.append(f"  compared with {r['expected']}")
        if r["weights"]:
            single = r["weights"]["single_against_double"]
            said = (
                "its tensors are the rule's, the ones compared"
                if single is None
                else f"{single:.1e} from double precision"
            )
            lines.append(f"  {r['weights']['file']}: {said}")
    return "\n".join(lines)


def proof_text(r: Result) -> str:
    """What was compared, how far apart it was, and what follows."""
    lines = [
        f"{r['samples']} images and views, live teachers against the store: least cosine (required "
        f"{r['allowed']['min_cosine']})",
        *(f"  {label}: {cosine:.8f}" for label, cosine in r["cosines"].items()),
        f"  crops drawn elsewhere than stored: {r['geometry_differs']}",
        f"{r['steps']} steps of training, losses at equal weights, from {r['loss'][0]:.4f} to {r['loss'][-1]:.4f}: "
        "largest difference from live teachers",
    ]
    for kind, found in ((r["precision"], r["max_loss_difference"]), ("float32", r["max_loss_difference_float32"])):
        lines.append(f"  stored {kind} vectors: {found:.1e} (allowed {r['allowed']['max_loss_difference'][kind]:.0e})")
    verdict = "proven: training from the store is training with the teachers there" if r["proven"] else "NOT PROVEN"
    return "\n".join([*lines, verdict, *(f"  {problem}" for problem in r["problems"])])


def render(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells in columns: the first `left` to the left, the others to the right, a line under the head."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _benchmark(score: Result) -> str:
    crop = " full queries" if score["card"]["query_crop"] is False else ""
    return score["benchmark"] + crop + (f" +{score['distractors']}" if score["distractors"] else "")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"
