"""Which images meet in a batch: an epoch's plan from labels, seed and epoch, never from the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cgd.errors import InputError
from cgd.types import Batch, ImageList

CLASS_SEPARATOR = "|"  # in the label of an image of several classes


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch's plan and random targets."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch]))


def label_pairs(
    labels: Sequence[str], usable: np.ndarray, views: Sequence[int], batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Every label once, two distinct images of each, an independent view of either (methods.md 1.10).

    `usable` (N,) bool are the images all teachers could read; `views` are the stored view numbers. All labels
    of a batch are distinct, so everything off the diagonal is a true negative. The last batch may be smaller;
    a single pair has no negatives and is left out.
    """
    rows = np.flatnonzero(usable)
    names, owner = np.unique(np.asarray(labels, dtype=str)[rows], return_inverse=True)
    members = np.split(rows[np.argsort(owner, kind="stable")], np.cumsum(np.bincount(owner, minlength=len(names)))[:-1])
    members = [m for m in members if len(m) >= 2]
    if len(members) < 2:
        raise InputError(
            "pairs by label need at least two labels with two images each; try --set distill.positives=image."
        )
    order = generator.permutation(len(members))
    for chosen in _cut(order, batch):
        pairs = np.stack([generator.choice(members[i], 2, replace=False) for i in chosen])
        yield Batch(pairs.astype(np.int64), generator.choice(np.asarray(views, np.int64), pairs.shape))


def image_pairs(
    usable: np.ndarray, views: Sequence[int], batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Every image once, paired with itself under two different views (the self-supervised form of methods.md 1.11).

    Where there is one view only, both are that one: what is between different images still teaches.
    """
    drawn = min(len(views), 2)
    order = generator.permutation(np.flatnonzero(usable))
    if len(order) < 2:
        raise InputError("pairs of two views need at least two readable images.")
    for chosen in _cut(order, batch):
        seen = np.stack([generator.choice(np.asarray(views, np.int64), drawn, replace=False) for _ in chosen])
        seen = np.broadcast_to(seen, (len(chosen), 2))
        yield Batch(np.stack([chosen, chosen], axis=1).astype(np.int64), seen)


def single_images(
    usable: np.ndarray, views: Sequence[int], batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Every image once, alone, under a view drawn for it; the last batch may be smaller."""
    order = generator.permutation(np.flatnonzero(usable))
    if len(order) < 2:
        raise InputError("training needs at least two readable images.")
    for chosen in _cut(order, batch):
        rows = chosen[:, None].astype(np.int64)
        yield Batch(rows, generator.choice(np.asarray(views, np.int64), rows.shape))


def class_batches(
    labels: np.ndarray,
    usable: np.ndarray,
    views: Sequence[int],
    batch: int,
    per_class: int,
    generator: np.random.Generator,
) -> Iterator[Batch]:
    """Every class once, `per_class` images of it in a row, under views drawn for them (methods.md 3.3).

    `labels` (N,) are numbers, -1 of none. A class with fewer images gives some of them twice. What is left of the
    classes after the last whole batch is not seen in this epoch.
    """
    known = np.flatnonzero(usable & (labels >= 0))
    members = [known[labels[known] == number] for number in np.unique(labels[known])]
    at_once = batch // per_class
    if batch % per_class or at_once < 2:
        raise InputError(
            f"distill.batch_pairs={batch} holds no two classes of distill.images_per_class={per_class} images: "
            f"set it to a multiple of {per_class}, at least {2 * per_class}."
        )
    if len(members) < at_once:
        raise InputError(
            f"batches of {at_once} classes need as many, and there are {len(members)}: "
            f"set distill.batch_pairs to at most {len(members) * per_class}."
        )
    order = generator.permutation(len(members))
    for start in range(0, len(order) - at_once + 1, at_once):
        chosen = [
            generator.choice(members[i], per_class, replace=len(members[i]) < per_class)
            for i in order[start : start + at_once]
        ]
        rows = np.concatenate(chosen)[:, None].astype(np.int64)
        yield Batch(rows, generator.choice(np.asarray(views, np.int64), rows.shape))


def within_budget(images: ImageList, most: int, by: str, seed: int) -> np.ndarray:
    """(N,) bool: at most `most` of the images, drawn by `seed` (methods.md 4); 0 means all of them.

    `by` an image each, or whole labels, of which images without one are in none. What a smaller budget keeps, a larger
    one of the same seed keeps too.
    """
    if not 0 < most < len(images):
        return np.ones(len(images), bool)
    draw = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    if by == "image":
        kept = np.zeros(len(images), bool)
        kept[draw.permutation(len(images))[:most]] = True
        return kept
    if images.labels is None:
        raise InputError(f"{images.title} has no labels to draw images by: use images_by=image.")
    numbers = label_numbers(images.labels)
    sizes = np.bincount(numbers[numbers >= 0])
    order = draw.permutation(len(sizes))
    chosen = order[np.cumsum(sizes[order]) <= most]
    if not len(chosen):
        raise InputError(
            f"a budget of {most} images holds no whole label of {images.title}: ask for more, or use images_by=image."
        )
    return np.isin(numbers, chosen)


def some_of_each(groups: Sequence[str], usable: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """(N,) bool: at most `most` of the `usable` images of each group, drawn at random: frames of a video, say."""
    rows = np.flatnonzero(usable)
    numbers: dict[str, int] = {}
    owner = np.array([numbers.setdefault(groups[row], len(numbers)) for row in rows.tolist()], np.int64)
    order = np.lexsort((generator.random(len(rows)), owner))
    counts = np.bincount(owner, minlength=len(numbers))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(usable), bool)
    chosen[rows[order[place < most]]] = True
    return chosen


def some_labels(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Label numbers (N,) of which a `share`, drawn by `seed`, stays; the others become -1, as of no label."""
    if share == 1:
        return numbers
    known = np.flatnonzero(numbers >= 0)
    draw = np.random.default_rng(np.random.SeedSequence([seed, 8]))
    kept = draw.permutation(known)[: round(share * len(known))]
    some = np.full_like(numbers, -1)
    some[kept] = numbers[kept]
    return some


def append_unlabelled(
    batches: Sequence[Batch], rows: np.ndarray, views: Sequence[int], count: int, generator: np.random.Generator
) -> list[Batch]:
    """Batches of single images with `count` of the unlabelled `rows` (M,) behind each, as different as there are."""
    if len(rows) == 0:
        raise InputError(
            "distill.unlabelled appends images without a label, and there are none to train on: set distill.labelled "
            "below 1 to leave labels unused, or distill.unlabelled=0."
        )
    longer = []
    for batch in batches:
        more = generator.choice(rows, (count, 1), replace=len(rows) < count).astype(np.int64)
        seen = generator.choice(np.asarray(views, np.int64), more.shape)
        longer.append(Batch(np.concatenate([batch.rows, more]), np.concatenate([batch.views, seen])))
    return longer


def label_numbers(labels: Sequence[str]) -> np.ndarray:
    """(N,) int64: each label's place among the distinct ones in order; -1 for an empty one."""
    names, numbers = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    return (numbers - (1 if len(names) and not names[0] else 0)).astype(np.int64)


def label_classes(labels: Sequence[str]) -> np.ndarray:
    """(L, C) bool: which of the C classes each distinct label names, in the order of `label_numbers`.

    A label of several classes has `|` between them.
    """
    parts = [label.split(CLASS_SEPARATOR) for label in sorted(set(labels) - {""})]
    names = {name: column for column, name in enumerate(sorted({n for p in parts for n in p}))}
    table = np.zeros((len(parts), len(names)), bool)
    for row, named in enumerate(parts):
        table[row, [names[n] for n in named]] = True
    return table


def _cut(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        if len(part) > 1:
            yield part
