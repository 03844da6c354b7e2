"""Laws of the store: whatever is written, in whatever order and however often interrupted, reads back equal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.keys import identify

IDENTITY = identify("embeddings", ["any"], 1, {"any": True})
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)  # lone surrogates are no text
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Interrupted(Exception):
    """Stands for a process that ends here."""


@st.composite
def artifacts(draw):
    """The arrays of any `embeddings` artifact."""
    rows, scales, dim = draw(st.integers(1, 30)), draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def numbers(dtype, *shape):
        return draw(hnp.arrays(dtype, shape))

    def texts():
        return np.array(draw(st.lists(TEXT, min_size=rows, max_size=rows)), dtype=object)

    arrays = {
        "ids": texts(),
        "vectors": numbers(np.float32, rows, scales, dim),
        "valid": numbers(np.bool_, rows),
        "digests": numbers(np.uint8, rows, 32),
        "reasons": texts(),
    }
    if draw(st.booleans()):
        arrays["views"] = numbers(np.float32, rows, 5)
    return arrays


def part(arrays, rows):
    return {name: a[rows.start : rows.stop] for name, a in arrays.items()}


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    if expected.dtype == object:
        assert found.tolist() == expected.tolist()
    else:  # to the bit: the sign of a zero, the payload of a NaN
        assert (found.shape, found.tobytes()) == (expected.shape, expected.tobytes())


def ends_at(count):
    """Publications of a process that ends right after its `count`-th one."""
    publish, left = LocalFiles.publish, [count]

    def publish_or_end(self, path, data):
        done = publish(self, path, data)
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        return done

    return mock.patch.object(LocalFiles, "publish", publish_or_end)


@FEW
@given(arrays=artifacts(), data=st.data())
def test_any_artifact_reads_back_equal_however_it_was_written(arrays, data):
    rows, shapes = len(arrays["ids"]), {n: a.shape for n, a in arrays.items()}
    sizes = st.none() | st.integers(1, rows + 3)
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        first = FeatureStore.open(folder, write=True).writer(IDENTITY, shapes, shard_rows=data.draw(sizes))
        for shard in data.draw(st.permutations(range(first.shard_count)), "order"):
            fate = data.draw(st.sampled_from(["same writer", "new writer", "interrupted"]), "fate")
            writer = first
            if fate != "same writer":
                # A later command may wish for another cut; the artifact's own holds.
                store = FeatureStore.open(folder, write=True)
                writer = store.writer(IDENTITY, shapes, shard_rows=data.draw(sizes))
            if fate == "interrupted":
                with ends_at(data.draw(st.integers(1, len(arrays) + 1), "after")):
                    try:
                        writer.write(shard, part(arrays, writer.shard_range(shard)))
                    except Interrupted:
                        continue
            writer.write(shard, part(arrays, writer.shard_range(shard)))
        last = FeatureStore.open(folder, write=True).writer(IDENTITY, shapes)
        for shard in last.missing():
            last.write(shard, part(arrays, last.shard_range(shard)))
        last.seal()

        store = FeatureStore.open(folder)
        assert list(store.verify()) == [(IDENTITY.key, [])]
        stored = store.get(IDENTITY.key)
        assert stored.arrays == sorted(arrays)
        for name, expected in arrays.items():
            assert_same(stored.read(name), expected)
            blocks = [block for _, (block,) in stored.blocks(name)]
            assert_same(np.concatenate(blocks), expected)
        assert list((Path(folder) / ".cgd/tmp").iterdir()) == []


@FEW
@given(arrays=artifacts(), data=st.data())
def test_gathering_any_rows_is_indexing(arrays, data):
    count = len(arrays["ids"])
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=40), "rows"), np.int64)
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        store = FeatureStore.open(folder, write=True)
        shapes = {n: a.shape for n, a in arrays.items()}
        writer = store.writer(IDENTITY, shapes, shard_rows=data.draw(st.integers(1, count), "cut"))
        for shard in writer.missing():
            writer.write(shard, part(arrays, writer.shard_range(shard)))
        writer.seal()
        stored = store.get(IDENTITY.key)
        for name, expected in arrays.items():
            assert_same(stored.gather(name, rows), expected[rows])
            assert_same(stored.gather(name, rows), expected[rows])  # a second time, when digests are checked already


@settings(max_examples=6, deadline=None)
@given(
    rows=st.sampled_from([1, 511, 512, 513, 1024, 1500]),
    wanted=st.sampled_from([None, 1, 511, 512, 700, 1024]),
    seed=st.integers(0, 2**32 - 1),
)
def test_many_rows_read_back_equal_across_chunks_and_shards(rows, wanted, seed):
    draw = np.random.default_rng(seed)
    wanted = wanted if wanted != 1 else rows // 3 + 1
    arrays = {
        "ids": np.array([f"é{n}" for n in range(rows)], dtype=object),
        "vectors": draw.standard_normal((rows, 2)).astype(np.float16),
        "valid": draw.random(rows) < 0.5,
        "digests": draw.integers(0, 256, (rows, 32)).astype(np.uint8),
    }
    identity = identify("whitened", ["many"], 1, {})
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        store = FeatureStore.open(folder, write=True)
        writer = store.writer(identity, {n: a.shape for n, a in arrays.items()}, shard_rows=wanted)
        for shard in reversed(writer.missing()):
            writer.write(shard, part(arrays, writer.shard_range(shard)))
        writer.seal()
        stored = store.get(identity.key)
        chosen = draw.integers(0, rows, 300)
        for name, expected in arrays.items():
            assert_same(stored.read(name), expected)
            assert_same(stored.gather(name, chosen), expected[chosen])
