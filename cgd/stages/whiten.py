"""Fit one whitening per teacher and kind of view, and apply it: streaming, without torch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cgd.config import WhitenConfig
from cgd.data.sampling import some_of_each
from cgd.data.views import CROP, FIXED, view_kind
from cgd.engines import Engine, Work, Worker
from cgd.engines.local import LOCAL
from cgd.errors import InputError
from cgd.progress import progress
from cgd.retrieval.vectors import l2
from cgd.retrieval.whitening import Moments, energy_kept, whiten, whitening_from
from cgd.stages.rows import Rows, make_rows, runs
from cgd.stages.sight import Sight, sight
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify, settings_of
from cgd.types import Key, Whitening, title_of

VERSION = 1
MOST_PARTS = 64  # of a fit: so many sums of D x D are added
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WhiteningReport:
    """What one fit used and kept."""

    key: Key
    rows: int
    dim_in: int
    dim_out: int
    energy_kept: float
    clamped: int

    def as_json(self) -> dict[str, Any]:
        """One entry of `cgd fit-whitening --json`."""
        return {**dataclasses.asdict(self), "key": str(self.key)}


def fit_whitening(
    *, store: FeatureStore, embeddings: Sequence[Key], config: WhitenConfig, engine: Engine = LOCAL
) -> WhiteningReport:
    """Fit on `embeddings`: one teacher's views of one kind. One pass; memory is D x D and a shard.

    Counts, sums and second moments of at most 64 parts are added in their order, whoever has made them. With other
    threads or processors the sums differ in rounding, by about 1e-15 of the largest.
    """
    artifacts = [store.get(key) for key in embeddings]
    kinds = {view_kind(a.settings["view"]) for a in artifacts}
    encoders = {a.attributes["label"] for a in artifacts}
    if len(kinds) != 1 or len(encoders) != 1:
        raise InputError(
            f"one whitening is for one teacher and one kind of view, not {sorted(encoders)} and {sorted(kinds)}."
        )
    kind, label = kinds.pop(), encoders.pop()
    first = artifacts[0].settings
    title = title_of(first["dataset"], first["split"])
    settings = {
        **settings_of(config),
        "dataset": first["dataset"],
        "split": first["split"],
        "view_kind": kind,
        "encoder": first["encoder"],
    }
    identity = identify("whitening", [title, label, kind], VERSION, settings, embeddings)
    if not store.is_sealed(identity.key):
        moments = _moments(store, artifacts, config, engine, f"{title}: whitening {label} ({kind})")
        fitted = whitening_from(moments, config.kind, config.dim, config.floor, kind, config.seed)
        arrays = {"mean": fitted.mean, "projection": fitted.projection, "eigenvalues": fitted.eigenvalues}
        about = {"label": label, "n_fit": fitted.n_fit, "n_clamped": fitted.n_clamped, "view_kind": kind}
        store.write_whole(identity, arrays, attributes=about)
        log.info(
            "%s: whitened on %d rows, %.1f %% of the variance kept",
            identity.key,
            fitted.n_fit,
            100 * energy_kept(fitted),
        )
    known = read_whitening(store, identity.key)
    return WhiteningReport(
        identity.key, known.n_fit, len(known.mean), len(known.projection), energy_kept(known), known.n_clamped
    )


def apply_whitening(
    *,
    store: FeatureStore,
    whitening: Key,
    embeddings: Key,
    other_view: bool = False,
    engine: Engine = LOCAL,
) -> Key:
    """Write the whitened vectors of `embeddings`, float16 and not normalised, shard by shard.

    Refuses another teacher than the whitening's, and another kind of view unless `other_view`.
    """
    source = store.get(embeddings)
    known = store.get(whitening)
    view = source.settings["view"]
    if known.settings["encoder"] != source.settings["encoder"]:
        raise InputError(f"{whitening} was fitted on another teacher than that of {embeddings}.")
    if known.settings["view_kind"] != view_kind(view) and not other_view:
        raise InputError(
            f"{whitening} was fitted on {known.settings['view_kind']} views, {embeddings} is {view}: "
            "fit one on that kind of view."
        )
    title = title_of(source.settings["dataset"], source.settings["split"])
    label = source.attributes["label"]
    settings = {
        "dataset": source.settings["dataset"],
        "split": source.settings["split"],
        "view": view,
        "ids": source.settings["ids"],
    }
    identity = identify("whitened", [title, label, view], VERSION, settings, [embeddings, whitening])
    rows_of = partial(_whitened_rows, embeddings=embeddings, whitening=whitening)
    return make_rows(store, engine, identity, rows_of, f"{title}: whitening {label}, {view}")


def _whitened_rows(store: FeatureStore, *, embeddings: Key, whitening: Key) -> Rows:
    source, fitted = store.get(embeddings), read_whitening(store, whitening)
    combine = source.attributes["input"]["combine"]
    shapes = {n: source.shape(n) for n in source.arrays if n not in ("vectors", "reasons")}
    shapes["vectors"] = (source.rows, len(fitted.projection))

    def blocks(rows: range) -> dict[str, np.ndarray]:
        wanted = np.arange(rows.start, rows.stop)
        found = {n: source.gather(n, wanted) for n in shapes if n != "vectors"}
        found["vectors"] = whiten(source.gather("vectors", wanted), fitted, combine).astype(np.float16)
        return found

    return Rows(shapes, blocks, {"label": source.attributes["label"]}, source.shard_rows)


def import_whitening(
    *,
    store: FeatureStore,
    whitening: Whitening,
    label: str,
    encoder: Mapping[str, Any],
    source: Mapping[str, str],
) -> dict[str, Key]:
    """Keep a whitening that was fitted elsewhere, for each kind of view, by kind; `source` has its file and SHA-256.

    Its authors applied the one that they fitted on crops to full images too, so it is kept under both kinds.
    """
    arrays = {"mean": whitening.mean, "projection": whitening.projection, "eigenvalues": whitening.eigenvalues}
    title = source["file"].rpartition(".")[0][:100]  # cosmetic: equal files under other names have one mark
    keys = {}
    for kind in (FIXED, CROP):
        settings = {
            "imported": source["sha256"],
            "dataset": "imported",
            "split": None,
            "view_kind": kind,
            "encoder": encoder,
        }
        identity = identify("whitening", [title, label, kind], VERSION, settings)
        about = {"label": label, "n_fit": whitening.n_fit, "n_clamped": whitening.n_clamped, "view_kind": kind}
        about |= {"fitted_on": whitening.view_kind, "source": dict(source)}
        keys[kind] = store.write_whole(identity, arrays, attributes=about)
    return keys


def fit_and_apply(
    *, store: FeatureStore, teachers: Mapping[str, Mapping[str, Key]], config: WhitenConfig, engine: Engine = LOCAL
) -> dict[str, tuple[dict[str, WhiteningReport], dict[str, Key]]]:
    """Per teacher: a whitening for each kind of view stored, by kind, and the whitened vectors, by view."""
    done = {}
    for label, views in teachers.items():
        reports: dict[str, WhiteningReport] = {}
        whitened: dict[str, Key] = {}
        for kind in (FIXED, CROP):
            of_kind = {v: k for v, k in sorted(views.items()) if view_kind(v) == kind}
            if not of_kind:
                continue
            fitted = fit_whitening(store=store, embeddings=list(of_kind.values()), config=config, engine=engine)
            reports[kind] = fitted
            for view, key in of_kind.items():
                whitened[view] = apply_whitening(store=store, whitening=fitted.key, embeddings=key, engine=engine)
        done[label] = (reports, whitened)
    return done


def read_whitening(store: FeatureStore, key: Key) -> Whitening:
    """A stored whitening as a value."""
    artifact = store.get(key)
    about = artifact.attributes
    arrays = (artifact.read("mean"), artifact.read("projection"), artifact.read("eigenvalues"))
    return Whitening(*arrays, about["n_fit"], about["n_clamped"], about["view_kind"])


def _groups(store: FeatureStore, embeddings: Artifact, config: WhitenConfig) -> Sequence[str] | None:
    """The video of each row, where the whitening wants a few frames of each."""
    if not config.frames:
        return None
    for entry in store.entries("images"):
        settings = entry.attributes.get("settings", {})
        if entry.sealed and settings.get("ids") == embeddings.settings["ids"] and settings.get("groups"):
            groups: list[str] = store.get(entry.key).read("groups").tolist()
            return groups
    raise InputError(f"{embeddings.key} is of images, and whiten.frames={config.frames} is of videos: leave it out.")


@dataclass(frozen=True)
class _Part:
    """Consecutive shards of one of the artifacts, and which of their rows to fit on (none: all that are valid)."""

    artifact: int
    shards: range
    chosen: np.ndarray | None


def _moments(
    store: FeatureStore, artifacts: Sequence[Artifact], config: WhitenConfig, engine: Engine, what: str
) -> Moments:
    """Moments of all rows to fit on, of parts by whoever is there, added in their order."""
    parts = list(_parts(artifacts, config, _groups(store, artifacts[0], config)))
    keys = tuple(a.key for a in artifacts)
    first = next((rows for part in parts for rows, _ in _fitting_rows(artifacts, part) if len(rows)), None)
    if first is None:
        return Moments()
    shift = first.mean(axis=0, dtype=np.float64)
    total, found = Moments(shift), dict[int, Moments]()
    with sight(store, engine) as seen, engine.start(_Fitting(seen, keys, shift)) as pool:
        following = 0
        with progress(sum(a.rows for a in artifacts), what, "rows") as bar:
            for (number, _), moments in pool.run(_Fitter.moments, enumerate(parts), bar):
                found[number] = moments
                while following in found:
                    total.merge(found.pop(following))
                    following += 1
    return total


@dataclass(frozen=True)
class _Fitting(Work["_Fitter"]):
    sight: Sight
    embeddings: tuple[Key, ...]
    shift: np.ndarray

    def check(self) -> None:
        self.sight.check()

    def open(self, worker: Worker) -> _Fitter:
        store = self.sight.open()
        return _Fitter([store.get(key) for key in self.embeddings], self.shift, worker)


@dataclass(frozen=True)
class _Fitter:
    artifacts: Sequence[Artifact]
    shift: np.ndarray
    worker: Worker

    def moments(self, part: tuple[int, _Part]) -> Moments:
        found = Moments(self.shift)
        for rows, seen in _fitting_rows(self.artifacts, part[1]):
            found.add(rows)
            self.worker.bar.update(seen)
        return found


def _parts(artifacts: Sequence[Artifact], config: WhitenConfig, groups: Sequence[str] | None) -> Iterator[_Part]:
    """At most `MOST_PARTS` runs of shards; their number depends on nothing but the artifacts.

    With `samples` a random choice of all rows that were asked for, the same for every run of one seed.
    Of these at most `frames` of each of `groups`, drawn for every view.
    """
    chosen: np.ndarray | None = None
    if config.samples or groups is not None:
        asked = [a.read("valid") if "asked" in a.settings else np.ones(a.rows, bool) for a in artifacts]
        chosen = np.concatenate(asked)
        if 0 < config.samples < chosen.sum():
            drawn = np.random.default_rng(config.seed).choice(np.flatnonzero(chosen), config.samples, replace=False)
            chosen = np.zeros(len(chosen), bool)
            chosen[drawn] = True
        if groups is not None:
            draw = np.random.default_rng(np.random.SeedSequence([config.seed, 11]))
            of_each = zip(artifacts, np.split(chosen, np.cumsum([a.rows for a in artifacts])[:-1]), strict=True)
            chosen = np.concatenate(
                [some_of_each(groups, a.read("valid") & c, config.frames, draw) for a, c in of_each]
            )
    offset = 0
    for number, artifact in enumerate(artifacts):
        for shards in runs(artifact.shard_count, max(1, MOST_PARTS // len(artifacts))):
            first, last = artifact.shard_range(shards[0]).start, artifact.shard_range(shards[-1]).stop
            yield _Part(number, shards, None if chosen is None else chosen[offset + first : offset + last])
        offset += artifact.rows


def _fitting_rows(artifacts: Sequence[Artifact], part: _Part) -> Iterator[tuple[np.ndarray, int]]:
    """l2-normalised valid rows (M, D) at scale 1 of every shard of a part, and how many rows the shard had."""
    artifact = artifacts[part.artifact]
    scales = artifact.attributes["input"]["scales"]
    scale = scales.index(1.0) if artifact.shape("vectors")[1] > 1 and 1.0 in scales else 0
    first = artifact.shard_range(part.shards[0]).start
    for shard in part.shards:
        rows = artifact.shard_range(shard)
        here = artifact.read_shard("valid", shard)
        if part.chosen is not None:
            here = here & part.chosen[rows.start - first : rows.stop - first]
        yield l2(artifact.read_shard("vectors", shard)[here, scale].astype(np.float64)), len(rows)
