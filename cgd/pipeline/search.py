"""Search for pictures with a student, and the indexes that make it fast."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd.config import Recipe
from cgd.data.views import FIXED
from cgd.errors import InputError
from cgd.pipeline import scoring, steps
from cgd.pipeline.steps import Session
from cgd.stages.descriptors import Gallery, Member, open_gallery
from cgd.types import ImageList


@dataclass(frozen=True)
class _Place:
    """A gallery and the student that embedded it."""

    images: ImageList
    source: Any
    gallery: Gallery


def search(
    session: Session,
    student: str,
    gallery: str,
    pictures: Sequence[Path],
    recipe: Recipe,
    *,
    k: int = 10,
    label: str | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> dict[str, Any]:
    """The object of `cgd search --json`: for each picture its `k` nearest images, right or wrong where that is known.

    What a picture shows is its `label`, or that of the data set it belongs to on this machine.
    """
    from cgd.stages import search as stage

    queries = _query_list(pictures, box)
    place = _open(session, student, gallery, recipe)
    vectors = stage.embed_queries(place.source, queries, recipe.extract, session.compute())
    index = None
    if (kind := recipe.evaluate.index) != "exact":
        index = stage.index_of(session.store(write=True), place.gallery, _title(place), kind, recipe.index)
    found = stage.search(place.gallery, vectors, k, scoring.scorer_on(session.device), index)
    asked = []
    for number, picture in enumerate(pictures):
        known = label or session.workspace.label_of(picture)
        results = _results(place.images, picture, known, found.rows[number], found.scores[number])
        asked.append({"image": str(picture), "label": known, "results": results})
    return {
        "student": place.source.label,
        "gallery": place.images.title,
        "images": place.gallery.size,
        "k": k,
        "index": {"kind": "exact"} if index is None else {"kind": kind, "key": str(index.key or "")},
        "scales": list(_spec(session, place)["scales"]),
        "queries": asked,
        "seconds": {"search": found.seconds},
    }


def index(session: Session, student: str, gallery: str, recipe: Recipe) -> dict[str, Any]:
    """The object of `cgd index --json`: what stands in the index, and how it compares with exact search."""
    from cgd.stages import search as stage

    store, kind = session.store(write=True), recipe.evaluate.index
    if kind == "exact":
        raise InputError("exact search needs no index: use --kind ivf-pq, hnsw or flat.")
    place = _open(session, student, gallery, recipe)
    built = stage.index_of(store, place.gallery, _title(place), kind, recipe.index)
    compared = stage.compare_with_exact(place.gallery, built, scoring.scorer_on(session.device))
    about, notes = {}, []
    if built.key is not None:
        about, notes = store.get(built.key).attributes, store.provenance(built.key)
    return {
        "key": str(built.key) if built.key else None,
        "kind": kind,
        "gallery": place.images.title,
        "vectors": int((built.rows >= 0).sum()),
        "added": about.get("added", len(built.rows)),
        "extends": about.get("extends"),
        "gone": about.get("gone", 0),
        "bytes_per_vector": built.bytes_per_vector,
        f"recall@{compared.k}": compared.recall,
        "queries": compared.queries,
        "queries_per_second": compared.queries_per_second,
        "seconds_to_build": notes[-1].get("seconds") if notes else None,
    }


def write_page(session: Session, result: dict[str, Any], file: Path) -> None:
    """The result of `search` as one self-contained HTML file."""
    from cgd.pipeline.search_page import search_page
    from cgd.store.files import replace_file

    replace_file(file, search_page(result, session.workspace.images(result["gallery"])).encode())


def _open(session: Session, student: str, gallery: str, recipe: Recipe) -> _Place:
    """The gallery's descriptors by the student; embeds what is not embedded yet."""
    images = session.workspace.images(gallery)
    source = steps.load_student(session, student)
    key = scoring.embed(session, images, [source], FIXED, recipe.extract)[source.label]
    member = Member(source.label, key, key)
    return _Place(images, source, open_gallery(session.store(write=True), [member], "half"))


def _title(place: _Place) -> list[str]:
    return [place.images.title, place.source.label]


def _spec(session: Session, place: _Place) -> dict[str, Any]:
    embeddings = session.store().get(place.gallery.keys[0]).inputs[0]
    found: dict[str, Any] = session.store().get(embeddings).attributes["input"]
    return found


def _query_list(pictures: Sequence[Path], box: tuple[float, float, float, float] | None) -> ImageList:
    paths = tuple(os.path.abspath(picture) for picture in pictures)
    if len(set(paths)) != len(paths):
        raise InputError("a picture is named twice.")
    if box is not None and (box[2] <= box[0] or box[3] <= box[1]):
        raise InputError(f"--box {' '.join(f'{v:g}' for v in box)}: a box ends before it begins; give X1 Y1 X2 Y2.")
    return ImageList("queries", None, paths, paths, Path("/"), boxes=None if box is None else (box,) * len(paths))


def _results(
    images: ImageList, picture: Path, label: str | None, rows: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    """Rank by rank what was found; `right` is none where a label is not known, or the picture found itself."""
    results = []
    for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1):
        if row < 0:
            break
        own = images.labels[row] if images.labels else None
        itself = images.root is not None and os.path.abspath(images.root / images.paths[row]) == os.path.abspath(
            picture
        )
        right = None if itself or None in (own, label) else own == label
        results.append(
            {
                "rank": rank,
                "id": images.ids[row],
                "path": images.paths[row],
                "label": own,
                "score": float(score),
                "right": right,
                "itself": itself,
            }
        )
    return results
