"""What embedding, whitening, training and scoring will cost: hours, bytes and files of each stage, from rates alone.

Sizes are those of `store/layout.py`, which cuts the shards; the rest is multiplication. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from sys import getsizeof
from typing import Literal

from cgd.errors import InputError
from cgd.store import layout
from cgd.store.layout import Footprint

Known = Literal["given", "measured", "derived"]
CANARIES = {"fixed": 4, "crop": 2}  # drawn images of a kind of view that every machine embeds first
EIGEN = 20  # operations of an eigendecomposition, over the cube of the dimensions
STRING, REFERENCE = getsizeof(""), 8  # bytes of an empty string, and of a place in a tuple
TARGET_BYTES = 8  # of a pair of images in a batch: two matrices of cosines in single precision


@dataclass(frozen=True)
class Rate:
    """So many a second in one process, and how that is known."""

    value: float
    known: Known

    def times(self, factor: float) -> Rate:
        """A rate that follows from this one."""
        return Rate(self.value * factor, "derived")


@dataclass(frozen=True)
class Network:
    """An encoder as a plan knows it: full images at all of its `scales`, or single crops, a second on one device."""

    name: str
    dim: int
    scales: int
    full: Rate
    crops: Rate


@dataclass(frozen=True)
class Rates:
    """What one process does in a second beside the teachers, and what the images' storage gives to all of them.

    `train` images go through a step of the student, loading included; `load` images are read, decoded and cut for all
    teachers by a process's threads; `read` bytes of image files come from the disk or the network, for all processes
    together; both may be unknown. `fetch` bytes are read from the store and checked, `write` bytes are written, in
    at most `files` files; `flops` are operations in double precision. `waiting` is what the networks' waiting for
    images was measured to let through; otherwise images are loaded while the networks are at work.
    """

    train: Rate
    load: Rate | None
    read: Rate | None
    fetch: Rate
    write: Rate
    files: Rate
    flops: Rate
    waiting: Rate | None = None


@dataclass(frozen=True)
class Work:
    """What is to be done, and by how many.

    `text` has the bytes of the strings of an image list: `ids`, `paths`, `labels`, … . Whitening keeps `dim`
    dimensions, 0 for all, and is fitted on `samples` rows of each kind of view, 0 for all. `pairs` are those of an
    epoch, 0 for one of each image. `scaling` is the share of G devices' speed that is left when they train together,
    `price` that of one of them for an hour.
    """

    images: int
    views: int
    text: Mapping[str, int]
    image_bytes: float = 0.0
    gpus: int = 1
    processes: int = 1
    dim: int = 512
    samples: int = 0
    epochs: int = 200
    pairs: int = 0
    batch_pairs: int = 256
    distractors: int = 0
    queries: int = 70
    scaling: float = 0.9
    price: float | None = None
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        least = {
            "images": 1,
            "views": 0,
            "gpus": 1,
            "processes": 1,
            "dim": 0,
            "epochs": 1,
            "pairs": 0,
            "batch_pairs": 2,
        }
        for name, low in {**least, "distractors": 0, "queries": 1, "image_bytes": 0}.items():
            if getattr(self, name) < low:
                raise InputError(f"a plan has {name} of at least {low}, got {getattr(self, name)}.")

    @property
    def list_bytes(self) -> int:
        """Memory of the image list, which every process holds whole: strings, in steps of 16 bytes, and references."""
        lengths = [size / self.images for name, size in self.text.items() if name != "boxes"]
        return round(self.images * sum(16 * ceil((STRING + length) / 16) + REFERENCE for length in lengths))

    def kept(self, teacher: str, dim: int) -> int:
        """How many of its `dim` dimensions a teacher's whitened vectors keep."""
        if self.dim > min(dim, self.images):
            raise InputError(
                f"{teacher} has {dim} dimensions, and there are {self.images} images: "
                f"choose a --dim of at most {min(dim, self.images)}."
            )
        return self.dim or dim


@dataclass(frozen=True)
class Stage:
    """One line of a plan: `rows` at `rate` a second in one process are `seconds`, and `wall` with all of them.

    `shards`, `files` and `bytes` are what it leaves in the store; `cost` is that of the devices while it lasts.
    """

    name: str
    on: Literal["gpu", "cpu"]
    rows: int
    rate: Rate
    seconds: float
    wall: float
    left: Footprint
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """All stages in the order in which they are run, one after the other."""

    work: Work
    teachers: tuple[Network, ...]
    student: Network
    rates: Rates
    stages: tuple[Stage, ...]

    def total(self, on: str | None = None) -> float:
        """Seconds of one process for all stages, or for those on the `gpu` or the `cpu`."""
        return sum(s.seconds for s in self.stages if on in (None, s.on))

    @property
    def wall(self) -> float:
        """Seconds from the first stage to the end of the last."""
        return sum(stage.wall for stage in self.stages)

    @property
    def left(self) -> Footprint:
        """What there is in the store in the end."""
        return _sum(stage.left for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Of all stages that need devices."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        return sum(known) if known else None


def make_plan(work: Work, teachers: Sequence[Network], student: Network, rates: Rates) -> Plan:
    """All stages: extraction, whitening, training, and scoring among `distractors` where there are some."""
    stages = [*_extraction(work, teachers, rates), *_whitening(work, teachers, rates)]
    stages += _training(work, teachers, rates)
    if work.distractors:
        stages += _scoring(work, teachers, student, rates)
    return Plan(work, tuple(teachers), student, rates, tuple(stages))


# ---------------------------------------------------------------- what is written


def cut_of(images: int, teachers: Sequence[Network], wanted: int | None = None) -> int:
    """Rows of a shard of all artifacts of one extraction, which are cut alike: as the widest of them needs."""
    return wanted or layout.shard_rows(images, max(4 * t.scales * t.dim for t in teachers))


def embeddings_of(images: int, teacher: Network, *, crop: bool, wanted: int, ids: int) -> Footprint:
    """One teacher's vectors of one view; a crop has one scale, and its geometry beside it."""
    shapes: dict[str, tuple[int, ...]] = {
        "ids": (images,),
        "vectors": (images, 1 if crop else teacher.scales, teacher.dim),
        "valid": (images,),
        "digests": (images, 32),
        "reasons": (images,),
        **({"views": (images, 5)} if crop else {}),
    }
    return layout.footprint("embeddings", shapes, wanted, {"ids": ids})


def whitened_of(images: int, dim: int, *, crop: bool, wanted: int, ids: int) -> Footprint:
    """The same, whitened to `dim` dimensions in half precision, cut as it was."""
    shapes: dict[str, tuple[int, ...]] = {
        "ids": (images,),
        "vectors": (images, dim),
        "valid": (images,),
        "digests": (images, 32),
        **({"views": (images, 5)} if crop else {}),
    }
    return layout.footprint("whitened", shapes, wanted, {"ids": ids})


def vector_bytes(images: int, dim: int, views: int) -> int:
    """Of one teacher's whitened vectors alone, without ids, digests and checksums (methods.md 6.4)."""
    return images * dim * views * layout.ITEM_BYTES["float16"]


def _images(work: Work) -> Footprint:
    """Of the list itself; `boxes` are no text, and are named among it to say that there are some."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(work.text, (work.images,))
    if "boxes" in shapes:
        shapes["boxes"] = (work.images, 4)
    return layout.footprint("images", shapes, None, work.text)


def _canaries(work: Work, teachers: Sequence[Network]) -> Footprint:
    kinds = [("fixed", False), *([("crop", True)] if work.views else [])]
    shapes = [(CANARIES[kind], 1 if crop else t.scales, t.dim) for t in teachers for kind, crop in kinds]
    return _sum(layout.footprint("canaries", {"vectors": shape}) for shape in shapes)


def _sum(parts: Iterable[Footprint]) -> Footprint:
    found = list(parts)
    return Footprint(sum(p.shards for p in found), sum(p.files for p in found), sum(p.bytes for p in found))


NOTHING = Footprint(0, 0, 0)


# ---------------------------------------------------------------- how long it takes


@dataclass
class _Clock:
    """Seconds that add up, and the rates they rest on."""

    seconds: float = 0.0
    rests_on: list[Rate] = field(default_factory=list)

    def add(self, amount: float, rate: Rate) -> _Clock:
        if amount:
            self.seconds += amount / rate.value
            self.rests_on.append(rate)
        return self

    def write(self, left: Footprint, rates: Rates) -> _Clock:
        return self.add(left.bytes, rates.write).add(left.files, rates.files)

    def known(self) -> Known:
        order: tuple[Known, ...] = ("derived", "measured", "given")
        return next((k for k in order if any(r.known == k for r in self.rests_on)), "given")


def spread(seconds: float, shards: int, workers: int) -> float:
    """Wall time of `shards` equal shards on `workers`: in the last round some of them have nothing to do."""
    return seconds * -(-shards // workers) / shards if shards else seconds


def _stage(
    work: Work,
    name: str,
    on: Literal["gpu", "cpu"],
    rows: int,
    clock: _Clock,
    left: Footprint,
    wall: float,
) -> Stage:
    rate = Rate(rows / clock.seconds if clock.seconds else float("inf"), clock.known())
    cost = None if work.price is None or on == "cpu" else work.price * work.gpus * wall / 3600
    return Stage(name, on, rows, rate, clock.seconds, wall, left, cost)


def _extraction(work: Work, teachers: Sequence[Network], rates: Rates) -> list[Stage]:
    """Every teacher in turn on every decoded image; then what the networks wait for images."""
    cut, ids = cut_of(work.images, teachers, work.shard_rows), work.text["ids"]
    shards, looks = -(-work.images // cut), len(teachers)
    full, crops, wait = _Clock(), _Clock(), _Clock()
    for teacher in teachers:
        full.add(work.images, teacher.full)
        crops.add(work.images * work.views, teacher.crops)
    network = full.seconds + crops.seconds
    if rates.waiting is not None:
        wait.add(work.images, rates.waiting)
    else:
        _load(wait, work.images, network, rates)
    of_full = _sum(embeddings_of(work.images, t, crop=False, wanted=cut, ids=ids) for t in teachers)
    of_crops = _sum(
        embeddings_of(work.images, t, crop=True, wanted=cut, ids=ids) for t in teachers for _ in range(work.views)
    )
    lists = _sum([_images(work), _canaries(work, teachers)])
    full.write(of_full, rates).write(lists, rates)
    crops.write(of_crops, rates)
    walls = [spread(clock.seconds, shards, work.gpus) for clock in (full, crops, wait)]
    walls[2] = max(walls[2], _reading(work, work.images, rates) - walls[0] - walls[1])
    left = Footprint(of_full.shards + lists.shards, of_full.files + lists.files, of_full.bytes + lists.bytes)
    rows = work.images * looks
    found = [_stage(work, "teachers: full images", "gpu", rows, full, left, walls[0])]
    if work.views:
        found.append(_stage(work, "teachers: crops", "gpu", rows * work.views, crops, of_crops, walls[1]))
    return [*found, _stage(work, "teachers: waiting", "gpu", work.images, wait, NOTHING, walls[2])]


def _load(clock: _Clock, images: int, network: float, rates: Rates) -> None:
    """Seconds of loading that are not hidden behind `network` seconds, in which images are loaded, too."""
    if rates.load and (late := images / rates.load.value - network) > 0:
        clock.add(late * rates.load.value, rates.load)


def _reading(work: Work, images: int, rates: Rates) -> float:
    """Seconds in which one disk or network gives all image files, whoever asks for them."""
    return images * work.image_bytes / rates.read.value if rates.read else 0.0


def _whitening(work: Work, teachers: Sequence[Network], rates: Rates) -> list[Stage]:
    """One pass over the raw vectors for the fit, another to apply it; a fit for each teacher and kind of view."""
    cut, ids = cut_of(work.images, teachers, work.shard_rows), work.text["ids"]
    shards, kinds = -(-work.images // cut), 2 if work.views else 1
    fit, apply, fitted, made = _Clock(), _Clock(), [], []
    for teacher in teachers:
        dim = work.kept(teacher.name, teacher.dim)
        fit.add(kinds * EIGEN * teacher.dim**3, rates.flops)
        for rows in (work.images, work.images * work.views):
            fit.add(2 * min(rows, work.samples or rows) * teacher.dim**2, rates.flops)
        for crop in [False, *[True] * work.views]:
            raw = work.images * (1 if crop else teacher.scales) * teacher.dim
            fit.add(4 * raw, rates.fetch)  # all of it, whoever is drawn
            made.append(whitened_of(work.images, dim, crop=crop, wanted=cut, ids=ids))
            apply.add(4 * raw, rates.fetch).add(2 * raw * dim, rates.flops).write(made[-1], rates)
        whitening = {"mean": (teacher.dim,), "projection": (dim, teacher.dim), "eigenvalues": (teacher.dim,)}
        fitted += [layout.footprint("whitening", whitening)] * kinds
    rows = work.images * len(teachers) * (1 + work.views)
    return [
        _stage(work, name, "cpu", rows, clock, _sum(left), spread(clock.seconds, shards, work.processes))
        for name, clock, left in (("fit whitening", fit, fitted), ("apply whitening", apply, made))
    ]


def target_bytes(pairs: int, batch: int) -> int:
    """Of an epoch's targets: two square matrices a batch, the last of which may be smaller."""
    return TARGET_BYTES * (pairs // batch * batch**2 + (pairs % batch) ** 2)


def _training(work: Work, teachers: Sequence[Network], rates: Rates) -> list[Stage]:
    """Steps of the student, and targets, each epoch's built while the one before is trained."""
    pairs = work.pairs or work.images
    looks, views = 2 * pairs * work.epochs, max(work.views, 1)
    train = _Clock().add(looks, rates.train)
    wall = train.seconds if work.gpus == 1 else train.seconds / (work.gpus * work.scaling)
    cut = cut_of(work.images, teachers, work.shard_rows)
    shards = min(-(-work.images // cut), 2 * pairs)  # of one view; nearly all of them hold a row that is wanted
    touched = min(work.images, shards * cut)
    targets = _Clock()
    for teacher in teachers:
        dim = work.kept(teacher.name, teacher.dim)
        targets.add(vector_bytes(touched, dim, views), rates.fetch)
        targets.add(4 * pairs * work.batch_pairs * dim, rates.flops)
    targets.add(2 * target_bytes(pairs, work.batch_pairs), rates.fetch)
    epoch = targets.seconds
    late = epoch + (work.epochs - 1) * max(0.0, epoch - wall / work.epochs)
    targets.seconds *= work.epochs
    return [
        _stage(work, "targets", "cpu", 2 * pairs * len(teachers) * work.epochs, targets, NOTHING, late),
        _stage(work, "train a student", "gpu", looks, train, NOTHING, wall),
    ]


def _scoring(work: Work, teachers: Sequence[Network], student: Network, rates: Rates) -> list[Stage]:
    """Distractors embedded by teachers and student, made to descriptors, and searched by every query of each model."""
    count, ids = work.distractors, work.text["ids"] * work.distractors // work.images
    stages, made, describe, score = [], [], _Clock(), _Clock()
    for name, group in (("distractors: teachers", teachers), ("distractors: student", [student])):
        cut = cut_of(count, group, work.shard_rows)
        shards = -(-count // cut)
        clock = _Clock()
        for network in group:
            clock.add(count, network.full)
        _load(clock, count, clock.seconds, rates)
        left = _sum(embeddings_of(count, n, crop=False, wanted=cut, ids=ids) for n in group)
        clock.write(left, rates)
        wall = max(spread(clock.seconds, shards, work.gpus), _reading(work, count, rates))
        stages.append(_stage(work, name, "gpu", count * len(group), clock, left, wall))
    for network in [*teachers, student]:
        dim = student.dim if network is student else work.kept(network.name, network.dim)
        shapes: dict[str, tuple[int, ...]] = {"ids": (count,), "vectors": (count, dim), "valid": (count,)}
        left = layout.footprint("descriptors", shapes, None, {"ids": ids})
        raw = count * network.scales * network.dim
        describe.add(4 * raw, rates.fetch).write(left, rates)
        if network is not student:
            describe.add(2 * raw * dim, rates.flops)
        score.add(left.bytes, rates.fetch).add(2 * count * dim * work.queries, rates.flops)
        made.append(left)
    shards, models = min(f.shards for f in made), len(teachers) + 1
    walls = [spread(clock.seconds, shards, work.processes) for clock in (describe, score)]
    stages.append(_stage(work, "distractors: descriptors", "cpu", count * models, describe, _sum(made), walls[0]))
    stages.append(_stage(work, "score", "cpu", count * models, score, NOTHING, walls[1]))
    return stages
