"""Image lists of published data sets from the layouts they are distributed in (methods.md 7)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgd.data.archives import archive_files, archives_below
from cgd.data.groundtruth import read_ground_truth
from cgd.data.pickles import read_plain_pickle
from cgd.errors import InputError, unknown
from cgd.models.pickles import STAND_INS
from cgd.types import Benchmark, ImageList

QUERY, GALLERY = "query", "gallery"
SAMPLES = 32  # files looked for when a large set is opened
DISTRACTOR_ARCHIVES = 100  # revisitop1m.1.tar to revisitop1m.100.tar
SOURCES = {
    "roxford5k": "from oxbuild_images, the archive of the Oxford buildings",
    "rparis6k": "from paris_1 and paris_2, the archives of the Paris buildings, all in one folder",
}


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

    if bad := [n for n in (*known.gallery, *known.queries) if leads_elsewhere(n)]:
        raise InputError(f"{file} is damaged: {bad[0]!r} is no name of an image in jpg/.")

    def listed(split: str, names: tuple[str, ...], boxes: Any = None) -> ImageList:
        images = ImageList(name, split, names, tuple(f"jpg/{n}.jpg" for n in names), root, boxes=boxes)
        return _begun(images, f"jpg/<image>.jpg, {SOURCES[kind]}")

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
    """The distractors R1M: images below jpg/, unpacked or in their archives (methods.md 7)."""
    root = existing(Path(path) / "revisitop1m")
    no_splits("revisitop1m", split)
    ids = tuple(_listed_paths(existing(root / "revisitop1m.txt")))
    images = ImageList(name, split, ids, tuple(f"jpg/{i}" for i in ids), root)
    return _begun(images, f"jpg/, as revisitop1m.txt has them, or in archives there{_distractor_archives(root)}")


def _listed_paths(file: Path) -> Iterator[str]:
    """The relative paths in a text file, one a line; what could lead elsewhere is refused."""
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 (byte {error.start}): fetch it again.") from error
    for number, line in enumerate(lines, 1):
        path = line.strip()
        if path and leads_elsewhere(path):
            raise InputError(
                f"{file}, line {number}: {path!r} is no path of an image below jpg/: fetch the file again."
            )
        if path:
            yield path


def leads_elsewhere(path: str) -> bool:
    """Whether a path from a file is absolute, has `..`, or is none."""
    parts = path.replace("\\", "/").split("/")
    return not path.isprintable() or not {"", ".", ".."}.isdisjoint(parts) or ":" in parts[0]


def _distractor_archives(root: Path) -> str:
    """Which of the archives of R1M are not there, where some are."""
    found = [re.match(r"revisitop1m\.(\d+)\.t", file.name) for file in archive_files(root)]
    there = {int(match[1]) for match in found if match}
    lacking = [number for number in range(1, DISTRACTOR_ARCHIVES + 1) if number not in there]
    if not there or not lacking:
        return ""
    some = ", ".join(map(str, lacking[:5])) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
    return f" (of revisitop1m.1 to .{DISTRACTOR_ARCHIVES}, {len(lacking)} are not there: {some})"


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
    return unpacked(images, "train/a/b/c/abc….jpg, the first three characters of their names, from images_*.tar")


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
    return unpacked(images, "ims/ab/cd/ef/<image>, without an extension, from ims.tar.gz")


def _plain_list(values: Any) -> list[Any]:
    """A list that may have been pickled as an array."""
    return values.numpy().tolist() if hasattr(values, "numpy") else list(values)


def _begun(images: ImageList, layout: str) -> ImageList:
    """As `unpacked`, but where no image is there at all the list can be used: what is stored needs no images."""
    assert images.root is not None
    begun = (images.root / "jpg").is_dir() or archive_files(images.root)
    return unpacked(images, layout) if begun else images


def unpacked(images: ImageList, layout: str) -> ImageList:
    """`images`, refused where some of a few files spread over the list are neither there nor in an archive.

    `layout` is how the folder must look. Where there are archives, the few are of those that none of them holds.
    """
    assert images.root is not None
    root, rows = images.root, np.arange(len(images))
    looked, missing = _look(root, images.paths, rows)
    if not missing:
        return images
    archives = archives_below(root, again=True)
    if archives.files:
        looked, missing = _look(root, images.paths, rows[~archives.hold(images.paths)])
        missing = [path for path in missing if archives.read(path) is None]  # which says what is wrong with one
    if missing:
        advice = f"; {archives.advice}" if archives.advice else ""
        raise InputError(
            f"{root} is not complete: {len(missing)} of {looked} images looked for are missing, e.g. {missing[0]}"
            f"{archives.told}; the images must stand at {layout}{advice}."
        )
    return images


def _look(root: Path, paths: Sequence[str], rows: np.ndarray) -> tuple[int, list[str]]:
    """How many files spread over some rows were looked for, and which of them are not there."""
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int))]
    return len(some), [paths[row] for row in some if not (root / paths[row]).is_file()]
