"""The format's document is enough: a reader written from it alone reads what the package wrote."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest

from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from tests.unit.store.second_reader import Artifact

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_store_v1.py"))
SOURCE = Path(__file__).with_name("second_reader.py").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("second") / "s.zarr"
    GOLDEN["make"](root)
    return root


def test_it_is_short_and_imports_nothing_but_json_hashes_and_numpy():
    used = {n.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import) for n in node.names}
    assert used == {"hashlib", "json", "numpy"}
    lines = [line for line in SOURCE.split('"""', 2)[2].splitlines() if line.strip()]
    assert len(lines) <= 60


@pytest.mark.parametrize("kind", GOLDEN["contents"]())
def test_it_reads_every_kind(written, kind):
    identity, arrays, attributes, files = GOLDEN["contents"]()[kind]
    found = Artifact(written, str(identity.key))
    assert found.attributes.items() >= {**attributes, "settings": identity.settings}.items()
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found.read(name), expected)
    for name, data in files.items():
        assert found.file(name) == data


def test_it_reads_shards_of_several_chunks_with_a_ragged_end(tmp_path):
    rows = 3 * 512 + 7
    identity = identify("descriptors", ["long"], 1, {})
    arrays = {
        "ids": np.array([f"é{i}" * (i % 3) for i in range(rows)], object),
        "vectors": np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float16),
        "valid": np.arange(rows) % 2 == 0,
    }
    store = FeatureStore.open(tmp_path, write=True)
    writer = store.writer(identity, {n: a.shape for n, a in arrays.items()}, shard_rows=1024)
    assert writer.shard_count == 2
    for shard in writer.missing():
        part = writer.shard_range(shard)
        writer.write(shard, {n: a[part.start : part.stop] for n, a in arrays.items()})
    writer.seal()
    found = Artifact(tmp_path, str(identity.key))
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found.read(name), expected)


def test_it_refuses_damage(written):
    identity = GOLDEN["contents"]()["whitened"][0]
    shard = next((written / str(identity.key) / "vectors/c/0").iterdir())
    good = shard.read_bytes()
    shard.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(ValueError, match="vectors/c/0/0 is damaged"):
        Artifact(written, str(identity.key)).read("vectors")
    shard.write_bytes(good)
