"""A budget of images: what few of them teachers are shown, what is trained on, and that either way it is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import Stored

from cgd.data.sampling import within_budget
from cgd.errors import InputError, MissingError
from cgd.pipeline import steps
from cgd.pipeline.recipe import change, override
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.stages import select
from cgd.stages.distill import _queries, distill, training_of
from cgd.stages.embed import NOT_ASKED
from cgd.stages.fuse import epoch_targets, trained_rows
from cgd.stages.images import changed_images, check_same_images

IMAGES = 11
BUDGET = {"images": IMAGES, "images_seed": 5}
EVERY = ("distill.space=raw", "distill.epochs=1", "distill.batch_pairs=4", "distill.images_per_class=2")


def extracted(stored: Stored, folder: Path, upstream: tuple[str, ...] = (), **changes: Any) -> tuple[Stored, Any]:
    """The same teachers in a store of their own, which have seen a budget, and the report."""
    workspace = Workspace(folder / "roots.yaml")
    session = Session(str(folder / "s.zarr"), upstream, device="cpu", workers=0, workspace=workspace)
    images = session.workspace.images(f"manifest:{stored.manifest}", "lm", "train")
    config = change(stored.recipe, "extract", **changes).extract
    report = steps.extract_teachers(session, images, config)
    raw = {label: dict(of.keys) for label, of in report.encoders.items()}
    return Stored(session, stored.manifest, stored.recipe, raw, {}), report


@pytest.fixture(scope="module")
def few(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Any]:
    """Vectors are copied from the full store, bit for bit; a network's last bits depend on what else is in a batch."""
    return extracted(stored, tmp_path_factory.mktemp("few"), (stored.session.store_url,), **BUDGET)


def test_images_that_were_not_asked_for_are_no_failures(stored: Stored, few: tuple[Stored, Any]) -> None:
    store, report = few[0].session.store(), few[1].as_json()
    assert (report["images"], report["valid"], report["not_asked"], report["failed"]) == (24, IMAGES, 13, [])
    images = stored.job(Path("unused")).images
    kept = within_budget(images, IMAGES, "image", 5)
    full = stored.session.store()
    for label, views in few[0].raw.items():
        for view, key in views.items():
            artifact = store.get(key)
            assert (artifact.read("valid") == kept).all()
            assert artifact.read("reasons").tolist() == ["" if here else NOT_ASKED for here in kept]
            assert artifact.read("ids").tolist() == list(images.ids)
            everything = full.get(stored.raw[label][view])
            np.testing.assert_array_equal(artifact.read("vectors")[kept], everything.read("vectors")[kept])
            assert not artifact.read("digests")[~kept].any()
            assert key != everything.key
    check_same_images(store, images)
    assert changed_images(store.get(key), images) == []


@pytest.mark.parametrize(
    "settings",
    [
        ("distill.method=ranking",),
        ("distill.method=relative-teacher",),
        ("distill.method=relative-teacher", "distill.labelled=0.7", "distill.unlabelled=0.5"),
        ("distill.method=whiten-mtd", "distill.positives=image"),
        ("distill.method=whiten-mtd",),
    ],
    ids=lambda s: " ".join(s),
)
def test_few_images_shown_are_as_good_as_few_used(
    stored: Stored, few: tuple[Stored, Any], settings: tuple[str, ...], tmp_path: Path
) -> None:
    used = training_of(stored.job(tmp_path, *EVERY, *settings, f"distill.images={IMAGES}", "distill.images_seed=5"))
    shown = training_of(few[0].job(tmp_path, *EVERY, *settings))
    assert 0 < trained_rows(used.plan).sum() <= IMAGES
    assert (trained_rows(used.plan) == trained_rows(shown.plan)).all()
    for epoch in range(3):
        (batches, targets), (others, goals) = (epoch_targets(t.plan, epoch) for t in (used, shown))
        assert len(batches) == len(others) > 0
        for one, other, target, goal in zip(batches, others, targets, goals, strict=True):
            assert trained_rows(used.plan)[one.rows].all()
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.views, other.views)
            assert target.keys() == goal.keys()
            for name, values in target.items():
                np.testing.assert_array_equal(values, goal[name])


def test_a_student_tells_how_many_queries_it_rests_on(few: tuple[Stored, Any], tmp_path: Path) -> None:
    job = few[0].job(tmp_path, *EVERY, "distill.method=ranking", "distill.images=17", "distill.crops=1")
    both = within_budget(job.images, IMAGES, "image", 5) & within_budget(job.images, 17, "image", 0)
    report = distill(job)
    expected = {"images": int(both.sum()), "views": 1, "teachers": 2, "total": 2 * int(both.sum())}
    assert report.as_json()["teacher_queries"] == expected
    assert json.loads((tmp_path / "recipe.json").read_text())["teacher_queries"] == expected
    alone = few[0].job(tmp_path / "alone", *EVERY, "distill.method=contrastive", "distill.positives=image")
    assert _queries(training_of(alone).plan)["total"] == 0


def test_a_larger_budget_copies_what_a_smaller_one_has_seen(stored: Stored, tmp_path: Path) -> None:
    once = {"teachers": stored.recipe.extract.teachers[:1], "views": 1}
    smaller, first = extracted(stored, tmp_path, **BUDGET, **once)
    _, then = extracted(stored, tmp_path, images=15, images_seed=5, **once)
    for report, counts in ((first, (0, 2 * IMAGES)), (then, (2 * IMAGES, 2 * 4))):  # two views each
        assert [(of.copied, of.tally.embedded) for of in report.encoders.values()] == [counts]
    with pytest.raises(MissingError, match="name one of"):  # nobody knows which is meant
        select.teachers_of(smaller.session.store(), "lm", "train", [])
    named = [str(key) for views in smaller.raw.values() for key in views.values()]
    assert select.teachers_of(smaller.session.store(), "lm", "train", named) == smaller.raw
    full, _ = extracted(stored, tmp_path, **once)
    assert select.teachers_of(full.session.store(), "lm", "train", []) == full.raw  # all come before some


def test_a_whitening_is_fitted_on_the_images_shown(few: tuple[Stored, Any]) -> None:
    for samples, rows in ((0, IMAGES), (6, 6)):
        config = override(few[0].recipe, [f"whiten.samples={samples}", "whiten.dim=4"]).whiten
        fixed = {label: {"fixed": views["fixed"]} for label, views in few[0].raw.items()}
        done = steps.fit_whitening(few[0].session, fixed, config)
        assert {label: reports["fixed"].rows for label, (reports, _) in done.items()} == dict.fromkeys(fixed, rows)


def test_shares_of_labels_are_for_batches_by_class(stored: Stored, tmp_path: Path) -> None:
    for setting in ("distill.labelled=0.5", "distill.unlabelled=1"):
        with pytest.raises(InputError, match="draws no batches by class"):
            training_of(stored.job(tmp_path, *EVERY, "distill.method=ranking", setting))
