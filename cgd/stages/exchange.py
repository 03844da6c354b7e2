"""Vectors to and from the files of other tools: what a store holds as HDF5 or `.npy`, and theirs as a teacher's."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd.data.images import read_image
from cgd.data.loading import ahead
from cgd.errors import InputError
from cgd.progress import progress
from cgd.retrieval.vectors import combine_scales
from cgd.stages.exchange_read import HDF5, Foreign, content_of, opened
from cgd.stages.exchange_write import Block, Shape, ids_file, write_hloc, write_npy, write_plain
from cgd.stages.images import check_same_images, store_images
from cgd.stages.imported import check_label, imported_identity
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity
from cgd.store.writer import Writer
from cgd.types import ImageList, Key

EXPORTED = ("embeddings", "whitened", "descriptors")
LAYOUTS = ("hloc", "plain")
ABSENT, UNUSABLE = "not in the imported file", "invalid in the imported file"
_INPUT = {"size": None, "resize": "unknown", "filter": "unknown", "scales": [1.0], "combine": "mean"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What was written: `rows` are the file's, `invalid` images have no vector.

    `scales` were joined by the rule `combined`; both are none where vectors are as stored.
    """

    key: Key
    file: Path
    layout: str
    rows: int
    invalid: int
    dim: int
    dtype: str
    scales: tuple[float, ...] | None
    combined: str | None

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd store export --json`."""
        return {**dataclasses.asdict(self), "key": str(self.key), "file": str(self.file)}


@dataclass(frozen=True)
class ImportReport:
    """What came of each image; `matched` is by what rows and images were brought together: ids, paths or order."""

    key: Key
    images: int
    valid: int
    absent: int
    unusable: int
    undecodable: int
    unknown: int
    dim: int
    matched: str
    skipped: bool

    def as_json(self) -> dict[str, Any]:
        """The object of `cgd store import --json`."""
        return {**dataclasses.asdict(self), "key": str(self.key)}


def export_vectors(*, store: FeatureStore, key: Key, file: Path, layout: str | None = None) -> ExportReport:
    """Write the vectors of `key` as `file`, shard by shard; the suffix tells the format, `layout` that of HDF5.

    One vector per image: several scales are joined as the encoder declares (`retrieval.vectors.combine_scales`), all
    else is a copy in the stored type. Images that are not valid are left out in hloc's layout and NaN in the others.
    Raises `InputError` where the file, or one for its ids, is there already.
    """
    suffix = file.suffix.lower()
    if suffix not in (*HDF5, ".npy"):
        raise InputError(f"{file}: vectors are exported to files .h5, .hdf5 or .npy.")
    if suffix == ".npy" and layout is not None:
        raise InputError(f"--layout is of HDF5: leave it out, or name {file.with_suffix('.h5')}.")
    layout = "npy" if suffix == ".npy" else layout or LAYOUTS[0]
    for each in (file, *([ids_file(file)] if layout == "npy" else [])):
        if os.path.lexists(each):
            raise InputError(f"{each} is there already: remove it, or name another file.")
    artifact = store.get(key)
    shape = artifact.shape("vectors")
    scales = artifact.attributes["input"]["scales"] if len(shape) == 3 and shape[1] > 1 else None
    whole = Shape(artifact.rows, shape[-1], artifact.read_shard("vectors", 0).dtype)
    blocks = _blocks(artifact)
    if layout == "hloc":
        write_hloc(file, blocks)
    elif layout == "plain":
        write_plain(file, blocks, whole)
    else:
        write_npy(file, blocks, whole)
    invalid = int((~artifact.read("valid")).sum())
    return ExportReport(
        key=key,
        file=file,
        layout=layout,
        rows=artifact.rows - (invalid if layout == "hloc" else 0),
        invalid=invalid,
        dim=whole.dim,
        dtype=str(whole.dtype),
        scales=None if scales is None else tuple(scales),
        combined=None if scales is None else artifact.attributes["input"]["combine"],
    )


def _blocks(artifact: Artifact) -> Iterator[Block]:
    with progress(artifact.rows, f"export {artifact.key.label}") as bar:
        for rows, (ids, vectors, valid) in artifact.blocks("ids", "vectors", "valid"):
            if vectors.ndim == 3:  # embeddings, (M, S, D)
                several = vectors.shape[1] > 1
                vectors = combine_scales(vectors, artifact.attributes["input"]["combine"]) if several else vectors[:, 0]
            yield Block(ids, vectors, valid)
            bar.update(len(rows))


def import_vectors(*, store: FeatureStore, images: ImageList, file: Path, label: str, workers: int = 2) -> ImportReport:
    """Keep the vectors in `file` as the embeddings of `images` by a teacher of which only the `label` is known.

    They are marked by the file's content. Every image is read: its digest is what a student's training compares, and
    one that cannot be decoded is as invalid as in an extraction. An interrupted import continues. Raises `InputError`
    for a file that cannot be used, before anything is written, and for an image that is missing.
    """
    check_label(label)
    with opened(file) as foreign:
        places, matched, unknown = _match(file, foreign, images)
        before, content = _stamp(file), content_of(file)
        identity = imported_identity(images, label, content)
        skipped = store.is_sealed(identity.key)
        if not skipped:
            _check_finite(file, foreign, images, places)
            check_same_images(store, images)
            store_images(store, images)
            writer = _written(store, identity, label, images, foreign, places, workers)
            if _stamp(file) != before:
                raise InputError(f"{file} was written to while it was imported: import it again.")
            writer.seal()
    artifact = store.get(identity.key)
    reasons = artifact.read("reasons")
    valid, absent, unusable = int(artifact.read("valid").sum()), (reasons == ABSENT).sum(), (reasons == UNUSABLE).sum()
    return ImportReport(
        key=identity.key,
        images=len(images),
        valid=valid,
        absent=int(absent),
        unusable=int(unusable),
        undecodable=len(images) - valid - int(absent) - int(unusable),
        unknown=unknown,
        dim=artifact.shape("vectors")[2],
        matched=matched,
        skipped=skipped,
    )


def _match(file: Path, foreign: Foreign, images: ImageList) -> tuple[np.ndarray, str, int]:
    """For each image its place (N,) in the file or -1, by what they match, and how many rows are of no image."""
    if foreign.names is None:
        if len(foreign) != len(images):
            raise InputError(
                f"{file} has {len(foreign)} rows, {images.title} has {len(images)} images: without "
                f"{ids_file(file).name} beside it, there is one row per image, in the data set's order."
            )
        return np.arange(len(images)), "order", 0
    where = {name: place for place, name in enumerate(foreign.names)}
    columns = {"ids": images.ids, "paths": images.paths}
    hits = {what: sum(name in where for name in names) for what, names in columns.items()}
    matched = max(hits, key=lambda what: hits[what])  # ids where both are alike
    if not hits[matched]:
        raise InputError(
            f"none of the {len(where)} ids in {file} is an image of {images.title}: it has {foreign.names[0]!r}, the "
            f"data set has the id {images.ids[0]!r} and the path {images.paths[0]!r}."
        )
    known = set(columns[matched])
    others = [name for name in foreign.names if name not in known]
    if others:
        log.warning(
            "%d of the %d ids in %s are no image of %s, e.g. %r.",
            len(others),
            len(where),
            file,
            images.title,
            others[0],
        )
    return np.array([where.get(name, -1) for name in columns[matched]]), matched, len(others)


def _check_finite(file: Path, foreign: Foreign, images: ImageList, places: np.ndarray) -> None:
    """Refuse a vector that is none in single precision, naming its row."""
    rows = max(1, (1 << 24) // foreign.dim)
    for start in range(0, len(places), rows):
        here = np.arange(start, min(start + rows, len(places)))
        here = here[_usable(foreign, places[here])]
        finite = np.isfinite(_single(foreign, places[here])).all(axis=1)
        if not finite.all():
            row = int(here[np.argmin(finite)])
            raise InputError(
                f"{file}: row {places[row]}, the image {images.ids[row]!r}, holds numbers that are none in single "
                "precision (NaN or infinite): mend it, or leave that image out."
            )


def _usable(foreign: Foreign, places: np.ndarray) -> np.ndarray:
    """Which images (m,) have a row that is to be used."""
    usable: np.ndarray = (places >= 0) & foreign.valid[places]
    return usable


def _single(foreign: Foreign, places: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is found and named
        return foreign.read(places).astype(np.float32)


def _stamp(file: Path) -> list[tuple[int, ...]]:
    """Changes when the file, or that of its ids, is written to."""
    there = [each.stat() for each in (file, ids_file(file)) if each.exists()]
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in there]


def _written(
    store: FeatureStore,
    identity: Identity,
    label: str,
    images: ImageList,
    foreign: Foreign,
    places: np.ndarray,
    workers: int,
) -> Writer:
    """Every shard, where it is missing."""
    count = len(images)
    shapes = {"ids": (count,), "vectors": (count, 1, foreign.dim), "valid": (count,), "digests": (count, 32)}
    about = {"label": label, "input": _INPUT, "dim": foreign.dim}
    writer = store.writer(identity, {**shapes, "reasons": (count,)}, attributes=about)
    with progress(count, f"{images.title}: import {label}") as bar:
        for shard in writer.missing():
            rows = writer.shard_range(shard)
            writer.write(shard, _arrays(rows, images, foreign, places[rows.start : rows.stop], workers))
            bar.update(len(rows))
    return writer


def _arrays(
    rows: range, images: ImageList, foreign: Foreign, places: np.ndarray, workers: int
) -> dict[str, np.ndarray]:
    """The arrays of a shard."""

    def look(row: int) -> tuple[np.ndarray, str]:
        found = read_image(images.root, images.paths[row])
        return found.digest, found.reason

    digests, reasons = zip(*ahead(look, rows, workers, 2 * workers), strict=True)
    told = np.array(reasons, dtype=object)
    told[(told == "") & (places >= 0) & ~_usable(foreign, places)] = UNUSABLE
    told[(told == "") & (places < 0)] = ABSENT
    valid = told == ""
    vectors = np.full((len(rows), 1, foreign.dim), np.nan, np.float32)
    vectors[valid, 0] = _single(foreign, places[valid])
    ids = np.array([images.ids[row] for row in rows], dtype=object)
    return {"ids": ids, "vectors": vectors, "valid": valid, "digests": np.stack(digests), "reasons": told}
