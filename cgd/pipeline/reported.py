"""What a report is about: a finished student, the teachers it learnt from, and the student it began as."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import Recipe
from cgd.data.views import CROPPED, FIXED
from cgd.errors import InputError, MissingError, WeightsError
from cgd.pipeline import steps
from cgd.pipeline.recipe import change
from cgd.pipeline.runner import RESULTS
from cgd.pipeline.steps import Session
from cgd.stages import select
from cgd.stages.imported import IMPORTED
from cgd.store.feature_store import SHOWN, FeatureStore
from cgd.store.keys import canonical, settings_of
from cgd.store.layout import RECIPE
from cgd.types import Benchmark, ImageList, Key, title_of

if TYPE_CHECKING:
    from cgd.models.encoder import EncoderSource
    from cgd.store.artifact import Artifact

RUN_RECIPE, LOG = "recipe.yaml", "log.jsonl"


@dataclass(frozen=True)
class Place:
    """A finished student: how commands name it, its `folder`, what its recipe says, and the recipe of its run."""

    name: str
    folder: Path
    about: Mapping[str, Any]
    run: Path | None


@dataclass(frozen=True)
class Teaching:
    """The teachers of a student, and by label the whitening of full images, or None where one of them has none.

    `fitted_on` is the data set of the whitening.
    """

    sources: tuple[EncoderSource, ...]
    whitenings: Mapping[str, Key] | None
    fitted_on: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Epoch:
    """One line of the training log; `validation` is the mAP of the classes held out, in percent."""

    number: int
    loss: float
    validation: float | None


def find(session: Session, student: str) -> Place:
    """The student in a folder, in the folder of a run, or in the store by its key.

    Raises `MissingError` where none is finished, and `InputError` where a run has several.
    """
    folder = Path(student)
    if (folder / RUN_RECIPE).is_file() and not (folder / RECIPE).is_file():
        folder = _only_student(folder)
    name = str(folder) if folder.is_dir() else student
    folder, about = steps.find_student(session, name)
    run = folder.parent / RUN_RECIPE
    whole = run.is_file() and (run.parent / RESULTS).is_file()
    for section in ("distill", "inputs"):
        if section not in about:
            raise InputError(f"{folder / RECIPE} is damaged: it has no '{section}'.")
    return Place(name, folder, about, run if whole else None)


def _only_student(folder: Path) -> Path:
    found = sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))
    if not found:
        raise MissingError(f"{folder} holds no finished student: repeat its `cgd run`, it continues.")
    if len(found) > 1:
        some = ", ".join(map(str, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")
        raise InputError(f"{folder} holds {len(found)} students; name one of: {some}.")
    return found[0]


def key_of(store: FeatureStore, place: Place) -> Key | None:
    """The student's key, where this store has it."""
    recipe, inputs = (place.folder / RECIPE).read_bytes(), place.about["inputs"]
    sealed = [e.key for e in store.entries("students") if e.sealed and e.attributes.get("inputs") == inputs]
    return next((key for key in sealed if store.get(key).blob(RECIPE) == recipe), None)


def teaching_of(session: Session, place: Place, recipe: Recipe, names: Sequence[str]) -> Teaching:
    """The teachers behind the vectors that a student was trained with, in their order, by the `names` given."""
    store = session.store()
    trained: dict[str, tuple[Artifact, Artifact | None]] = {}
    for key in [Key.parse(text) for text in place.about["inputs"]]:
        if key.kind in ("whitened", "embeddings"):
            embeddings = select.embeddings_behind(store, key)
            whitening = store.get(store.get(key).inputs[1]) if key.kind == "whitened" else None
            trained.setdefault(canonical(embeddings.settings["encoder"]).decode(), (embeddings, whitening))
    sources = steps.sources_of(session, [e.settings["encoder"] for e, _ in trained.values()], names)
    found = [_whitening(store, *each, recipe) for each in trained.values()]
    whitenings = {s.label: key for s, key in zip(sources, found, strict=True) if key is not None}
    if missing := [s.label for s in sources if s.label not in whitenings]:
        data = next(iter(trained.values()))[0].settings
        title = title_of(data["dataset"], data["split"])
        note = (
            f"The store has no whitening of full images of {', '.join(missing)}, so teachers are shown raw only; "
            f"`cgd fit-whitening --dataset {title}` fits one."
        )
        return Teaching(tuple(sources), None, "", (note,))
    fitted = store.get(next(iter(whitenings.values()))).settings
    return Teaching(tuple(sources), whitenings, title_of(fitted["dataset"], fitted["split"]))


def _whitening(store: FeatureStore, embeddings: Artifact, trained: Artifact | None, recipe: Recipe) -> Key | None:
    """Of full images: fitted like the one `trained` with, or as the recipe says on the images trained on."""
    if trained is not None:
        wanted = {**trained.settings, "view_kind": FIXED}
        if trained.settings == wanted:
            return trained.key
    else:
        settings = embeddings.settings
        wanted = {name: settings[name] for name in ("dataset", "split", "encoder")}
        wanted |= {"view_kind": FIXED, **settings_of(recipe.whiten)}
    found = store.find("whitening", **wanted)
    return next((key for key in found if _fitted_like(store, key, embeddings)), found[0] if found else None)


def _fitted_like(store: FeatureStore, whitening: Key, embeddings: Artifact) -> bool:
    """Whether it was fitted on the images, and in the precision, of these embeddings."""
    first = next(iter(store.get(whitening).inputs), None)
    if first is None or not store.is_sealed(first):
        return False
    fitted = store.get(first).settings
    return all(fitted[name] == embeddings.settings[name] for name in ("ids", "precision"))


def start_of(session: Session, place: Place) -> EncoderSource:
    """The same student untrained, as its recipe tells it; raises `WeightsError` where its file is another's."""
    distill, digest = place.about["distill"], place.about.get("init")
    init = distill["init"].partition("?")[0]
    values = {"student": place.about["student"], "seed": distill["seed"]}
    if init:
        values["init"] = f"{init}?sha256={digest}"
    return steps.student_source(session, change(Recipe(), "distill", **values))


def epochs_of(place: Place) -> tuple[Epoch, ...]:
    """The training log beside the student; nothing where there is none."""
    try:
        lines = [json.loads(line) for line in (place.folder / LOG).read_text().splitlines()]
        epochs = tuple(
            Epoch(int(e["epoch"]), float(e["loss"]), float(e["validation"]) if "validation" in e else None)
            for e in lines
        )
        numbers = [n for e in epochs for n in (e.loss, 0.0 if e.validation is None else e.validation)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a loss that is no number")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place.folder / LOG} is damaged ({error}): take it away, or restore it.") from error
    return epochs


def lacks_vectors(
    session: Session, source: EncoderSource, lists: Mapping[str, Sequence[ImageList]], recipe: Recipe
) -> ImageList | None:
    """The first image list, by view, without stored vectors of a network whose weights are not here; or None."""
    from cgd.stages.extract import embeddings_identity

    if source.weights is None or source.weights.path is not None:
        return None
    store = session.store()
    for view, images in lists.items():
        for each in images:
            if not store.is_sealed(embeddings_identity(each, source, view, recipe.extract.of_all).key):
                return each
    return None


def refuse_missing_vectors(
    session: Session, sources: Sequence[EncoderSource], lists: Mapping[str, Sequence[ImageList]], recipe: Recipe
) -> None:
    """A teacher that would have to look at images, and cannot, is told before any work is done."""
    for source in sources:
        if (images := lacks_vectors(session, source, lists, recipe)) is not None:
            assert source.weights is not None
            head = source.text.partition("?")[0]
            raise MissingError(
                f"the store has no vectors of {source.label} for {images.title}, and its weights (SHA-256 "
                f"{source.weights.digest[:12]}…) are not here: give --weights DIR, and --teachers with every teacher "
                f"as it was extracted, e.g. '{head}?weights=FILE'."
            )


def image_lists(
    benchmark: Benchmark, cropped: bool, distractors: Sequence[ImageList]
) -> dict[str, tuple[ImageList, ...]]:
    """What has to be embedded, by view."""
    full = (benchmark.gallery, *distractors)
    return {FIXED: full, CROPPED: (benchmark.queries,)} if cropped else {FIXED: (*full, benchmark.queries)}


def is_here(source: EncoderSource) -> bool:
    """Whether the network can be built on this machine."""
    imported = source.identity["name"] == IMPORTED
    return not imported and (source.weights is None or source.weights.path is not None)


def start_or_reason(
    session: Session, place: Place, lists: Mapping[str, Sequence[ImageList]], recipe: Recipe
) -> tuple[EncoderSource | None, str]:
    """The untrained student, or why it cannot be scored."""
    try:
        source = start_of(session, place)
    except WeightsError as error:
        return None, f"The student before training is left out: {error}"
    if lacks_vectors(session, source, lists, recipe) is not None:
        assert source.weights is not None
        return None, (
            f"The student before training is left out: it began from {source.weights.name}, which is not here; "
            "give the folder that holds it with --weights."
        )
    return source, ""
