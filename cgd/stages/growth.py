"""Growth: rows that sealed embeddings hold already are copied, so that only new images go through a network."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgd.data.views import CROP, CROPPED, view_kind
from cgd.errors import DamageError
from cgd.store.artifact import Artifact
from cgd.store.feature_store import Entry, FeatureStore
from cgd.store.files import fetch_all
from cgd.store.keys import Identity
from cgd.types import Key

_OF_THE_LIST = ("dataset", "split", "ids", "asked")  # settings in which the source of a row may differ from its copy
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """A row that may be copied: which of a stock's sources holds it, and where."""

    source: int
    row: int


@dataclass(frozen=True)
class _Index:
    """Where the images of one list stand: `marks` (N,) uint64, ascending, and `rows` (N,) int64, the row of each."""

    marks: np.ndarray
    rows: np.ndarray

    def find(self, mark: np.ndarray) -> int | None:
        """The first row with the `mark` (1,) uint64."""
        at = int(np.searchsorted(self.marks, mark)[0])
        return int(self.rows[at]) if at < len(self.marks) and self.marks[at] == mark[0] else None


@dataclass(frozen=True)
class _Source:
    artifact: Artifact
    index: _Index


class Stock:
    """Rows of sealed embeddings that an artifact to be made may copy; `copied` counts them by where they came from.

    An image is known by the SHA-256 of its file, in a stock of crops also by its id: the same bytes have the same
    size, and size, id and policy are all that a crop is drawn by.
    """

    def __init__(self, sources: Sequence[_Source] = (), *, by_id: bool = False) -> None:
        self.copied: Counter[Key] = Counter()
        self._sources = tuple(sources)
        self._by_id = by_id

    def __bool__(self) -> bool:
        return bool(self._sources)

    def find(self, digest: np.ndarray, image_id: str) -> Known | None:
        """Where the image with this `digest` (32,) uint8 most likely stands; `copy` makes sure."""
        if not self._sources:
            return None
        mark = _marks(digest[None], [image_id] if self._by_id else None)
        rows = ((number, source.index.find(mark)) for number, source in enumerate(self._sources))
        return next((Known(number, row) for number, row in rows if row is not None), None)

    def copy(self, block: Mapping[str, np.ndarray], known: Mapping[int, Known]) -> list[int]:
        """Fill the `known` places of a shard's `block`, whose ids and digests are there already.

        Returns the places that were not filled: the stored shard is damaged, or holds another image after all.
        """
        left: list[int] = []
        for number in sorted({k.source for k in known.values()}):
            here = [place for place, k in known.items() if k.source == number]
            artifact, rows = self._sources[number].artifact, np.array([known[place].row for place in here])
            try:
                stored = {name: artifact.gather(name, rows) for name in block}
            except DamageError as error:
                log.warning("%s Its images are embedded again instead of copied.", error)
                left += here
                continue
            same = (stored["digests"] == block["digests"][here]).all(axis=1)
            if self._by_id:
                same &= (stored["ids"] == block["ids"][here]).astype(bool)
            places = np.array(here)[same]
            for name in set(block) - {"ids", "digests"}:
                block[name][places] = stored[name][same]
            self.copied[artifact.key] += len(places)
            left += np.array(here)[~same].tolist()
        return left


def stocks(store: FeatureStore, wanted: Iterable[tuple[Identity, Mapping[str, Any]]]) -> list[Stock]:
    """What each of the embeddings to be made, by identity and attributes, may copy out of the store.

    Sources are sealed embeddings, upstream ones too, by the same version of the stage, encoder, input, view, policy
    and precision, whatever their list of images. Nothing is copied for `cropped` queries: the box that a query
    was cut to does not stand with its row.
    """
    entries = [entry for entry in store.entries("embeddings") if entry.sealed]
    indexes: dict[tuple[str, bool], _Index] = {}  # one for all encoders and views of a list
    return [_stock(store, entries, indexes, identity, about) for identity, about in wanted]


def _stock(
    store: FeatureStore,
    entries: Sequence[Entry],
    indexes: dict[tuple[str, bool], _Index],
    identity: Identity,
    about: Mapping[str, Any],
) -> Stock:
    view, sources = identity.settings["view"], []
    if view == CROPPED:
        return Stock()
    by_id = view_kind(view) == CROP
    fitting = [entry for entry in entries if _is_readable(entry) and _fits(entry, identity, about)]
    # what is near first, and what most likely holds the rows in the same order
    fitting.sort(key=lambda e: (e.files is not store.files, e.settings["dataset"] != identity.settings["dataset"]))
    for entry in fitting:
        of_list = (entry.settings["ids"], by_id)
        try:
            artifact = store.get(entry.key)
            if of_list not in indexes:
                indexes[of_list] = _index(artifact, by_id)
        except DamageError as error:
            log.warning("%s Nothing is copied from it.", error)
            continue
        sources.append(_Source(artifact, indexes[of_list]))
    return Stock(sources, by_id=by_id)


def _is_readable(entry: Entry) -> bool:
    """Whether its settings are whole; one that is damaged does not stop others from being made."""
    try:
        return bool(entry.settings)
    except DamageError as error:
        log.warning("%s Nothing is copied from it.", error)
        return False


def _fits(entry: Entry, identity: Identity, about: Mapping[str, Any]) -> bool:
    """Whether the vectors of equal images in an artifact are those that `identity` and `about` stand for."""
    theirs = entry.attributes
    return (
        theirs.get("version") == identity.version
        and _without_list(entry.settings) == _without_list(identity.settings)
        and all(theirs.get(name) == about[name] for name in ("input", "dim"))
    )


def _without_list(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OF_THE_LIST}


def _index(artifact: Artifact, by_id: bool) -> _Index:
    """16 bytes an image stay in memory."""
    arrays = ("digests", "ids") if by_id else ("digests",)

    def read(shard: int) -> np.ndarray:
        return _marks(*(artifact.read_shard(name, shard) for name in arrays))

    shards = range(artifact.shard_count)
    found = map(read, shards) if artifact.files.is_local else fetch_all(read, shards)
    marks = np.concatenate([np.zeros(0, np.uint64), *found])  # a list may be empty
    order = np.argsort(marks, kind="stable")
    return _Index(marks[order], order)


def _marks(digests: np.ndarray, ids: Sequence[str] | np.ndarray | None = None) -> np.ndarray:
    """(N,) uint64 out of `digests` (N, 32) and perhaps ids (N): equal where those are, and hardly ever else."""
    marks = np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]
    if ids is None:
        return marks
    return marks ^ np.fromiter((int.from_bytes(hashlib.sha256(i.encode()).digest()[:8]) for i in ids), np.uint64)
