"""Garbage: stored artifacts that no recipe in a folder names, told by repeating every recipe without computing."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd.config import Recipe
from cgd.data.datasets import default_name
from cgd.errors import InputError, MissingError, WeightsError
from cgd.pipeline import runner
from cgd.pipeline.recipe import change, read_recipe, row
from cgd.pipeline.steps import Session
from cgd.pipeline.storage_text import size_text
from cgd.store.feature_store import Entry, FeatureStore
from cgd.store.layout import WEIGHTS
from cgd.types import Key

if TYPE_CHECKING:
    from cgd.store.artifact import Artifact

Result = dict[str, Any]
MADE_OF_VECTORS = ("descriptors", "codes", "indexes", "scores")  # in this order: an index is made of descriptors


class _LackingError(Exception):
    """A recipe asks for an artifact that is not sealed: here it would begin to compute."""

    def __init__(self, key: Key) -> None:
        super().__init__(str(key))
        self.key = key


class _Asked(FeatureStore):
    """A store that notes every key it is asked for, and ends the run at the first one that is not sealed.

    Every stage asks whether its artifact is sealed before it computes, so nothing is computed.
    """

    def __init__(self, store: FeatureStore) -> None:
        super().__init__(store.files, store.upstream)
        self.keys: set[Key] = set()

    def is_sealed(self, key: Key) -> bool:
        if not super().is_sealed(key):
            raise _LackingError(key)
        self.keys.add(key)
        return True

    def get(self, key: Key) -> Artifact:
        self.is_sealed(key)
        return super().get(key)


@dataclass(frozen=True)
class _Repetition(Session):
    """A session in which everything stands in one read-only store."""

    asked: _Asked = field(kw_only=True)

    def store(self, *, write: bool = False) -> FeatureStore:  # noqa: ARG002 (there is nothing to write)
        return self.asked


@dataclass(frozen=True)
class _Named:
    """What a recipe asks for: keys, and the first one that is missing, if it is not finished."""

    file: Path
    keys: frozenset[Key]
    lacks: Key | None
    datasets: frozenset[str]


def collect(session: Session, folder: Path, *, delete: bool = False) -> Result:
    """List what no recipe in `folder` names in the store itself, never in one behind it; with `delete`, remove it.

    Named is all that `cgd run` would take from the store, students of any seed included; what named students embedded;
    descriptors, indexes and scores of what is named; and all these were made from. Canaries are kept, and so is
    everything of the data sets of a recipe that is not finished, since what it will ask for is not known yet.
    What is not sealed is never removed. Raises `CgdError`, before anything is removed, where that cannot be told.
    """
    store = session.store()
    entries = list(FeatureStore(store.files).entries())  # before the recipes: what is made meanwhile is not listed
    named = [_named(session, store, file) for file in _recipes(folder)]
    kept = _kept(store, entries, named)
    sealed = [entry for entry in entries if entry.sealed]
    garbage = [entry.key for entry in sealed if entry.key not in kept]
    listed = [_listed(store, key) for key in garbage]
    if delete and garbage:
        known = {entry.key for entry in entries}
        begun = [entry for entry in FeatureStore(store.files).entries() if entry.key not in known]  # while recipes ran
        needed = {Key.parse(text) for entry in begun for text in entry.attributes.get("inputs", ())}
        listed = [each for each in listed if Key.parse(each["key"]) not in needed]
        _remove(session, store, [Key.parse(each["key"]) for each in listed])
    return {
        "store": store.files.url,
        "recipes": [{"file": str(each.file), "lacks": each.lacks and str(each.lacks)} for each in named],
        "kept": len(sealed) - len(listed),
        "unfinished": [{"key": str(e.key), "shards": e.shards_done} for e in entries if not e.sealed],
        "garbage": listed,
        "bytes": sum(each["bytes"] for each in listed),
        "deleted": delete,
    }


def _recipes(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml"))
    if not files:
        raise InputError(
            f"{folder} holds no recipe (*.yaml), so everything would be garbage; name the folder of your recipes."
        )
    return files


# What a recipe names


def _named(session: Session, store: FeatureStore, file: Path) -> _Named:
    """Repeat a recipe up to the first artifact that is missing; one that is finished also with other seeds."""
    recipe = read_recipe(file)
    asked = _Asked(store)
    lacks = None
    with _explained(file), tempfile.TemporaryDirectory(prefix="cgd-gc-") as out:
        repetition = _Repetition(
            session.store_url,
            session.upstream,
            weights=session.weights,
            device="cpu",
            workspace=session.workspace,
            asked=asked,
        )
        try:
            runner.run(repetition, recipe, out=Path(out))
        except _LackingError as lacking:
            lacks = lacking.key
        else:
            _repeat_with_other_seeds(repetition, recipe, Path(out))
    return _Named(file, frozenset(asked.keys), lacks, frozenset(_datasets(recipe)))


def _repeat_with_other_seeds(session: _Repetition, recipe: Recipe, out: Path) -> None:
    """Ask for the students of each row by every seed there is; a row that was not run with one ends there."""
    students = change(recipe, "data", benchmarks=())
    settings = [entry.settings for entry in session.asked.entries("students") if entry.sealed]
    for seed in sorted({s["seed"] for s in settings if "seed" in s} - {recipe.distill.seed}):
        for name in recipe.rows or [runner.STUDENT]:
            with suppress(_LackingError):
                runner.run(session, students, seeds=(seed,), only=(name,), out=out)


def _datasets(recipe: Recipe) -> Iterator[str]:
    """The names of all data sets in a recipe and its rows."""
    for each in [recipe, *(row(recipe, name) for name in recipe.rows)]:
        distractors = [text for text in each.evaluate.distractors if not text.startswith("random:")]
        for text in (each.data.train, *each.data.benchmarks, *distractors):
            if text == "1m":
                yield default_name("revisitop1m:.")
            else:
                yield default_name(text) if ":" in text else text.partition("@")[0]


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Say of which recipe an error is; and say nothing of the stages that a repetition goes through."""
    logger = logging.getLogger("cgd")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (InputError, MissingError, WeightsError) as error:
        raise InputError(f"nothing is listed, for what {file} names cannot be told: {error}") from error
    finally:
        logger.setLevel(level)


# What is kept


def _kept(store: FeatureStore, entries: Sequence[Entry], named: Sequence[_Named]) -> set[Key]:
    """Everything in the store that is no garbage."""
    from cgd.store.copying import with_inputs

    sealed = {entry.key: entry for entry in entries if entry.sealed}
    kept = {key for each in named for key in each.keys}
    kept |= {key for key in sealed if key.kind == "canaries"}
    for entry in entries:  # what is being made will be of use
        kept |= set() if entry.sealed else {Key.parse(text) for text in entry.attributes.get("inputs", ())}
    waiting = {name for each in named if each.lacks for name in each.datasets}
    if waiting:
        kept |= {key for key in sealed if _is_of(store, key, waiting)}
    kept |= _embeddings_of_students(store, sealed, kept)
    kept = set(with_inputs(store, kept))
    for kind in MADE_OF_VECTORS:
        for key, entry in sealed.items():
            inputs = [Key.parse(text) for text in entry.attributes.get("inputs", ())]
            if key.kind == kind and all(each in kept or not store.is_sealed(each) for each in inputs):
                kept.add(key)
    lists = {store.get(key).settings.get("ids") for key in kept}
    return kept | {key for key, entry in sealed.items() if key.kind == "images" and entry.settings["ids"] in lists}


def _is_of(store: FeatureStore, key: Key, datasets: Collection[str]) -> bool:
    """Whether an artifact, or what it was made from, is of one of these data sets; True where that cannot be known."""
    from cgd.store.copying import with_inputs

    line = [store.get(each) for each in with_inputs(store, [key])]
    here = {artifact.key for artifact in line}
    whole = all(each in here for artifact in line for each in artifact.inputs)
    return not whole or any(artifact.settings.get("dataset") in datasets for artifact in line)


def _embeddings_of_students(store: FeatureStore, sealed: Mapping[Key, Entry], kept: Collection[Key]) -> set[Key]:
    """Embeddings by a student that is kept, and by one that is kept as it began, whatever its seed was."""
    from cgd.store.seals import read_seal

    weights = {read_seal(store.get(key).files, key).files[WEIGHTS] for key in kept if key.kind == "students"}
    known = [store.get(key).settings["encoder"] for key in kept if key.kind == "embeddings" and store.is_sealed(key)]
    starts = [_without_seed(encoder) for encoder in known if "seed" in encoder]
    encoders = {key: entry.settings["encoder"] for key, entry in sealed.items() if key.kind == "embeddings"}
    return {
        key
        for key, encoder in encoders.items()
        if encoder.get("weights") in weights or ("seed" in encoder and _without_seed(encoder) in starts)
    }


def _without_seed(encoder: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in encoder.items() if name != "seed"}


# What is not


def _listed(store: FeatureStore, key: Key) -> Result:
    """Its size, and when somebody last worked on it."""
    moments = [record.get("finished") or record.get("started") for record in store.provenance(key)]
    return {"key": str(key), "bytes": store.get(key).size, "last": max(filter(None, moments), default=None)}


def _remove(session: Session, store: FeatureStore, garbage: Sequence[Key]) -> None:
    """Remove artifacts, what was made of others first, and publish the catalog where there is one."""
    from cgd.store import catalog
    from cgd.store.copying import with_inputs
    from cgd.store.repair import remove_artifact

    order = [key for key in reversed(with_inputs(store, garbage)) if key in set(garbage)]
    files = FeatureStore.open(session.store_url, write=True).files
    for key in order:
        remove_artifact(files, key)
    if files.exists(catalog.PATH):
        catalog.publish(files)


def garbage_text(r: Result) -> str:
    """What is garbage, one artifact a line, the total, and what is kept for want of knowledge."""
    lines = [f"{g['key']}  {size_text(g['bytes'])}  {(g['last'] or 'no date')[:10]}" for g in r["garbage"]]
    lines += [f"{u['key']}: not sealed, {u['shards']} shards done, left alone" for u in r["unfinished"]]
    lines += [
        f"{each['file']} is not finished, {each['lacks']} is missing: everything of its data sets is kept"
        for each in r["recipes"]
        if each["lacks"]
    ]
    count = f"{len(r['garbage'])} artifacts ({size_text(r['bytes'])})"
    told = f"{count} removed" if r["deleted"] else f"{count} are named by no recipe"
    more = "; --delete removes them" if r["garbage"] and not r["deleted"] else ""
    return "\n".join([*lines, f"{told}, {r['kept']} are kept{more}"])
