"""Where the rates of a plan come from: numbers given, short measurements of what is not, pixels for the rest.

Where everything is given no network is built, and torch is not imported.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import Recipe
from cgd.errors import InputError, unknown
from cgd.pipeline.plan import Network, Plan, Rate, Rates, Work, make_plan
from cgd.registry import Spec
from cgd.types import ImageList, InputSpec

if TYPE_CHECKING:  # only measuring needs torch
    from cgd.models.encoder import Encoder
    from cgd.pipeline.steps import Session
    from cgd.stages.measure_files import StoreRates

_LONGEST = InputSpec(1024, "longest", scales=(1.0, sqrt(2), 1 / sqrt(2)))
_AS_IT_IS = InputSpec(1024, "none")
_CENTRE = InputSpec(256, "shortest", enlarge=True, centre_crop=224)
KNOWN: Mapping[str, tuple[int, InputSpec]] = {  # dimensions and pixels of the plug-ins called so, without options
    "gem": (2048, _LONGEST),
    "solar": (2048, _LONGEST),
    "ap-gem": (2048, _AS_IT_IS),
    "delg": (512, dataclasses.replace(_AS_IT_IS, scales=(1 / sqrt(2), 1.0, sqrt(2)))),
    "dolg": (512, dataclasses.replace(_AS_IT_IS, scales=(0.3535, 0.5, 0.7071, 1.0, 1.4142))),
    "mocov3": (2048, _CENTRE),
    "barlow-twins": (2048, _CENTRE),
}
KNOWN_STUDENTS: Mapping[str, tuple[int, InputSpec]] = {
    name: (512, dataclasses.replace(_LONGEST, scales=(1.0, 1 / sqrt(2), 0.5))) for name in ("resnet18", "resnet34")
}
BACKWARD = 3  # a step of training costs so many forward passes
TEXT = {"ids": 16, "paths": 32, "labels": 6}  # bytes of an image where no list is given, as GLDv2-clean has them
IMAGE_BYTES = 200_000  # assumed of an image file where there are none
DRAWN = 32  # photographs that are drawn to measure with
LIGHT = 2.0  # seconds for what is not a teacher, at most
MEASURED_DIM = 2048  # of vectors that are written and read


@dataclass(frozen=True)
class Given:
    """Rates that need no measuring, a second: `crops` and `full` images by teacher, the others as in `Rates`."""

    crops: Mapping[str, float] = field(default_factory=dict)
    full: Mapping[str, float] = field(default_factory=dict)
    train: float | None = None
    load: float | None = None
    read: float | None = None
    store: float | None = None
    file: float | None = None
    flop: float | None = None

    def __post_init__(self) -> None:
        rates = {**self.crops, **self.full, **{n: v for n, v in vars(self).items() if isinstance(v, float | int)}}
        for name, value in rates.items():
            if not (isfinite(value) and value > 0):
                raise InputError(f"the rate of {name} is a number above 0, got {value:g}.")


def rates_by_teacher(texts: Sequence[str], teachers: Sequence[str], option: str) -> dict[str, float]:
    """The rates in `TEACHER=N`, or `N` for all; a teacher is named as in --teachers, its options left out or not."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        names = [t for t in teachers if name in ("", t, t.partition("?")[0])]
        if not names:
            raise InputError(f"{option} {text}: {unknown('teacher', name, teachers)}")
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"{option} {text}: expected TEACHER=NUMBER, or a NUMBER for all teachers.") from None
        if name and len(names) > 1 and name not in teachers:
            raise InputError(f"{option} {text}: several teachers are called {name}: name one with its options.")
        found |= dict.fromkeys(names, value)
    return found


def work_of(recipe: Recipe, images: ImageList | None, count: int | None, **settings: Any) -> Work:
    """What a recipe asks for, of `images` or of `count` like them (GLDv2-clean's if none); `settings` as in `Work`."""
    number = count or len(images or ())
    of_one = TEXT if images is None else {name: size / len(images) for name, size in _text(images).items()}
    return Work(
        images=number,
        views=recipe.extract.views,
        text={name: round(size * number) for name, size in of_one.items()},
        dim=recipe.whiten.dim if recipe.whiten.kind == "pca" else 0,
        samples=recipe.whiten.samples,
        epochs=recipe.distill.epochs,
        batch_pairs=recipe.distill.batch_pairs,
        **{name: value for name, value in settings.items() if value is not None},
    )


def _text(images: ImageList) -> dict[str, int]:
    """Bytes of the strings of a list, by their array; boxes are no text, and are there or not."""
    columns = {"ids": images.ids, "paths": images.paths, "labels": images.labels, "groups": images.groups}
    text = {name: sum(len(v.encode()) for v in values) for name, values in columns.items() if values is not None}
    return text if images.boxes is None else {**text, "boxes": 0}


def pixels(spec: InputSpec, size: tuple[int, int]) -> float:
    """Pixels of an image of `size` (width, height) that a network with this `spec` sees, at all of its scales."""
    sides = {"longest": max(size), "shortest": min(size)}
    if spec.resize == "square":
        size = (spec.size, spec.size)
    elif spec.resize != "none" and (sides[spec.resize] > spec.size or spec.enlarge):
        factor = spec.size / sides[spec.resize]
        size = (round(size[0] * factor), round(size[1] * factor))
    if spec.centre_crop:
        size = (min(size[0], spec.centre_crop), min(size[1], spec.centre_crop))
    return size[0] * size[1] * sum(scale**2 for scale in spec.scales)


def plan(
    session: Session,
    recipe: Recipe,
    work: Work,
    given: Given,
    *,
    images: ImageList | None,
    size: tuple[int, int],
    seconds: float,
) -> Plan:
    """The plan of `work` with the recipe's teachers and student; `size` is that of an image, width and height.

    What is not `given` is measured for about `seconds`, on some of `images` or on drawn ones.
    """
    if not recipe.extract.teachers:
        raise InputError("no teacher is named: give --teachers NAME[,NAME…], e.g. --teachers gem.")
    if len(set(recipe.extract.teachers)) < len(recipe.extract.teachers):
        raise InputError(f"a teacher is named twice: {', '.join(recipe.extract.teachers)}.")
    with ExitStack() as stack:
        bench = _Bench(session, recipe, work, given, size, seconds, images, stack)
        teachers, waiting = bench.teachers()
        student, train = bench.student()
        rates = bench.rates(train, waiting)
        work = dataclasses.replace(work, image_bytes=work.image_bytes or bench.image_bytes())
    return make_plan(work, teachers, student, rates)


@dataclass
class _Bench:
    """Measures what is not given, and keeps what it takes for that until the `stack` is unwound."""

    session: Session
    recipe: Recipe
    work: Work
    given: Given
    size: tuple[int, int]
    seconds: float
    images: ImageList | None
    stack: ExitStack
    specs: list[InputSpec] = field(default_factory=list)
    drawn: ImageList | None = None

    def teachers(self) -> tuple[list[Network], Rate | None]:
        """Every teacher, and for how long all of them wait for an image, where all were measured together."""
        names, crop = self.recipe.extract.teachers, self.recipe.extract.crop_size**2
        full: dict[str, Rate] = {name: Rate(value, "given") for name, value in self.given.full.items()}
        crops: dict[str, Rate] = {name: Rate(value, "given") for name, value in self.given.crops.items()}
        measured = [name for name in names if name not in full and name not in crops]
        built = {n: self._teacher(n) for n in names if n in measured or n not in KNOWN}
        inputs = {n: (built[n].embed_dim, built[n].input_spec) if n in built else KNOWN[n] for n in names}
        for name, (dim, _) in inputs.items():  # whatever is refused is refused before anything is measured
            self.work.kept(name, dim)
        waiting = None
        if measured:
            from cgd.stages.measure import measure_encoders

            encoders = [built[name] for name in measured]
            found = measure_encoders(
                encoders, self._sample(), self.recipe.extract, self.session.compute(), self.seconds
            )
            full |= {n: Rate(rate, "measured") for n, rate in zip(measured, found.full, strict=True)}
            if self.work.views:
                crops |= {n: Rate(rate, "measured") for n, rate in zip(measured, found.crops, strict=True)}
            if len(measured) == len(names):
                waiting = Rate(1 / max(found.waiting, 1e-9), "measured")
        networks = []
        for name in names:
            dim, spec = inputs[name]
            share = crop / pixels(spec, self.size)  # a network's work is proportional to the pixels it sees
            if name not in full:
                full[name] = crops[name].times(share)
            if name not in crops:
                crops[name] = full[name].times(1 / share)
            networks.append(Network(name, dim, len(spec.scales), full[name], crops[name]))
            self.specs.append(spec)
        return networks, waiting

    def student(self) -> tuple[Network, Rate]:
        """The student, and its rate in training; it embeds as fast as its share of a step and its pixels say."""
        name, size = self.recipe.distill.student, self.recipe.distill.image_size
        built = None
        if self.given.train is None or (name not in KNOWN_STUDENTS and self.work.distractors):
            from cgd.models.load import student

            built = student(name, None).build()
        if built is not None and self.given.train is None:
            from cgd.stages.measure import measure_training

            compute, seconds = self.session.compute(), min(self.seconds, LIGHT)
            train = Rate(measure_training(built, self._sample(), size, compute, seconds), "measured")
        else:
            train = _known(self.given.train, None)
        dim, spec = KNOWN_STUDENTS.get(name, (1, _AS_IT_IS)) if built is None else (built.embed_dim, built.input_spec)
        crops = train.times(BACKWARD)
        return Network(name, dim, len(spec.scales), crops.times(size**2 / pixels(spec, self.size)), crops), train

    def rates(self, train: Rate, waiting: Rate | None) -> Rates:
        """All other rates."""
        given = self.given
        here = self._store() if None in (given.store, given.file, given.flop) else None
        return Rates(
            train=train,
            load=self._load(waiting),
            read=self._read(),
            fetch=_known(given.store, here.fetch if here else None),
            write=_known(given.store, here.write if here else None),
            files=_known(given.file, here.files if here else None),
            flops=_known(given.flop, here.flops if here else None),
            waiting=waiting,
        )

    def image_bytes(self) -> float:
        """Of an image's file on average: of those there are, or as is assumed."""
        return IMAGE_BYTES if self.images is None else self._reading()[0]

    def _teacher(self, text: str) -> Encoder:
        """Untrained: how fast a network is does not depend on its weights."""
        from cgd.models.load import DIGEST, RANDOM, teacher

        spec = Spec.parse(text)
        options = {name: value for name, value in spec.options.items() if name != DIGEST}
        return teacher(dataclasses.replace(spec, options={**options, "weights": RANDOM}).typed, None).build()

    def _load(self, waiting: Rate | None) -> Rate | None:
        """Needed where it is not known otherwise how long networks wait."""
        if self.given.load is None and waiting and not self.work.distractors:
            return None
        return _known(self.given.load, None if self.given.load else self._loading())

    def _loading(self) -> float:
        from cgd.stages.measure import measure_loading

        seconds = min(self.seconds, LIGHT)
        return measure_loading(self.specs, self._sample(), self.recipe.extract, self.session.compute(), seconds)

    def _read(self) -> Rate | None:
        """Of drawn images it would be the memory's."""
        if self.given.read is None and self.images is None:
            return None
        return _known(self.given.read, None if self.given.read else self._reading()[1])

    def _reading(self) -> tuple[float, float]:
        from cgd.stages.measure_files import measure_reading

        return measure_reading(self._sample())

    def _store(self) -> StoreRates:
        from cgd.stages.measure_files import measure_store

        return measure_store(f"{self._folder()}/features.zarr", MEASURED_DIM)

    def _sample(self) -> ImageList:
        """The images there are, or drawn ones."""
        if self.images is None and self.drawn is None:
            from cgd.stages.measure_files import drawn_photographs

            self.drawn = drawn_photographs(self._folder(), DRAWN, self.size)
        found = self.images or self.drawn
        assert found is not None
        return found

    def _folder(self) -> Path:
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="cgd-plan-")))


def _known(given: float | None, measured: float | None) -> Rate:
    """A rate that was given, or else measured."""
    if given is not None:
        return Rate(given, "given")
    assert measured is not None
    return Rate(measured, "measured")
