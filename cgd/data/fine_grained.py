"""CUB-200-2011, Cars-196 and Stanford Online Products, split by class: tested on classes never seen (methods.md 7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgd.data.archives import archives_below
from cgd.data.images import EXTENSIONS, image_bytes
from cgd.data.matlab import read_matlab
from cgd.data.published_sets import existing, leads_elsewhere, unpacked
from cgd.errors import InputError, unknown
from cgd.types import Benchmark, ImageList

log = logging.getLogger(__name__)
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Row:
    """One image of a list: its lasting name, where it is below the root, its class, and on which side that is."""

    id: str
    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Layout:
    """How a set is distributed: `lists` open it, in one of the folders `tops`; `images` says where its images are."""

    lists: tuple[str, ...]
    images: str
    read: Callable[[Path, str], Iterator[Row]]
    tops: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class FineGrained:
    """A published set: its layouts, how many images either side has, and at which k its recall is published."""

    title: str
    layouts: tuple[Layout, ...]
    counts: tuple[int, int]
    recall_at: tuple[int, ...]


def fine_grained(kind: str) -> Callable[[str, str, str | None], ImageList]:
    """What opens the images of one of `KINDS`: those of a split, or of the training classes where none is named."""

    def images(path: str, name: str, split: str | None) -> ImageList:
        published, root, chosen = KINDS[kind], existing(Path(path)), split or TRAIN
        if chosen not in (TRAIN, TEST):
            raise unknown(f"split of {kind}", chosen, [TRAIN, TEST])
        rows, where = _rows(published, root)
        rows = [row for row in rows if row.split == chosen]
        known = published.counts[chosen == TEST]
        if len(rows) != known:
            log.warning(
                "%s of %s has %s images here, %s are published: scores are not those of papers.",
                chosen, published.title, f"{len(rows):,}", f"{known:,}",
            )  # fmt: skip
        ids, paths, labels = (tuple(getattr(row, field) for row in rows) for field in ("id", "path", "label"))
        return unpacked(ImageList(name, split, ids, paths, root, labels), where) if rows else _none(name, split, root)

    return images


def fine_grained_benchmark(kind: str, path: str, name: str) -> Benchmark:
    """Every test image against all others, with the k at which the set's recall is published (methods.md 8.7)."""
    test = fine_grained(kind)(path, name, TEST)
    return Benchmark(name, test, test, None, KINDS[kind].recall_at)


def _none(name: str, split: str | None, root: Path) -> ImageList:
    return ImageList(name, split, (), (), root, ())


def _rows(published: FineGrained, root: Path) -> tuple[list[Row], str]:
    """The rows of the first layout that is there, or of folders of classes, and where their images must stand."""
    for layout in published.layouts:
        for top in layout.tops:
            there = [file for file in layout.lists if _is_there(root, top + file)]
            if there:
                if lacking := [file for file in layout.lists if file not in there]:
                    raise InputError(
                        f"{root} is not {published.title} as published: {top}{lacking[0]} is missing beside "
                        f"{top}{there[0]}."
                    )
                return list(layout.read(root, top)), f"{top}{layout.images}"
    if (root / TRAIN).is_dir() and (root / TEST).is_dir():
        return [row for split in (TRAIN, TEST) for row in _folders(root, split)], "train/<class>/ and test/<class>/"
    first = published.layouts[0]
    advice = archives_below(root).advice
    raise InputError(
        f"{root} holds no {published.title}: it must hold {', '.join(first.tops[-1] + file for file in first.lists)} "
        f"and {first.tops[-1]}{first.images}; or train/<class>/ and test/<class>/"
        f"{f'; {advice}' if advice else ''}."
    )


def _folders(root: Path, split: str) -> Iterator[Row]:
    """Images as EmbeddingDistillation wants them, `train/<class>/` and `test/<class>/`."""
    found = (path for path in (root / split).glob("*/*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    for path in sorted(path.relative_to(root / split).as_posix() for path in found):
        if leads_elsewhere(path):
            raise InputError(f"{root / split} holds a file whose name is not text ({path!r}): rename it.")
        yield Row(path, f"{split}/{path}", path.partition("/")[0], split)


def _is_there(root: Path, path: str) -> bool:
    """Whether a list is a file, or in a plain archive."""
    return (root / path).is_file() or bool(archives_below(root).hold([path])[0])


def _lines(root: Path, path: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of every line of a list, by blanks; the last column may have blanks itself."""
    try:
        text = image_bytes(root, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{root / path} is not text in UTF-8 (byte {error.start}): fetch it again.") from error
    for number, line in enumerate(text.split("\n"), 1):
        cells = line.strip().split(maxsplit=columns - 1)
        if cells and len(cells) != columns:
            raise InputError(
                f"{root / path}, line {number}: {line.strip()!r} has not {columns} columns: fetch it again."
            )
        if cells:
            yield number, cells


def _table(root: Path, path: str) -> dict[str, str]:
    """The second column by the first."""
    table: dict[str, str] = {}
    for number, (key, value) in _lines(root, path, 2):
        if key in table:
            raise InputError(f"{root / path}, line {number}: '{key}' is there twice: fetch it again.")
        table[key] = value
    return table


def _inside(root: Path, file: str, path: str) -> str:
    if leads_elsewhere(path):
        raise InputError(f"{root / file} holds {path!r}, which is no path of an image: fetch it again.")
    return path


def _side(root: Path, file: str, number: Any, classes: int) -> str:
    """Training classes are the first half of them."""
    if not 1 <= int(number) <= classes:
        raise InputError(f"{root / file} names the class {number}, but there are {classes}: fetch it again.")
    return TRAIN if int(number) <= classes // 2 else TEST


def _cub(root: Path, top: str) -> Iterator[Row]:
    """Images by the numbers of their classes; the boxes and the split for classification beside them are not read."""
    file = f"{top}images.txt"
    paths, classes, numbers = (_table(root, top + f) for f in ("images.txt", "classes.txt", "image_class_labels.txt"))
    for image, path in paths.items():
        label = classes.get(numbers.get(image, ""), "")
        if path.partition("/")[0] != label or not label[:3].isdigit():
            raise InputError(
                f"{root / file} and the lists beside it do not fit: the image {image}, {path!r}, is of the class "
                f"{label or 'that none of them names'!r}: fetch them again."
            )
        yield Row(path, f"{top}images/{_inside(root, file, path)}", label, _side(root, file, label[:3], 200))


def _cars(root: Path, top: str) -> Iterator[Row]:
    """All images in one folder, with all classes in one file."""
    file = f"{top}cars_annos.mat"
    for path, number, names in _annotations(root, file, "relative_im_path"):
        _inside(root, file, path)
        yield Row(path.rpartition("/")[2], top + path, _car(number, names), _side(root, file, number, 196))


def _cars_devkit(root: Path, top: str) -> Iterator[Row]:
    """The folders and files of the challenge, whose sides are not those by class."""
    for file, folder in ((DEVKIT[0], "cars_train"), (DEVKIT[1], "cars_test")):
        for name, number, _ in _annotations(root, top + file, "fname"):
            path = f"{folder}/{_inside(root, top + file, name)}"
            yield Row(path, top + path, _car(number, ()), _side(root, top + file, number, 196))


def _car(number: int, names: tuple[str, ...]) -> str:
    return f"{number:03}.{names[number - 1]}" if 1 <= number <= len(names) else f"{number:03}"


def _annotations(root: Path, file: str, field: str) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Path, class and the names of all classes, from a file of MATLAB."""
    content = read_matlab(image_bytes(root, file), root / file)
    try:
        names = tuple(str(name) for name in content.get("class_names", []))
        rows = [(str(entry[field]), int(entry["class"].item())) for entry in content["annotations"]]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{root / file} holds no annotations of Cars-196 with `{field}` and `class` ({error!r}): fetch it again."
        ) from error
    for path, number in rows:
        yield path, number, names


def _sop(root: Path, top: str) -> Iterator[Row]:
    """Two lists with a head, `image_id class_id super_class_id path`."""
    for split, file in ((TRAIN, f"{top}Ebay_train.txt"), (TEST, f"{top}Ebay_test.txt")):
        for number, (_, label, _, path) in _lines(root, file, 4):
            if number == 1 and label == "class_id":
                continue
            yield Row(path, top + _inside(root, file, path), label, split)


DEVKIT = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
KINDS = {
    "cub200": FineGrained(
        "CUB-200-2011",
        (
            Layout(
                ("images.txt", "image_class_labels.txt", "classes.txt"),
                "images/<class>/<image>.jpg, from CUB_200_2011.tgz",
                _cub,
                ("", "CUB_200_2011/"),
            ),
        ),
        (5_864, 5_924),
        (1, 2, 4, 8, 16),
    ),
    "cars196": FineGrained(
        "Cars-196",
        (
            Layout(("cars_annos.mat",), "car_ims/<image>.jpg, from car_ims.tgz", _cars),
            Layout(DEVKIT, "cars_train/ and cars_test/, from cars_train.tgz and cars_test.tgz", _cars_devkit),
        ),
        (8_054, 8_131),
        (1, 2, 4, 8, 16),
    ),
    "sop": FineGrained(
        "Stanford Online Products",
        (
            Layout(
                ("Ebay_train.txt", "Ebay_test.txt"),
                "<kind>_final/<image>.JPG, unzipped from Stanford_Online_Products.zip",
                _sop,
                ("", "Stanford_Online_Products/"),
            ),
        ),
        (59_551, 60_502),
        (1, 10, 100, 1000),
    ),
}
