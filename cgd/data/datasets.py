"""Lists of images with their labels, opened from `KIND:PATH`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cgd.data import fine_grained, synthetic
from cgd.data.groundtruth import RevisitedGroundTruth, read_ground_truth
from cgd.data.hashing_sets import cifar10, divided, nuswide21, rooted
from cgd.data.images import EXTENSIONS
from cgd.data.published_sets import (
    GALLERY,
    QUERY,
    existing,
    gldv2_clean,
    no_splits,
    revisited,
    revisited_images,
    revisitop1m,
    sfm120k,
)
from cgd.data.sampling import CLASS_SEPARATOR
from cgd.data.video_sets import svd, svd_benchmark, videos, videos_benchmark
from cgd.errors import InputError, unknown
from cgd.registry import Spec, bind
from cgd.types import Benchmark, GroundTruth, ImageList

HASHING = ("cifar10", "nuswide-21", "closed-set")  # queries and gallery of the same classes, both splits of one set


def default_name(text: str) -> str:
    """The name a data set gets without `--name`: that of its folder, or its kind's own."""
    kind, path = _parts(text)
    if kind == "synthetic":
        return Spec.parse(path).label()
    if kind in ("folder", "manifest", "videos"):
        folder = Path(path.partition("?")[0] if kind == "videos" else path).absolute()
        return (folder.parent if kind == "manifest" else folder).name
    return kind


def open_dataset(text: str, name: str | None = None, split: str | None = None) -> ImageList:
    """The images of `KIND:PATH`, or those of one split; raises `InputError` naming what is wrong and where."""
    kind, path = _parts(text)
    images = _KINDS[kind](path, name or default_name(text), split)
    if not len(images):
        raise InputError(f"{text} holds no image{f' of the split {split!r}' if split else ''}.")
    return images


def open_benchmark(text: str, name: str | None = None) -> Benchmark:
    """Queries and gallery of `KIND:PATH`.

    Revisited benchmarks, and a manifest beside a `gnd.json`, bring their ground truth; sets split by class are their
    test classes, every image against all others; otherwise the split `query` is scored by label against `gallery`, or
    every image against all others where there are no such splits.
    """
    kind, path = _parts(text)
    name = name or default_name(text)
    if kind in ("roxford5k", "rparis6k"):
        return revisited(Path(path) / kind, kind, name)
    if kind in fine_grained.KINDS:
        return fine_grained.fine_grained_benchmark(kind, path, name)
    if kind in ("svd", "videos"):
        return (svd_benchmark if kind == "svd" else videos_benchmark)(path, name)
    if kind in HASHING:
        return Benchmark(name, _KINDS[kind](path, name, GALLERY), _KINDS[kind](path, name, QUERY), None)
    if kind == "synthetic":
        path = str(_drawn(path) / "manifest.csv")
    if kind in ("manifest", "synthetic"):
        beside = Path(path).parent / "gnd.json"
        if beside.is_file():
            return _manifest_with_truth(path, name, read_ground_truth(beside))
        splits = _splits(Path(path))
        if {QUERY, GALLERY} <= splits:
            return Benchmark(name, _manifest(path, name, GALLERY), _manifest(path, name, QUERY), None)
    images = open_dataset(text, name)
    return Benchmark(name, images, images, None)


def label_truth(gallery: ImageList, queries: ImageList, leave_one_out: bool) -> GroundTruth:
    """Positives are the gallery images that share a class with the query, which is itself junk in leave-one-out.

    A label of several classes has `|` between them; an image with an empty label has no class, so no positives.
    """
    if gallery.labels is None or queries.labels is None:
        raise InputError(
            f"{gallery.title} has no labels and no ground truth beside it, so nothing can be scored on it: put the "
            "images into a sub-folder per label; `cgd search` needs none."
        )
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(gallery.labels):
        for name in label.split(CLASS_SEPARATOR) if label else ():
            rows.setdefault(name, []).append(row)
    of_label: dict[str, np.ndarray] = {"": np.empty(0, np.int64)}
    for label in set(queries.labels) - {""}:
        shared = [rows.get(name, []) for name in label.split(CLASS_SEPARATOR)]
        of_label[label] = np.array(shared[0] if len(shared) == 1 else sorted(set().union(*shared)), dtype=np.int64)
    easy = [of_label[label] for label in queries.labels]
    junk = [np.empty(0, np.int64) for _ in easy]
    if leave_one_out:
        easy = [e[e != q] for q, e in enumerate(easy)]
        junk = [np.array([q]) for q in range(len(easy))]
    return GroundTruth(tuple(easy), tuple(np.empty(0, np.int64) for _ in easy), tuple(junk))


def _parts(text: str) -> tuple[str, str]:
    kind, colon, path = text.partition(":")
    if not colon or not path:
        raise InputError(f"'{text}' is no data set: expected KIND:PATH with KIND one of {', '.join(sorted(_KINDS))}.")
    if kind not in _KINDS:
        raise unknown("kind of data set", kind, _KINDS)
    return kind, path


def _folder(path: str, name: str, split: str | None) -> ImageList:
    no_splits("folder", split)
    root = existing(Path(path))
    found = [path.relative_to(root).as_posix() for path in _walk(root, ())]
    for path in found:
        if not path.isprintable() or "\udc80" <= max(path) <= "\udcff":
            raise InputError(f"folder:{root} holds a file whose name is not text ({path!r}): rename it.")
    found.sort()
    labels = [str(PurePosixPath(p).parent) for p in found]
    return ImageList(name, None, tuple(found), tuple(found), root, None if set(labels) <= {"."} else tuple(labels))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Image files below `folder`, links followed; a link to one of its own parents is not."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, (*above, real))
        elif path.suffix.lower() in EXTENSIONS:
            yield path


def _manifest(path: str, name: str, split: str | None) -> ImageList:
    file = Path(path)
    table = _table(file)
    for column in ("image_id", "path", *(["split"] if split else [])):
        if column not in table:
            raise InputError(f"the manifest {file} has no column '{column}'; it has {', '.join(table.columns)}.")
    if split is not None:
        if split not in set(table["split"]):
            raise unknown(f"split of {file}", split, set(table["split"]))
        table = table[table["split"] == split]
    for entry in table["path"]:
        pure = PurePosixPath(entry.replace("\\", "/"))
        if not pure.parts or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
            raise InputError(
                f"the manifest {file} holds the path '{entry}': paths are relative to the manifest, without '..'."
            )
    labels = tuple(table["label"]) if "label" in table else None
    boxes = tuple(_parse_box(b, file) for b in table["bbx"]) if "bbx" in table else None
    return ImageList(name, split, tuple(table["image_id"]), tuple(table["path"]), file.parent, labels, boxes=boxes)


def _table(file: Path) -> Any:
    import pandas as pd

    existing(file)
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
            return table.astype(object).where(table.notna(), "").astype(str)
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise InputError(f"reading {file} needs the extra 'parquet': pip install 'cgd[parquet]'.") from error
    except (ValueError, OSError) as error:
        raise InputError(f"cannot read the manifest {file}: {' '.join(str(error).split())}.") from error


def _splits(file: Path) -> set[str]:
    table = _table(file)
    return set(table["split"]) if "split" in table else set()


def _parse_box(text: str, file: Path) -> tuple[float, float, float, float] | None:
    if not text:
        return None
    try:
        x1, y1, x2, y2 = (float(v) for v in text.split())
    except ValueError:
        raise InputError(f"the manifest {file} holds the bbx '{text}', expected 'x1 y1 x2 y2'.") from None
    return x1, y1, x2, y2


def _manifest_with_truth(path: str, name: str, known: RevisitedGroundTruth) -> Benchmark:
    images = _manifest(path, name, None)
    rows = {i: r for r, i in enumerate(images.ids)} | {p: r for r, p in enumerate(images.paths)}

    def choose(split: str, names: Iterable[str], boxes: tuple[Any, ...] | None) -> ImageList:
        missing = [n for n in names if n not in rows]
        if missing:
            raise InputError(
                f"{Path(path).parent / 'gnd.json'} names '{missing[0]}', neither a path nor an image_id of {path}."
            )
        picked = [rows[n] for n in names]
        labels = images.labels and tuple(images.labels[r] for r in picked)
        ids, paths = tuple(images.ids[r] for r in picked), tuple(images.paths[r] for r in picked)
        return ImageList(name, split, ids, paths, images.root, labels, boxes=boxes)

    return Benchmark(name, choose(GALLERY, known.gallery, None), choose(QUERY, known.queries, known.boxes), known.truth)


def _closed_set(path: str, name: str, split: str | None) -> ImageList:
    place, options = rooted(path, _divided, "closed-set")
    return _divided(place, name, split, **options)


def _divided(
    place: Path, name: str, split: str | None, *, of: str = "", queries: float = 0.2, seed: int = 0
) -> ImageList:
    """The images of a folder, or of a manifest's split `of`, divided into queries and others of the same classes."""
    images = (_folder if place.is_dir() else _manifest)(str(place), name, of or None)
    return divided(images, split, queries, seed)


def _synthetic(path: str, name: str, split: str | None) -> ImageList:
    return _manifest(str(_drawn(path) / "manifest.csv"), name, split)


def _drawn(path: str) -> Path:
    """Draw what `landmarks?labels=…` asks for below the working directory, unless it stands there."""
    spec = Spec.parse(path)
    if spec.name != "landmarks":
        raise unknown("synthetic data set", spec.name, ["landmarks"])
    folder = Path(".cgd/synthetic") / f"{spec.label()}-v{synthetic.VERSION}"
    return synthetic.draw_landmarks(folder, **bind(synthetic.draw_landmarks, spec.options, f"synthetic:{path}"))


_KINDS: dict[str, Callable[[str, str, str | None], ImageList]] = {
    "folder": _folder,
    "manifest": _manifest,
    "gldv2-clean": gldv2_clean,
    "roxford5k": revisited_images("roxford5k"),
    "rparis6k": revisited_images("rparis6k"),
    "revisitop1m": revisitop1m,
    "sfm120k": sfm120k,
    "cifar10": cifar10,
    "nuswide-21": nuswide21,
    "closed-set": _closed_set,
    "svd": svd,
    "videos": videos,
    "synthetic": _synthetic,
    **{kind: fine_grained.fine_grained(kind) for kind in fine_grained.KINDS},
}
