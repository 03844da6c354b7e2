"""CIFAR-10 and NUS-WIDE-21 as hashing is scored on them, and closed sets of one's own (methods.md 5.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cgd.data.archives import archive_files
from cgd.data.batch_files import MARK, read_batch
from cgd.data.pickles import read_plain_pickle
from cgd.data.published_sets import GALLERY, QUERY, existing, leads_elsewhere, unpacked
from cgd.data.sampling import CLASS_SEPARATOR
from cgd.errors import InputError, unknown
from cgd.registry import Spec, bind
from cgd.types import ImageList

TRAIN, PRETRAIN = "train", "pretrain"
BATCHES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
ROWS = 10_000  # images in each
VERSIONS = (("cifar-10-batches-py", "", "batches.meta"), ("cifar-10-batches-bin", ".bin", "batches.meta.txt"))
PROTOCOLS = {"cifar10": (100, 500), "cifar10-1": (100, 500), "cifar10-2": (1000, 5000)}  # queries, training, per class
NUSWIDE_LISTS = {TRAIN: "train.txt", QUERY: "test.txt", GALLERY: "database.txt"}
CONCEPTS = 21


# CIFAR-10


def cifar10(path: str, name: str, split: str | None) -> ImageList:
    """Images of CIFAR-10 from its python or binary version: all 60,000, or those of a split.

    `train`, `query` and `gallery` are those of the protocol, `pretrain` the 50,000 published for training.
    """
    root, options = rooted(path, _protocol, "cifar10")
    folder, suffix, meta = _cifar_files(root)
    labels = np.concatenate([_labels(folder / f"{batch}{suffix}") for batch in BATCHES])
    names = _class_names(folder / meta, int(labels.max()) + 1)
    parts = {**_protocol(labels, **options), PRETRAIN: np.flatnonzero(np.arange(len(labels)) < 5 * ROWS)}
    if split is not None and split not in parts:
        raise unknown("split of cifar10", split, parts)
    rows = np.arange(len(labels)) if split is None else parts[split]
    ids = tuple(f"{BATCHES[row // ROWS]}{MARK}{row % ROWS}" for row in rows)
    paths = tuple(f"{BATCHES[row // ROWS]}{suffix}{MARK}{row % ROWS}" for row in rows)
    return ImageList(name, split, ids, paths, folder, tuple(names[labels[row]] for row in rows))


def _protocol(
    labels: np.ndarray, *, protocol: Literal["cifar10", "cifar10-1", "cifar10-2"] = "cifar10-1", seed: int = 0
) -> dict[str, np.ndarray]:
    """Rows by split, ascending: of every class some are drawn as queries, others for training.

    The gallery is what is left (`cifar10`), that and the training images (`cifar10-1`), or these alone (`cifar10-2`).
    """
    asked, taught = PROTOCOLS[protocol]
    parts: list[list[np.ndarray]] = [[], [], []]
    for number in np.unique(labels):
        rows = np.flatnonzero(labels == number)
        if len(rows) < asked + taught:
            raise InputError(
                f"the protocol {protocol} takes {asked + taught} images of each class, and one has {len(rows)}: "
                "fetch CIFAR-10 again."
            )
        order = np.random.default_rng([seed, int(number)]).permutation(rows)
        for part, drawn in zip(parts, np.split(order, [asked, asked + taught]), strict=True):
            part.append(drawn)
    query, train, rest = (np.sort(np.concatenate(part)) for part in parts)
    gallery = {"cifar10": rest, "cifar10-1": np.union1d(train, rest), "cifar10-2": train}[protocol]
    return {QUERY: query, TRAIN: train, GALLERY: gallery}


def _cifar_files(root: Path) -> tuple[Path, str, str]:
    """The folder of the batches, which may be `root` itself, the ending of their names, and what names the classes."""
    places = [(place, suffix, meta) for name, suffix, meta in VERSIONS for place in (root / name, root)]
    for folder, suffix, meta in places:
        wanted = [*(f"{batch}{suffix}" for batch in BATCHES), meta]
        lacking = [file for file in wanted if not (folder / file).is_file()]
        if not lacking:
            return folder, suffix, meta
        if len(lacking) < len(wanted):
            raise InputError(
                f"{folder} is not complete, {', '.join(lacking)} missing: it must hold {wanted[0]} to {wanted[4]}, "
                f"{wanted[5]} and {meta}."
            )
    packed = [file.name for file in archive_files(root) if file.name.startswith("cifar-10")]
    advice = f"; unpack it there: tar -xf {packed[0]}" if packed else ""
    raise InputError(
        f"{root} holds no CIFAR-10: it must hold cifar-10-batches-py/ with {BATCHES[0]} to {BATCHES[4]}, {BATCHES[5]} "
        f"and batches.meta, as cifar-10-python.tar.gz unpacks, or cifar-10-batches-bin/ of the binary version{advice}."
    )


def _labels(file: Path) -> np.ndarray:
    labels = read_batch(file).labels
    if len(labels) != ROWS:
        raise InputError(f"{file} holds {len(labels):,} images, {ROWS:,} are published: fetch it again.")
    if labels.min() < 0 or labels.max() > 9:
        raise InputError(f"{file} has the label {labels.max()}, CIFAR-10 has 0 to 9: it is of another data set.")
    return labels


def _class_names(file: Path, classes: int) -> list[str]:
    if file.suffix == ".txt":
        names: Any = file.read_text("utf-8", "replace").split()
    else:
        content = read_plain_pickle(file)
        names = content.get("label_names") if isinstance(content, dict) else None
    good = isinstance(names, list) and len(names) >= classes and all(isinstance(n, str) and n for n in names)
    if not good or len(set(names)) < len(names):
        raise InputError(f"{file} does not name the {classes} classes: fetch it again.")
    return [str(n) for n in names]


# NUS-WIDE-21


def nuswide21(path: str, name: str, split: str | None) -> ImageList:
    """Images of NUS-WIDE with the 21 most frequent concepts, `c01` to `c21`: of `train` where no split is named.

    A line of a list is a path and 21 numbers, 1 where the image shows the concept.
    """
    root, chosen = existing(Path(path)), split or TRAIN
    if chosen not in NUSWIDE_LISTS:
        raise unknown("split of nuswide-21", chosen, NUSWIDE_LISTS)
    file = root / NUSWIDE_LISTS[chosen]
    if not file.is_file():
        made = (
            "; that list is not distributed with the method's code: make it from your copy of NUS-WIDE, of all images "
            "with one of the concepts that are not in test.txt"
            if chosen == GALLERY
            else ""
        )
        raise InputError(
            f"{root} holds no {file.name}: a text file of lines with a path and {CONCEPTS} numbers 0 or 1{made}."
        )
    found = list(_nuswide_lines(file))
    paths, labels = tuple(path for path, _ in found), tuple(label for _, label in found)
    return unpacked(ImageList(name, split, paths, paths, root, labels), f"the paths that {file.name} has, below {root}")


def _nuswide_lines(file: Path) -> Iterator[tuple[str, str]]:
    """The path and the label of each line."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 (byte {error.start}): fetch it again.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        path, *flags = line.strip().rsplit(None, CONCEPTS)
        if len(flags) != CONCEPTS or not set(flags) <= {"0", "1"}:
            raise InputError(
                f"{file}, line {number}: expected a path and {CONCEPTS} numbers 0 or 1, got {line[:80]!r}."
            )
        if leads_elsewhere(path):
            raise InputError(f"{file}, line {number}: {path!r} is no path of an image below {file.parent}.")
        yield path, CLASS_SEPARATOR.join(f"c{place:02d}" for place, flag in enumerate(flags, 1) if flag == "1")


# closed sets


def divided(images: ImageList, split: str | None, queries: float, seed: int) -> ImageList:
    """`images` of known classes: a share of every label drawn as `query`, the others are `train` and `gallery`."""
    if not 0 < queries < 1:
        raise InputError(f"closed-set: queries is a share between 0 and 1, got {queries:g}.")
    if not len(images):
        raise InputError(f"closed-set: {images.root} holds no image.")
    if images.labels is None:
        raise InputError(f"{images.title} has no labels to divide: put the images into a sub-folder per label.")
    if split not in (None, TRAIN, QUERY, GALLERY):
        raise unknown("split of closed-set", str(split), [TRAIN, QUERY, GALLERY])
    labels = np.asarray(images.labels, str)
    drawn = np.zeros(len(images), bool)
    for number, label in enumerate(np.unique(labels)):
        rows = np.flatnonzero(labels == label)
        drawn[np.random.default_rng([seed, number]).permutation(rows)[: round(queries * len(rows))]] = True
    kept = np.ones(len(images), bool) if split is None else drawn == (split == QUERY)

    def chosen(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(compress(values, kept))

    return ImageList(images.name, split, chosen(images.ids), chosen(images.paths), images.root, chosen(images.labels))


def rooted(path: str, function: Callable[..., Any], kind: str) -> tuple[Path, dict[str, Any]]:
    """The folder or file in front of `?`, and the options behind it as `function` declares them."""
    root, mark, tail = path.partition("?")
    return existing(Path(root)), bind(function, Spec.parse(f"{kind}{mark}{tail}").options, f"{kind}:{path}")
