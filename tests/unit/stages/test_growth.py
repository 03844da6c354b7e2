"""A data set that gains, loses, reorders or renames images: what is known is copied bit by bit, the rest embedded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cgd.config import ExtractConfig
from cgd.data import images as decoding
from cgd.models.devices import Compute
from cgd.pipeline import scoring, steps
from cgd.pipeline.steps import Session
from cgd.stages import growth
from cgd.stages.extract import ExtractReport, embeddings_identity, estimate, extract
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList

TEACHER = "mobilenet-v1?width=0.25&size=64&weights=random"
VIEWS = ("fixed", "crop-1")
CONFIG = ExtractConfig(crop_size=64)
COMPUTE = Compute(torch.device("cpu"), workers=0, shard_rows=3)
OLD = ("a", "b", "broken", "c", "d", "e", "f")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of several sizes and a file that is none."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number, name in enumerate("abcdefghij"):
        draw(root / name, number)
    (root / "broken").write_bytes(b"no picture")
    return root


def draw(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (24 + seed, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "png")


def listed(folder: Path, ids: Sequence[str], files: Sequence[str] | None = None, **more: Any) -> ImageList:
    return ImageList(**{"name": "pictures", "split": None, "ids": tuple(ids), "paths": tuple(files or ids),
                        "root": folder, **more})  # fmt: skip


@pytest.fixture
def run(session: Session) -> Callable[..., Run]:
    def run(images: ImageList, store: str = "", upstream: Sequence[str] = (), **changed: Any) -> Run:
        settings = {"views": VIEWS, "config": CONFIG, "teacher": TEACHER, **changed}
        opened = FeatureStore.open(store or session.store_url, write=True, upstream=upstream)
        sources = steps.teacher_sources(session, [settings["teacher"]])
        report = extract(store=opened, images=images, sources=sources, views=settings["views"],
                         config=settings["config"], compute=COMPUTE)  # fmt: skip
        return Run(opened, report)

    return run


@dataclasses.dataclass(frozen=True)
class Run:
    """An extraction by one encoder."""

    store: FeatureStore
    report: ExtractReport

    @property
    def counts(self) -> tuple[int, int]:
        """Rows copied, rows embedded."""
        (encoder,) = self.report.encoders.values()
        return encoder.copied, encoder.tally.embedded

    def artifact(self, view: str) -> Artifact:
        (encoder,) = self.report.encoders.values()
        return self.store.get(encoder.keys[view])

    def rows(self, view: str) -> dict[str, dict[str, bytes]]:
        """The bytes of every array by the image's id."""
        artifact = self.artifact(view)
        arrays = {name: artifact.read(name) for name in artifact.arrays if name != "ids"}
        return {
            image: {name: str(a[n]).encode() if a.dtype == object else a[n].tobytes() for name, a in arrays.items()}
            for n, image in enumerate(artifact.read("ids"))
        }


def assert_like_fresh(run: Callable[..., Run], found: Run, images: ImageList, tmp_path: Path) -> None:
    """Every row is what an empty store would hold; vectors up to the order in which a batch is added up."""
    fresh = run(images, store=str(tmp_path / "fresh.zarr"))
    assert not any(problems for _, problems in found.store.verify())
    for view in VIEWS:
        one, other = found.artifact(view), fresh.artifact(view)
        assert one.key == other.key
        for name in other.arrays:
            if name == "vectors":
                np.testing.assert_allclose(one.read(name), other.read(name), atol=1e-5)
            else:
                np.testing.assert_array_equal(one.read(name), other.read(name))


def test_only_new_images_are_embedded(run: Any, folder: Path, tmp_path: Path) -> None:
    before = run(listed(folder, OLD))
    assert before.counts == (0, 12)
    images = listed(folder, [*OLD[:2], "g", *OLD[2:], "h", "i"])
    after = run(images)
    assert after.counts == (2 * len(OLD), 2 * 3)
    for view in VIEWS:
        old, new = before.rows(view), after.rows(view)
        assert list(new) == list(images.ids)
        assert {name: new[name] for name in OLD} == old
    assert_like_fresh(run, after, images, tmp_path)


def test_what_is_known_is_neither_decoded_nor_embedded(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(listed(folder, OLD))
    monkeypatch.setattr(decoding, "_decode", lambda _: pytest.fail("an image was decoded"))
    images = listed(folder, ["f", "broken", "a", "d", "c"])  # two fewer, in another order
    after = run(images)
    assert after.counts == (2 * 5, 0)
    assert after.report.failed == before.report.failed != {}
    monkeypatch.undo()
    for view in VIEWS:
        assert after.rows(view) == {name: before.rows(view)[name] for name in images.ids}
    assert_like_fresh(run, after, images, tmp_path)


def test_a_picture_that_changed_is_embedded_anew(run: Any, folder: Path, tmp_path: Path) -> None:
    run(listed(folder, OLD))
    draw(folder / "b", 99)
    images = listed(folder, [*OLD, "g"])
    after = run(images)
    assert after.counts == (2 * (len(OLD) - 1), 2 * 2)
    assert_like_fresh(run, after, images, tmp_path)


def test_a_picture_with_a_new_id_keeps_its_vector_and_gets_new_crops(run: Any, folder: Path, tmp_path: Path) -> None:
    before = run(listed(folder, OLD))
    images = listed(folder, ["a", "renamed", "c"], ["a", "b", "c"])
    after = run(images)
    assert after.counts == (3 + 2, 1)
    assert after.rows("fixed")["renamed"] == before.rows("fixed")["b"]
    assert after.rows("crop-1")["renamed"]["views"] != before.rows("crop-1")["b"]["views"]
    assert_like_fresh(run, after, images, tmp_path)


def test_equal_files_are_told_apart_by_their_ids_where_crops_are_drawn(run: Any, folder: Path, tmp_path: Path) -> None:
    run(listed(folder, ["a", "twin", "b"], ["a", "a", "b"]))
    images = listed(folder, ["twin", "b", "a", "c"], ["a", "b", "a", "c"])
    after = run(images)
    assert after.counts == (2 * 3, 2)
    assert_like_fresh(run, after, images, tmp_path)


def test_rows_come_from_several_artifacts_of_any_name(run: Any, folder: Path, tmp_path: Path) -> None:
    run(listed(folder, ["a", "b", "broken"], name="one", split="train"))
    run(listed(folder, ["c", "d"], name="two"))
    images = listed(folder, OLD)
    after = run(images)
    assert after.counts == (2 * 5, 2 * 2)
    assert_like_fresh(run, after, images, tmp_path)
    (record,) = after.store.provenance(after.artifact("fixed").key)
    assert sorted((key.split(".")[0], rows) for key, rows in record["rows_copied"].items()) == [
        ("embeddings/one-train", 3),
        ("embeddings/two", 2),
    ]


def test_rows_come_from_upstream(run: Any, folder: Path, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared.zarr")
    before = run(listed(folder, OLD), store=shared)
    after = run(listed(folder, [*OLD, "g"]), upstream=[shared])
    assert after.counts == (2 * len(OLD), 2)
    assert {e.key for e in FeatureStore.open(after.store.files.url).entries("embeddings")} == {
        after.artifact(view).key for view in VIEWS
    }
    assert {name: after.rows("fixed")[name] for name in OLD} == before.rows("fixed")


@pytest.mark.parametrize(
    ("changed", "copied"),
    [
        ({"config": dataclasses.replace(CONFIG, precision="bf16")}, 0),
        ({"config": dataclasses.replace(CONFIG, crop_size=48)}, 4),  # of the full images
        ({"config": dataclasses.replace(CONFIG, flip=0.25)}, 4),
        ({"teacher": f"{TEACHER}&scales=1,0.5"}, 0),
        ({"views": ("crop-2",)}, 0),
        ({"views": ("crop-1",)}, 4),
    ],
)
def test_nothing_is_copied_from_other_settings(run: Any, folder: Path, changed: dict[str, Any], copied: int) -> None:
    run(listed(folder, "abcd"))
    assert run(listed(folder, "abcde"), **changed).counts[0] == copied


def test_other_versions_and_inputs_are_not_copied(run: Any, folder: Path, session: Session) -> None:
    done = run(listed(folder, "abcd"))
    (source,) = steps.teacher_sources(session, [TEACHER])
    identity = embeddings_identity(listed(folder, "abcde"), source, "fixed", CONFIG)
    about = done.artifact("fixed").attributes
    for other, told, stocked in (
        (identity, about, True),
        (dataclasses.replace(identity, version=identity.version + 1), about, False),
        (identity, {**about, "dim": 3}, False),
        (identity, {**about, "input": {**about["input"], "size": 65}}, False),
    ):
        (stock,) = growth.stocks(done.store, [(other, told)])
        assert bool(stock) == stocked


def test_queries_cut_to_boxes_are_not_copied(run: Any, folder: Path) -> None:
    boxes = tuple((0.0, 0.0, 20.0, 20.0 - n) for n in range(4))
    run(listed(folder, "abcd", boxes=boxes), views=["cropped"])
    assert run(listed(folder, "bacd", boxes=boxes), views=["cropped"]).counts == (0, 4)  # other boxes of the first two


def test_a_damaged_shard_is_not_copied(run: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = run(listed(folder, OLD))
    vectors = before.artifact("fixed").read("vectors")
    shard = Path(before.store.files.url) / str(before.artifact("fixed").key) / "vectors/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    after = run(listed(folder, ["g", *OLD]))
    assert "differs from its seal" in caplog.text
    assert "embedded again instead of copied" in caplog.text
    assert after.counts == (2 + len(OLD), 2 + 4)  # two new shards reach into the damaged one
    np.testing.assert_allclose(after.artifact("fixed").read("vectors")[1:], vectors, atol=1e-5)


def test_an_artifact_with_damaged_digests_is_left_alone(
    run: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = run(listed(folder, OLD), views=["fixed"])
    (Path(before.store.files.url) / str(before.artifact("fixed").key) / "digests/c/1/0").unlink()
    after = run(listed(folder, [*OLD, "g"]), views=["fixed"])
    assert "Nothing is copied from it." in caplog.text
    assert after.counts == (0, len(OLD))


@pytest.mark.parametrize("seen", [0, 8], ids=["nothing", "digests"])
def test_images_are_compared_by_the_whole_digest_and_id(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    run(listed(folder, ["a", "twin", "b"], ["a", "a", "b"]))
    marks = growth._marks
    monkeypatch.setattr(growth, "_marks", lambda digests, *_: marks(np.pad(digests[:, :seen], ((0, 0), (0, 8)))))
    images = listed(folder, ["twin", "a", "c", "b"], ["a", "a", "c", "b"])
    after = run(images)
    assert after.counts == ((3, 5) if seen == 0 else (5, 3))  # every image was taken for the first like it
    monkeypatch.undo()
    assert_like_fresh(run, after, images, tmp_path)


def test_a_gallery_grows_too(session: Session, folder: Path) -> None:
    sources = steps.teacher_sources(session, [TEACHER])
    grown = [listed(folder, ids, name="lm", split="gallery") for ids in ("abc", "abcd")]
    one, two = (scoring.embed(session, images, sources, "fixed", CONFIG) for images in grown)
    store = session.store()
    ((first, second),) = zip(one.values(), two.values(), strict=True)
    (record,) = store.provenance(second)
    assert record["rows_copied"] == {str(first): 3}
    np.testing.assert_array_equal(store.get(second).read("vectors")[:3], store.get(first).read("vectors"))


def test_an_estimate_counts_only_what_is_new(run: Any, folder: Path, session: Session) -> None:
    run(listed(folder, "abc"))
    sources = steps.teacher_sources(session, [TEACHER])
    found = [
        estimate(store=session.store(write=True), images=listed(folder, ids), sources=sources, views=VIEWS,
                 config=CONFIG, compute=COMPUTE)
        for ids in ("abcd", "ef")
    ]  # fmt: skip
    assert [f["share_copied"] for f in found] == [0.75, 0.0]
    assert [f["seconds"] * f["images_per_second"] for f in found] == pytest.approx([1.0, 2.0])


def test_the_report_counts_copied_rows(run: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(listed(folder, "abc"))
    caplog.clear()
    (teacher,) = run(listed(folder, "abcd")).report.as_json()["teachers"].values()
    assert teacher["images_copied"] == 6
    assert "4 images for 2 artifacts" in caplog.text
    assert ", 6 rows copied, " in caplog.text
