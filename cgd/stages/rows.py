"""Artifacts that are made row by row from stored ones: shard by shard, by whatever engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgd.engines import Engine, Work, Worker
from cgd.progress import progress
from cgd.stages.sight import Sight, sight
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity
from cgd.store.writer import Writer
from cgd.types import Key


@dataclass(frozen=True)
class Rows:
    """How an artifact's rows are made: its arrays' `shapes`, and `blocks`, which gives every array of some rows."""

    shapes: Mapping[str, tuple[int, ...]]
    blocks: Callable[[range], Mapping[str, np.ndarray]]
    attributes: Mapping[str, Any] | None = None
    shard_rows: int | None = None


def make_rows(
    store: FeatureStore, engine: Engine, identity: Identity, rows_of: Callable[[FeatureStore], Rows], what: str
) -> Key:
    """Make and seal the artifact `identity` unless it is; `rows_of`, which may travel, opens what they come from."""
    if store.is_sealed(identity.key):
        return identity.key
    with sight(store, engine) as seen, engine.start(_Making(seen, identity, rows_of)) as pool:
        shards = pool.ask(_Maker.missing, None)
        with progress(sum(len(rows) for _, rows in shards), what, "rows") as bar:
            for _ in pool.run(_Maker.make, (shard for shard, _ in shards), bar):
                pass
        pool.ask(_Maker.seal, None)
    return identity.key


@dataclass(frozen=True)
class _Making(Work["_Maker"]):
    sight: Sight
    identity: Identity
    rows_of: Callable[[FeatureStore], Rows]

    def check(self) -> None:
        self.sight.check()

    def open(self, worker: Worker) -> _Maker:
        store = self.sight.open(write=True)
        made = self.rows_of(store)
        writer = store.writer(self.identity, made.shapes, attributes=made.attributes, shard_rows=made.shard_rows)
        return _Maker(writer, made, worker)


@dataclass(frozen=True)
class _Maker:
    writer: Writer
    made: Rows
    worker: Worker

    def missing(self, _: None) -> list[tuple[int, range]]:
        return [(shard, self.writer.shard_range(shard)) for shard in self.writer.missing()]

    def make(self, shard: int) -> None:
        rows = self.writer.shard_range(shard)
        self.writer.write(shard, self.made.blocks(rows))
        self.worker.bar.update(len(rows))

    def seal(self, _: None) -> None:
        self.writer.seal()


def runs(count: int, most: int) -> Iterable[range]:
    """`count` things in at most `most` runs of almost equal length."""
    length = -(-count // most) if count else 1
    return [range(start, min(start + length, count)) for start in range(0, count, length)]
