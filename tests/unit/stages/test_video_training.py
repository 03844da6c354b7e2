"""Training on videos: an epoch sees one frame of each, and whitening a few; from a folder of frames to a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import embeddings, image_list

from cgd.config import Recipe, WhitenConfig
from cgd.errors import InputError
from cgd.pipeline import reported, scoring, steps
from cgd.pipeline.recipe import change, override
from cgd.pipeline.report import report
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.stages.distill import training_of
from cgd.stages.fuse import epoch_batches
from cgd.stages.images import store_images
from cgd.stages.whiten import fit_whitening
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList, Key

VIDEOS = {"cats/one": 4, "cats/two": 2, "dogs/one": 3, "dogs/two": 1, "dogs/three": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> dict[str, Any]:
    """Five videos of noise, extracted by a teacher under two crops."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("videos")
    draw = np.random.default_rng(0)
    for video, count in VIDEOS.items():
        (folder / "clips" / video).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "clips" / video / f"{number:04d}.png")
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=Workspace(folder / "roots.yaml"))
    recipe = override(tiny_recipe, ["distill.positives=image", "distill.frames=one-per-video", "whiten.dim=4",
                                    "distill.photometric=video", "distill.batch_pairs=3"])  # fmt: skip
    recipe = change(recipe, "extract", teachers=recipe.extract.teachers[:1])
    images = session.workspace.images(f"videos:{folder / 'clips'}")
    extracted = steps.extract_teachers(session, images, recipe.extract)
    raw = {label: dict(report.keys) for label, report in extracted.encoders.items()}
    whitened = {label: views for label, (_, views) in steps.fit_whitening(session, raw, recipe.whiten).items()}
    return {"session": session, "recipe": recipe, "images": images, "whitened": whitened, "out": folder / "student"}


def batches(place: dict[str, Any], epoch: int, *settings: str) -> list[Any]:
    recipe = override(place["recipe"], settings)
    job = steps._distillation(place["session"], place["images"], place["whitened"], recipe, place["out"])
    return epoch_batches(training_of(job).plan, epoch)


def test_an_epoch_sees_one_frame_of_each_video_and_another_time_others(place: dict[str, Any]) -> None:
    images: ImageList = place["images"]
    assert images.groups is not None
    seen = set()
    for epoch in range(12):
        rows = np.concatenate([batch.rows for batch in batches(place, epoch)])
        assert np.array_equal(rows[:, 0], rows[:, 1])  # two views of one frame
        assert sorted(images.groups[row] for row in rows[:, 0]) == sorted(VIDEOS)
        seen |= set(rows[:, 0].tolist())
    assert len(seen) == len(images)
    assert len(np.concatenate([b.rows for b in batches(place, 0, "distill.frames=all")])) == len(images)


def test_frames_of_a_label_are_paired_across_videos_where_pairs_are_by_label(place: dict[str, Any]) -> None:
    images: ImageList = place["images"]
    assert images.groups is not None
    assert images.labels is not None
    for batch in batches(place, 3, "distill.positives=label"):
        for one, other in batch.rows:
            assert images.labels[one] == images.labels[other]
            assert images.groups[one] != images.groups[other]


def test_a_student_of_videos_is_trained_and_scored_as_its_teachers_are(place: dict[str, Any], tmp_path: Path) -> None:
    session, recipe = place["session"], place["recipe"]
    trained = steps.distill(session, place["images"], place["whitened"], recipe, place["out"])
    assert trained.epochs == 2
    benchmark = session.workspace.benchmark("clips")
    sources = [
        steps.load_student(session, str(place["out"])),
        *steps.teacher_sources(session, recipe.extract.teachers[:1]),
    ]
    scores = scoring.evaluate(
        session, benchmark, sources, override(recipe, ["evaluate.frames=2", "evaluate.video=sme"])
    )
    assert [score["gallery"] for score in scores] == [5, 5]
    for score in scores:
        assert list(score["protocols"]) == ["top-100", "all"]
        assert score["card"]["frames"] == "first 2"
        assert 0 < score["protocols"]["all"]["mAP"] <= 100
        assert score["protocols"]["all"]["mAP_interval"][0] <= score["protocols"]["all"]["mAP"]
        assert score["card"]["pixels"] == "normalised"
    found = reported.find(session, str(place["out"]))
    with pytest.raises(InputError, match="a report is about images, clips is of videos"):
        report(session, found, recipe, benchmark="clips", out=tmp_path / "page.html")
    released = steps.load_student(session, f"{place['out']}?mean=0,0,0&std=1,1,1")
    (score,) = scoring.evaluate(session, benchmark, [released], recipe)
    assert score["card"]["pixels"] == "not normalised, as in the released evaluation"
    assert score["key"] != scores[0]["key"]
    with pytest.raises(InputError, match="leave out --mode asymmetric"):
        scoring.evaluate_asymmetric(session, benchmark, str(place["out"]), recipe)


def made(store: FeatureStore, groups: tuple[str, ...] | None) -> tuple[Key, np.ndarray]:
    images = image_list("made", None, 60)
    images = ImageList("made", None, images.ids, images.paths, groups=groups)
    store_images(store, images)
    vectors = np.random.default_rng(0).standard_normal((60, 6))
    return embeddings(store, images, vectors, np.arange(60) != 3), vectors


def test_a_whitening_is_fitted_on_a_few_frames_of_each_video(tmp_path: Path) -> None:
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    key, _ = made(store, ("long",) * 50 + ("short",) * 4 + ("other",) * 6)
    rows = {most: fit_whitening(store=store, embeddings=[key], config=WhitenConfig(dim=2, frames=most)).rows
            for most in (0, 5, 49, 60)}  # fmt: skip
    assert rows == {0: 59, 5: 5 + 4 + 5, 49: 59, 60: 59}
    first = WhitenConfig(dim=2, frames=5)
    assert (
        fit_whitening(store=store, embeddings=[key], config=first).key
        != fit_whitening(store=store, embeddings=[key], config=WhitenConfig(dim=2)).key
    )


def test_what_is_of_videos_is_refused_for_images(tmp_path: Path, place: dict[str, Any]) -> None:
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    key, _ = made(store, None)
    with pytest.raises(InputError, match=r"whiten\.frames=5 is of videos: leave it out"):
        fit_whitening(store=store, embeddings=[key], config=WhitenConfig(dim=2, frames=5))
    with pytest.raises(InputError, match=r"made is of images, and distill\.frames=one-per-video is of videos"):
        steps.check_distillation(place["recipe"], image_list("made", None, 5), ())
