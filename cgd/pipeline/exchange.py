"""Vectors exchanged with other tools: the two commands, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgd.pipeline.steps import Session
from cgd.stages.exchange import EXPORTED, export_vectors, import_vectors
from cgd.stages.exchange_write import ids_file

Result = Mapping[str, Any]


def export(session: Session, key: str, file: Path, layout: str | None = None) -> dict[str, Any]:
    """Write the vectors of an artifact, named by a part of its key, as a file of another tool's."""
    store = session.store()
    return export_vectors(store=store, key=store.resolve(key, EXPORTED), file=file, layout=layout).as_json()


def import_(session: Session, file: Path, dataset: str, name: str | None, teacher: str) -> dict[str, Any]:
    """Keep the vectors of a file as embeddings of a data set by a teacher of which nothing else is known."""
    images = session.workspace.images(dataset, name)
    store = session.store(write=True)
    report = import_vectors(store=store, images=images, file=file, label=teacher, workers=session.workers)
    return {**report.as_json(), "file": str(file), "dataset": images.title, "teacher": teacher}


def export_text(r: Result) -> str:
    """What stands in the file, and what was done to it."""
    lines = [f"{r['file']}: {r['rows']} vectors of {r['dim']} dimensions, {r['dtype']}, from {r['key']}"]
    if r["layout"] == "npy":
        lines.append(f"  the ids of its rows are in {ids_file(Path(r['file']))}")
    if r["combined"]:
        scales = ", ".join(f"{s:g}" for s in r["scales"])
        lines.append(f"  {len(r['scales'])} scales ({scales}) joined by {r['combined']}, each of unit length before")
    if r["invalid"]:
        lines.append(f"  {r['invalid']} images without a vector are {'left out' if r['layout'] == 'hloc' else 'NaN'}")
    return "\n".join(lines)


def import_text(r: Result) -> str:
    """What came of each image, and what to do next."""
    lines = [f"{r['key']}{' was imported before' if r['skipped'] else ''}"]
    lines.append(
        f"  {r['valid']} of {r['images']} images have a vector of {r['dim']} dimensions, by their {r['matched']}"
    )
    counts = {
        "absent": "are not in the file",
        "unusable": "are invalid in the file",
        "undecodable": "cannot be decoded",
    }
    lines += [f"  {r[name]} images {what}" for name, what in counts.items() if r[name]]
    if r["unknown"]:
        lines.append(f"  {r['unknown']} vectors of the file belong to no image of {r['dataset']}")
    return "\n".join([*lines, f"next: cgd fit-whitening --dataset {r['dataset']} --teachers {r['teacher']}"])
