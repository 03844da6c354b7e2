"""One function per command: from what a user typed to the stage that does it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import ExtractConfig, Recipe, WhitenConfig
from cgd.data.views import CROP, FIXED, crop_name
from cgd.engines import Engine
from cgd.engines.local import LOCAL
from cgd.errors import InputError, MissingError, unknown
from cgd.pipeline.recipe import change
from cgd.pipeline.workspace import Workspace
from cgd.registry import Spec
from cgd.stages import select
from cgd.stages.imported import imported_source, may_be_imported
from cgd.stages.whiten import WhiteningReport, apply_whitening, fit_and_apply
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles, replace_file
from cgd.store.layout import RECIPE, WEIGHTS
from cgd.types import ImageList, Key

if TYPE_CHECKING:  # only the stages that run networks import torch
    from cgd.models.devices import Compute
    from cgd.models.encoder import EncoderSource
    from cgd.stages.distill import Distillation, DistillReport
    from cgd.stages.extract import ExtractReport
    from cgd.stages.processes import Processes
    from cgd.stages.prove import Proof
    from cgd.store.artifact import Artifact


@dataclass(frozen=True)
class Session:
    """What holds for a whole command and changes no result: where things are, which device, how many workers."""

    store_url: str
    upstream: tuple[str, ...] = ()
    weights: Path | None = None
    device: str = "auto"
    workers: int = 2
    batch_size: int = 32
    shard_rows: int | None = None
    part: tuple[int, int] = (1, 1)
    curves: bool = False
    engine: Engine = LOCAL
    workspace: Workspace = field(default_factory=Workspace)

    def store(self, *, write: bool = False) -> FeatureStore:
        return FeatureStore.open(self.store_url, write=write, upstream=self.upstream)

    def compute(self) -> Compute:
        """Where networks run that this very process runs."""
        from cgd.models.devices import Compute, pick_device

        return Compute(pick_device(self.device), self.workers, self.batch_size, self.shard_rows, self.part, self.curves)

    def compute_of_workers(self) -> Compute:
        """Where networks run that the engine's workers run: a device that need not be on this machine."""
        from cgd.models.devices import device_elsewhere

        if not self.engine.elsewhere:
            return self.compute()
        return replace(replace(self, device="cpu").compute(), device=device_elsewhere(self.engine.device(self.device)))


def teacher_sources(session: Session, teachers: Sequence[str]) -> list[EncoderSource]:
    from cgd.models.load import teacher

    if not teachers:
        raise InputError("no teacher is named: give --teachers NAME[,NAME…], e.g. --teachers gem.")
    return [_imported(session, text) or teacher(text, session.weights) for text in teachers]


def _imported(session: Session, text: str) -> EncoderSource | None:
    """The teacher `text` whose vectors were imported, if it is one."""
    if not may_be_imported(text):
        return None
    try:
        store = session.store()
    except MissingError:  # the command makes one
        return None
    return imported_source(store, text)


def sources_of(session: Session, wanted: Sequence[Mapping[str, Any]], teachers: Sequence[str]) -> list[EncoderSource]:
    """The teachers with these identities, in this order, by the names given or by what the store says of them."""
    from cgd.models.load import named
    from cgd.store.keys import canonical

    sources = teacher_sources(session, teachers or [named(identity) for identity in wanted])
    known = {canonical(source.identity): source for source in sources}
    for identity in wanted:
        if canonical(identity) not in known:
            raise InputError(
                f"the stored vectors are those of {named(identity)}, which is not among --teachers "
                f"{','.join(teachers) or '(not given)'}: name the teachers that were extracted."
            )
    return [known[canonical(identity)] for identity in wanted]


def stored_sources(
    session: Session, vectors: Mapping[str, Mapping[str, Key]], teachers: Sequence[str]
) -> list[EncoderSource]:
    """The teachers whose stored vectors these are, by label and view."""
    store, wanted = session.store(), []
    for views in vectors.values():
        embeddings = select.embeddings_behind(store, next(iter(views.values())))
        wanted.append(embeddings.settings["encoder"])
    return sources_of(session, wanted, teachers)


def views_of(config: ExtractConfig) -> list[str]:
    return [FIXED, *(crop_name(n) for n in range(1, config.views + 1))]


def extract_teachers(session: Session, images: ImageList, config: ExtractConfig) -> ExtractReport:
    """Embed `images` with every teacher, the fixed view and the crops."""
    from cgd.stages.extract import extract

    return extract(
        store=session.store(write=True),
        images=images,
        sources=teacher_sources(session, config.teachers),
        views=views_of(config),
        config=config,
        compute=session.compute_of_workers(),
        engine=session.engine,
    )


def estimate_extraction(session: Session, images: ImageList, config: ExtractConfig) -> dict[str, Any]:
    """Bytes, free disk and expected time of `extract_teachers`, measured on a few images."""
    from cgd.stages.extract import estimate

    return estimate(
        store=session.store(write=True),
        images=images,
        sources=teacher_sources(session, config.teachers),
        views=views_of(config),
        config=config,
        compute=session.compute(),
    )


Whitened = dict[str, tuple[dict[str, WhiteningReport], dict[str, Key]]]


def fit_whitening(session: Session, teachers: Mapping[str, Mapping[str, Key]], config: WhitenConfig) -> Whitened:
    """Fit and apply a whitening per teacher and kind of view; `teachers` are embeddings by label and view."""
    return fit_and_apply(store=session.store(write=True), teachers=teachers, config=config, engine=session.engine)


def apply_to(session: Session, whitening: str, dataset: str, split: str | None) -> dict[str, Key]:
    """Apply a stored whitening to every embeddings artifact of a data set that it fits, by view."""
    store = session.store(write=True)
    key = store.resolve(whitening, ("whitening",))
    known = store.get(key)
    views = select.embeddings_of(store, dataset, split, known.attributes["label"])[known.attributes["label"]]
    fitting = {v: k for v, k in views.items() if v.startswith(CROP + "-") == (known.settings["view_kind"] == CROP)}
    if not fitting:
        raise MissingError(
            f"{dataset} has no embeddings of {known.attributes['label']} under {known.settings['view_kind']} views."
        )
    engine = session.engine
    return {v: apply_whitening(store=store, whitening=key, embeddings=k, engine=engine) for v, k in fitting.items()}


def student_source(session: Session, recipe: Recipe) -> EncoderSource:
    """The untrained student of a recipe, its trunk from `init` (FILE, or FILE?sha256=…) where one is named."""
    from cgd.models.checkpoints import locate
    from cgd.models.load import student

    name, _, digest = recipe.distill.init.partition("?sha256=")
    init = locate(name, digest or None, None if Path(name).is_file() else session.weights) if name else None
    return student(recipe.distill.student, init, recipe.distill.seed)


def pin(session: Session, recipe: Recipe) -> Recipe:
    """`recipe` with the SHA-256 of every weights file, so that later stages run without the files."""
    from cgd.models.load import pinned

    teachers = tuple(pinned(source) for source in teacher_sources(session, recipe.extract.teachers))
    recipe = change(recipe, "extract", teachers=teachers)
    init = student_source(session, recipe).weights
    return recipe if init is None else change(recipe, "distill", init=f"{init.name}?sha256={init.digest}")


def distill(
    session: Session,
    images: ImageList,
    teachers: Mapping[str, Mapping[str, Key]],
    recipe: Recipe,
    out: Path,
    processes: Processes | None = None,
) -> DistillReport:
    """Train the recipe's student on `images` against `teachers`, with other `processes` if there are any."""
    from cgd.stages.distill import distill as run
    from cgd.stages.processes import Processes

    processes = processes or Processes()
    with processes.all_ready():
        job = _distillation(session, images, teachers, recipe, out)
    return run(job, processes)


def estimate_distillation(
    session: Session, images: ImageList, teachers: Mapping[str, Mapping[str, Key]], recipe: Recipe, out: Path
) -> dict[str, float]:
    """Steps, bytes and seconds that `distill` with these arguments will take."""
    from cgd.stages.distill import training_of

    return training_of(_distillation(session, images, teachers, recipe, out)).measure()


def check_distillation(recipe: Recipe, images: ImageList, teachers: Iterable[str]) -> None:
    """Refuse what can be known to be wrong before any teacher is run; `teachers` are the labels there will be."""
    from cgd.stages.fuse import make_method
    from cgd.stages.withheld import withheld_of

    for label in recipe.distill.teachers:
        if label not in teachers:
            raise InputError(f"distill.teachers: {unknown('teacher', label, teachers)}")
    make_method(recipe.distill.method, method_config(recipe), recipe.distill.fusion)
    if recipe.distill.frames != "all" and images.groups is None:
        raise InputError(
            f"{images.title} is of images, and distill.frames={recipe.distill.frames} is of videos: leave it out."
        )
    withheld_of(images, recipe.distill)


def _distillation(
    session: Session, images: ImageList, teachers: Mapping[str, Mapping[str, Key]], recipe: Recipe, out: Path
) -> Distillation:
    from cgd.stages.distill import Distillation

    check_distillation(recipe, images, teachers)
    return Distillation(
        store=session.store(write=True),
        images=images,
        teachers={label: teachers[label] for label in recipe.distill.teachers or teachers},
        source=student_source(session, recipe),
        config=recipe.distill,
        method_config=method_config(recipe),
        out=out,
        compute=session.compute(),
        engine=session.engine,
    )


def prove(
    session: Session,
    images: ImageList,
    teachers: Mapping[str, Mapping[str, Key]],
    sources: Sequence[EncoderSource],
    recipe: Recipe,
    *,
    count: int,
    samples: int,
) -> Proof:
    """Compare live teachers with the store, and `count` steps of training with both; nothing is kept."""
    from cgd.stages.distill import training_of
    from cgd.stages.prove import prove as run

    training = training_of(_distillation(session, images, teachers, recipe, Path("proof")))
    return run(store=session.store(), training=training, sources=sources, steps=count, samples=samples)


def method_config(recipe: Recipe) -> Any:
    """The section of the recipe that has the method's name."""
    from cgd import registry

    registry.find("cgd.methods", recipe.distill.method)
    return getattr(recipe, recipe.distill.method.replace("-", "_"))


def load_student(session: Session, where: str, scales: Sequence[float] = ()) -> EncoderSource:
    """The student in a folder, or in the store by its key; `scales` replace its own.

    So do options of its input after the name, `student?mean=0,0,0&std=1,1,1`, where no folder is called that.
    """
    from cgd.models.load import trained_student

    name, typed = (where, "") if Path(where).exists() else where.partition("?")[::2]
    folder, about = find_student(session, name)
    text = about["student"]
    options = dict(Spec.parse(f"{name}?{typed}").options) if typed else {}
    if scales:
        options["scales"] = ",".join(map(str, scales))
    if options:
        spec = Spec.parse(text)
        text = replace(spec, options={**spec.options, **options}).typed
    return trained_student(text, folder / WEIGHTS)


def find_student(session: Session, where: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished student and its recipe."""
    folder = Path(where)
    if not (folder / RECIPE).is_file():
        if folder.is_dir():
            raise MissingError(
                f"{folder} holds no finished student ({RECIPE} is missing): run `cgd distill … --out {folder}`."
            )
        try:
            store = session.store()
            folder = _unpacked(session, store.get(store.resolve(where, ("students",))))
        except MissingError as error:
            raise MissingError(f"'{where}' is no folder of a student, nor its key: {error}") from error
    try:
        about = json.loads((folder / RECIPE).read_text())
        if not isinstance(about["student"], str):
            raise TypeError(f"its student is {about['student']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RECIPE} is damaged: {error}.") from error
    return folder, about


def _unpacked(session: Session, student: Artifact) -> Path:
    """The folder of a stored student: in the store, or beside the working directory's notes where that is far away."""
    files = {name: student.blob(name) for name in student.blobs}  # compared with the seal
    if isinstance(student.files, LocalFiles):
        return student.files.root / str(student.key)
    folder = session.workspace.file.parent / "students" / student.key.name
    for name, data in files.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != data:
            replace_file(folder / name, data)
    return folder
