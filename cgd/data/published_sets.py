"""Image lists of published data sets from the layouts they are distributed in (methods.md 7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cgd.data.groundtruth import read_ground_truth
from cgd.data.pickles import read_plain_pickle
from cgd.errors import InputError, unknown
from cgd.models.pickles import STAND_INS
from cgd.types import Benchmark, ImageList

QUERY, GALLERY = "query", "gallery"
SAMPLES = 32  # files looked for when a large set is opened


def existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    return path


def no_splits(kind: str, split: str | None) -> None:
    if split is not None:
        raise InputError(f"{kind} has no splits, so there is no '{split}'; a manifest has them.")


def revisited(root: Path, kind: str, name: str) -> Benchmark:
    existing(root)
    files = [root / f"gnd_{kind}.json", root / f"gnd_{kind}.pkl"]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise InputError(f"{root} holds neither {files[0].name} nor {files[1].name}.")
    known = read_ground_truth(file)

    def listed(split: str, names: tuple[str, ...], boxes: Any = None) -> ImageList:
        return ImageList(name, split, names, tuple(f"jpg/{n}.jpg" for n in names), root, boxes=boxes)

    return Benchmark(name, listed(GALLERY, known.gallery), listed(QUERY, known.queries, known.boxes), known.truth)


def revisited_images(kind: str) -> Callable[[str, str, str | None], ImageList]:
    def images(path: str, name: str, split: str | None) -> ImageList:
        benchmark = revisited(Path(path) / kind, kind, name)
        parts = {GALLERY: benchmark.gallery, QUERY: benchmark.queries}
        if split not in (None, *parts):
            raise unknown(f"split of {kind}", str(split), parts)
        return parts[split or GALLERY]

    return images


def revisitop1m(path: str, name: str, split: str | None) -> ImageList:
    root = existing(Path(path) / "revisitop1m")
    no_splits("revisitop1m", split)
    lines = existing(root / "revisitop1m.txt").read_text().splitlines()
    ids = tuple(line.strip() for line in lines if line.strip())
    return ImageList(name, split, ids, tuple(f"jpg/{i}" for i in ids), root)


def gldv2_clean(path: str, name: str, split: str | None) -> ImageList:
    root = existing(Path(path))
    places = [root / "train_clean.csv", root / "meta/train_clean.csv", root / "train/train_clean.csv"]
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise InputError(f"{root} holds no train_clean.csv, neither at its top nor in meta/ or train/.")
    if split not in (None, "train"):
        raise unknown("split of gldv2-clean", split, ["train"])
    ids: list[str] = []
    labels: list[str] = []
    for line in file.read_text().splitlines()[1:]:
        label, _, listed = line.partition(",")
        ids += listed.split()
        labels += [label] * (len(ids) - len(labels))
    if bad := [i for i in ids if len(i) < 3]:
        raise InputError(f"{file} is damaged: '{bad[0]}' is no name of an image.")
    paths = tuple(f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids)
    images = ImageList(name, split, tuple(ids), paths, root, tuple(labels))
    return _unpacked(images, "train/a/b/c/abc….jpg, the first three characters of their names, from images_*.tar")


def sfm120k(path: str, name: str, split: str | None) -> ImageList:
    """retrieval-SfM-120k: images by the three-dimensional model they belong to, `train` or `val` (methods.md 7)."""
    root = existing(Path(path))
    file = root / "retrieval-SfM-120k.pkl"
    if not file.is_file():
        raise InputError(f"{root} holds no {file.name}; it must hold that file, and the images below ims/.")
    content = read_plain_pickle(file, {name: stand_in for stand_in, name in STAND_INS})  # its lists may be arrays
    parts = content if isinstance(content, dict) else {}
    chosen = split or "train"
    if chosen not in ("train", "val"):
        raise unknown("split of sfm120k", chosen, ["train", "val"])
    try:
        ids, models = (_plain_list(parts[chosen][key]) for key in ("cids", "cluster"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not SfM-120k's: it has no cids and clusters of '{chosen}' ({error!r}).") from error
    if len(ids) != len(models):
        raise InputError(f"{file} is damaged: {len(ids)} images of '{chosen}', {len(models)} of them with a model.")
    if bad := [i for i in ids if not isinstance(i, str) or len(i) < 6 or not i.isalnum()]:
        raise InputError(f"{file} is damaged: {bad[0]!r} is no name of an image.")
    paths = tuple(f"ims/{i[-2:]}/{i[-4:-2]}/{i[-6:-4]}/{i}" for i in ids)
    labels = tuple(f"{chosen}-{m}" for m in models)
    images = ImageList(name, split, tuple(ids), paths, root, labels)
    return _unpacked(images, "ims/ab/cd/ef/<image>, without an extension, from ims.tar.gz")


def _plain_list(values: Any) -> list[Any]:
    """A list that may have been pickled as an array."""
    return values.numpy().tolist() if hasattr(values, "numpy") else list(values)


def _unpacked(images: ImageList, layout: str) -> ImageList:
    """`images`, refused where some of a few files spread over the list are not there; `layout` is how it must look."""
    assert images.root is not None
    rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(int))
    missing = [images.paths[row] for row in rows if not (images.root / images.paths[row]).is_file()]
    if missing:
        raise InputError(
            f"{images.root} is not unpacked: {len(missing)} of {len(rows)} images looked for are missing, "
            f"e.g. {missing[0]}; the images must stand at {layout}."
        )
    return images
