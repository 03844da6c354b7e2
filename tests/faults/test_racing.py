"""Eight processes at once, on the same part or on a part each: they leave what a single one leaves."""

from __future__ import annotations

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from commands import TEACHER, photos

from cgd.config import ExtractConfig
from cgd.models.devices import Compute
from cgd.pipeline import steps
from cgd.stages import extract as stage
from cgd.store.feature_store import FeatureStore
from cgd.store.writer import Writer
from cgd.types import ImageList

STORE = "features.zarr"
PROCESSES, VIEWS, IMAGES = 8, 2, 24  # an image is a shard: as many borders as can be
NAMES = tuple(f"{letter}.png" for letter in "abcdef")


@pytest.fixture(scope="module")
def extraction(command):
    """By the first teacher only, a row a shard."""
    teacher = f"--teachers={command.recipe.extract.teachers[0]}"
    changed = {"--teachers": teacher, "--shard-rows": "--shard-rows=1"}
    return [changed.get(a.partition("=")[0], a) for a in command.extract]


@pytest.fixture(scope="module")
def alone(command, extraction, tree, tmp_path_factory):
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    done = command(folder, extraction)
    assert done.code == 0, done.errors
    expected = tree(folder / STORE)
    assert sum("receipts/embeddings" in path for path in expected) == VIEWS * IMAGES
    return expected


def counted(outcomes):
    """Shards written and skipped by each process."""
    assert [o.code for o in outcomes] == [0] * PROCESSES, [o.errors for o in outcomes]
    teachers = [teacher for o in outcomes for teacher in json.loads(o.output)["teachers"].values()]
    return [(t["shards_written"], t["shards_skipped"]) for t in teachers]


def assert_rows_are_the_images(store, manifest):
    """Ids in the manifest's order, each beside the digest of its own file; all of it as its seal says."""
    with manifest.open() as handle:
        files = {line["image_id"]: line["path"] for line in csv.DictReader(handle) if line["split"] == "train"}
    assert not any(found for _, found in store.verify())
    for entry in store.entries("embeddings"):
        artifact = store.get(entry.key)
        assert artifact.read("ids").tolist() == list(files)
        digests = [hashlib.sha256((manifest.parent / path).read_bytes()).digest() for path in files.values()]
        assert [row.tobytes() for row in artifact.read("digests")] == digests


@pytest.mark.parametrize("parts", [1, PROCESSES], ids=["the same part", "a part each"])
def test_eight_processes_at_once_leave_what_one_leaves(command, extraction, alone, tree, drawn, tmp_path, parts):
    each = [[*extraction, f"--part={n % parts + 1}/{parts}"] for n in range(PROCESSES)]
    counts = counted(command.together(tmp_path, each))
    written, shards = [w for w, _ in counts], VIEWS * IMAGES
    found = tree(tmp_path / STORE)
    assert found.keys() == alone.keys()
    assert [path for path in alone if found[path] != alone[path]] == []
    assert_rows_are_the_images(FeatureStore.open(tmp_path / STORE), drawn / "manifest.csv")
    assert [w + s for w, s in counts] == [shards // parts] * PROCESSES
    assert sum(written) >= shards
    assert parts == 1 or written == [shards // parts] * PROCESSES
    told = f"{PROCESSES} processes on {parts} part(s), {shards} shards: {sum(written)} written ({sum(written) - shards}"
    print(f"{told} twice), by process {written}; {len(found)} files alike")


# which shard is next


@pytest.fixture
def extract(session, tmp_path, monkeypatch):
    """Runs an extraction of six shards in this process; returns its report and the shards written meanwhile."""
    photos(tmp_path / "pictures", *NAMES)
    images = ImageList("pictures", None, NAMES, NAMES, tmp_path / "pictures")
    sources, write = steps.teacher_sources(session, [TEACHER]), Writer.write
    wrote = []

    def noted(writer, shard, *arrays):
        if writer.key.kind == "embeddings":
            wrote.append(shard)
        return write(writer, shard, *arrays)

    def run(part=(1, 1)):
        before = len(wrote)
        compute = Compute(torch.device("cpu"), workers=0, shard_rows=1, part=part)
        report = stage.extract(store=session.store(write=True), images=images, sources=sources, views=["fixed"],
                               config=ExtractConfig(), compute=compute)  # fmt: skip
        (encoder,) = report.encoders.values()
        return encoder, wrote[before:]

    monkeypatch.setattr(Writer, "write", noted)
    return run


def test_one_process_works_in_order(extract):
    encoder, order = extract()
    assert order == [0, 1, 2, 3, 4, 5]
    assert (encoder.shards_written, encoder.shards_skipped) == (6, 0)


def test_a_later_process_begins_elsewhere_and_goes_round(extract, monkeypatch):
    assert extract(part=(3, 3))[1] == [2, 5]
    monkeypatch.setattr(stage.secrets, "randbelow", lambda count: count - 2)
    encoder, order = extract()
    assert order == [3, 4, 0, 1]
    assert (encoder.shards_written, encoder.shards_skipped) == (4, 2)


def test_what_another_process_did_meanwhile_is_not_done_again(extract, session, monkeypatch):
    embed, runs = stage.embed_rows, []

    def overtaken(rows, *arguments, **options):
        runs.append(list(rows))
        monkeypatch.setattr(stage, "embed_rows", embed)
        other, order = extract(part=(1, 2))  # while this shard is in hand
        assert (other.shards_written, order) == (3, [0, 2, 4])
        monkeypatch.setattr(stage, "embed_rows", counting)
        return embed(rows, *arguments, **options)

    def counting(rows, *arguments, **options):
        runs.append(list(rows))
        return embed(rows, *arguments, **options)

    monkeypatch.setattr(stage.secrets, "randbelow", lambda _: 0)
    monkeypatch.setattr(stage, "embed_rows", overtaken)
    encoder, order = extract()
    assert runs == [[0], [1], [3], [5]]
    assert order == [0, 2, 4, 1, 3, 5]
    assert (encoder.shards_written, encoder.shards_skipped) == (3, 3)
    (entry,) = session.store().entries("embeddings")
    assert entry.sealed
    assert not np.isnan(session.store().get(entry.key).read("vectors")).any()


def test_meeting_another_process_is_a_reason_to_go_elsewhere(extract, monkeypatch):
    embed, places = stage.embed_rows, []

    def overtaken(rows, *arguments, **options):
        monkeypatch.setattr(stage, "embed_rows", embed)
        extract(part=(1, 6))
        return embed(rows, *arguments, **options)

    monkeypatch.setattr(stage.secrets, "randbelow", lambda count: places.append(count) or min(2, count - 1))
    monkeypatch.setattr(stage, "embed_rows", overtaken)
    assert extract()[1] == [0, 3, 4, 5, 1, 2]
    assert places == [1, 5]
