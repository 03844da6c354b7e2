"""Classes held out of training tell the best epoch; labels can be excluded; light changes for the student alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cgd.data import photometric
from cgd.errors import InputError
from cgd.models.load import trained_student
from cgd.stages import training
from cgd.stages.distill import distill, training_of
from cgd.stages.fuse import epoch_batches, epoch_targets
from cgd.stages.student_pixels import FULL, Sample
from cgd.stages.validation import leave_one_out, validation_rows
from cgd.stages.withheld import held_out
from cgd.types import Batch


@pytest.fixture
def job(stored: Any) -> Any:
    """Of a folder and settings: what `distill` is called with."""
    return stored.job


def test_whole_classes_are_held_out_the_same_ones_for_a_seed() -> None:
    labels = [f"l{i % 10}" for i in range(40)] + ["alone"]
    out = held_out(labels, 0.3, 0)
    assert len({labels[i] for i in np.flatnonzero(out)}) == 3
    assert out.sum() == 12
    assert not out[-1]
    np.testing.assert_array_equal(out, held_out(labels, 0.3, 0))
    assert (out != held_out(labels, 0.3, 1)).any()


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_too_few_classes_on_either_side_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="at least two must be held out and two must stay"):
        held_out([f"l{i % 10}" for i in range(20)], share, 0)


def test_scored_are_whole_classes_of_readable_images_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["a", "b", "b", "c", "c", "d", "d", "d", "e", "e"]
    withheld = np.array([0, 1, 1, 1, 1, 0, 0, 0, 1, 1], bool)
    usable = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    assert validation_rows(labels, withheld, usable, 0).tolist() == [1, 2, 8, 9]  # of c one image is left
    everything = np.ones(10, bool)
    monkeypatch.setattr("cgd.stages.validation.MOST_IMAGES", 5)
    found = [labels[row] for row in validation_rows(labels, everything, everything, 0)]
    assert 4 <= len(found) <= 5
    assert all(found.count(label) == labels.count(label) > 1 for label in set(found))
    with pytest.raises(InputError, match="too few readable images"):
        validation_rows(labels, withheld, np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 1], bool), 0)


def test_leave_one_out_by_hand() -> None:
    """Images 0 and 1 find each other first; 2 finds 3 behind one other, and 3 finds 2 first."""
    vectors = np.array([[1, 0], [0.99, 0.14], [0.2, 0.98], [-0.6, 0.8]])
    expected = 100 * (1 + 1 + 1 + 1) / 4
    assert leave_one_out(vectors, ["a", "a", "b", "b"]) == pytest.approx(expected)
    worse = leave_one_out(np.array([[1, 0], [0, 1], [0.9, 0.1]]), ["a", "a", "b"])
    assert worse == pytest.approx(100 * (1 / 4 + 1 / 4) / 2)  # rank 1: precision before 0, after 1/2


def test_no_held_out_image_is_trained_on_and_the_best_epoch_is_published(job: Any, tmp_path: Path) -> None:
    wanted = job(tmp_path / "s", "distill.validation=0.4", "distill.epochs=4", "distill.learning_rate=0.05")
    work = training_of(wanted)
    withheld = set(work.plan.withheld)
    labels = wanted.images.labels
    assert {labels[r] for r in withheld} & {labels[r] for r in range(len(labels)) if r not in withheld} == set()
    for epoch in range(5):
        assert not withheld & {int(r) for b in epoch_batches(work.plan, epoch) for r in b.rows.ravel()}
    report = distill(wanted)
    lines = [json.loads(line) for line in (tmp_path / "s/log.jsonl").read_text().splitlines()]
    scores = [line["validation"] for line in lines]
    assert report.best is not None
    assert report.best["mAP"] == max(scores)
    assert report.best["epoch"] == 1 + scores.index(max(scores))
    assert len(set(scores)) > 1
    encoder = trained_student("mobilenet-v1?width=0.25&dim=32&size=64", tmp_path / "s/model.safetensors").build()
    encoder.eval()
    pixels = [work.pixels.load(Sample(int(row), FULL), encoder.input_spec) for row in work.scored]
    with torch.inference_mode():
        found = encoder(torch.from_numpy(np.stack(pixels))).numpy()
    assert leave_one_out(found, [labels[r] for r in work.scored]) == pytest.approx(max(scores), abs=1e-6)


def test_the_best_epoch_survives_an_interruption(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("distill.validation=0.4", "distill.epochs=4", "distill.learning_rate=0.05", "distill.seed=3")
    whole = training_of(job(tmp_path / "whole", *settings)).run()
    keep = training.Training._keep

    def stop(self: Any, *rest: Any) -> None:
        keep(self, *rest)
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr(training.Training, "_keep", stop)
        with pytest.raises(KeyboardInterrupt):
            training_of(job(tmp_path / "cut", *settings)).run()
        monkeypatch.setattr(training.Training, "_keep", keep)
    cut = training_of(job(tmp_path / "cut", *settings)).run()
    assert cut.best == whole.best
    for name, tensor in whole.encoder.network.state_dict().items():
        assert torch.equal(tensor, cut.encoder.network.state_dict()[name]), name


def test_excluded_labels_are_not_trained_on(job: Any, tmp_path: Path) -> None:
    labels = sorted(set(job(tmp_path / "s").images.labels))
    (tmp_path / "exclude.txt").write_text(f"# landmarks of the benchmark\n{labels[0]}\n\n{labels[1]}\nnowhere\n")
    work = training_of(job(tmp_path / "s", f"distill.exclude={tmp_path / 'exclude.txt'}"))
    rows = {int(r) for b in epoch_batches(work.plan, 0) for r in b.rows.ravel()}
    assert {work.images.labels[r] for r in rows} == set(labels[2:])


def test_a_student_is_named_by_what_it_excludes_not_by_the_files_place(job: Any, tmp_path: Path) -> None:
    label = job(tmp_path / "s").images.labels[0]
    names = []
    for name, text in (("a", f"{label}\n"), ("b", f"\n{label}\n{label}"), ("c", f"{label}\nx")):
        (tmp_path / name).write_text(text)
        names.append(training_of(job(tmp_path / "s", f"distill.exclude={tmp_path / name}")).checkpoint.student)
    assert names[0] == names[1]
    assert names[2] != names[0]
    assert training_of(job(tmp_path / "s")).checkpoint.student not in names


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"nowhere\n", "none of the 1 labels"), (b"\xff\xfe", "it is not text"), (None, "No such file")],
)
def test_a_file_of_labels_that_cannot_be_meant(job: Any, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "exclude.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        training_of(job(tmp_path / "s", f"distill.exclude={path}"))


def test_the_recipe_of_a_student_says_what_was_excluded(job: Any, tmp_path: Path) -> None:
    label = job(tmp_path / "s").images.labels[0]
    (tmp_path / "out.txt").write_text(f"{label}\n")
    distill(job(tmp_path / "s", f"distill.exclude={tmp_path / 'out.txt'}"))
    assert json.loads((tmp_path / "s/recipe.json").read_text())["distill"]["exclude"] == [label]


def test_neither_works_without_labels(job: Any, tmp_path: Path) -> None:
    wanted = job(tmp_path / "s", "distill.validation=0.4", "distill.positives=image")
    unlabelled = dataclasses.replace(wanted, images=dataclasses.replace(wanted.images, labels=None))
    with pytest.raises(InputError, match=r"has no labels, which distill\.validation needs"):
        training_of(unlabelled)


def test_students_of_one_store_share_their_targets(job: Any, tmp_path: Path) -> None:
    """Batches and targets depend on no student: two students with the same settings get the same ones, to the bit."""
    plans = [
        training_of(job(tmp_path / name, f"distill.student={student}")).plan
        for name, student in (("a", "mobilenet-v1?width=0.25&dim=32&size=64"), ("b", "timm:resnet10t?dim=8&size=64"))
    ]
    assert plans[0] == plans[1]
    for one, other in zip(*(epoch_targets(plan, 1)[1] for plan in plans), strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_labels_of_a_single_image_are_told(job: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = job(tmp_path / "s")
    labels = ("alone", *wanted.images.labels[1:])
    training_of(dataclasses.replace(wanted, images=dataclasses.replace(wanted.images, labels=labels)))
    assert "1 labels have a single image, which has no pair" in caplog.text


@pytest.mark.parametrize("kind", ["jitter", "video"])
def test_light_changes_colours_and_leaves_the_place_of_things(kind: str) -> None:
    image = Image.new("RGB", (32, 32), (90, 120, 60))
    image.paste((200, 40, 90), (8, 8, 24, 24))
    changed = [photometric.change(image, kind, n % 2, np.random.default_rng(n)) for n in range(40)]
    assert len({c.tobytes() for c in changed}) > 20
    assert all((c.mode, c.size) == ("RGB", (32, 32)) for c in changed)
    again = photometric.change(image, kind, 1, np.random.default_rng(7))
    assert again.tobytes() == changed[7].tobytes()
    if kind == "jitter":
        untouched = sum(c.tobytes() == image.tobytes() for c in changed)
        assert 2 <= untouched <= 16  # one in five
        for c in changed:
            inside, outside = np.array(c)[8:24, 8:24], np.array(c)[:8]
            assert (inside == inside[0, 0]).all()
            assert (outside == outside[0, 0]).all()


def test_the_second_view_of_a_video_pair_is_rarely_blurred() -> None:
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 255, (48, 48, 3), np.uint8))

    def roughness(c: Image.Image) -> float:
        return float(np.abs(np.diff(np.asarray(c.convert("L"), float), axis=0)).mean())

    first, second = (
        np.mean([roughness(photometric.change(image, "video", place, np.random.default_rng(n))) for n in range(40)])
        for place in (0, 1)
    )
    assert first < 0.7 * second


def test_an_image_without_a_pair_has_probabilities_of_its_own(job: Any, tmp_path: Path) -> None:
    work = training_of(job(tmp_path / "s", "distill.photometric=video"))
    single = Batch(np.array([[0], [1]]), np.array([[1], [2]]))
    assert [sample.place for sample in work.pixels.samples(0, 0, single)] == [photometric.ALONE] * 2


def test_light_depends_on_the_step_and_on_nothing_else(job: Any, tmp_path: Path) -> None:
    work = training_of(job(tmp_path / "s", "distill.photometric=jitter"))
    encoder = work.prepare()
    batch = epoch_batches(work.plan, 0)[0]
    samples = work.pixels.samples(0, 0, batch)
    one, other = work.pixels.load(samples[0], encoder.input_spec), work.pixels.load(samples[0], encoder.input_spec)
    np.testing.assert_array_equal(one, other)
    plain = work.pixels.load(Sample(samples[0].row, samples[0].view), encoder.input_spec)
    others = [work.pixels.load(work.pixels.samples(epoch, 0, batch)[0], encoder.input_spec) for epoch in range(6)]
    assert any((o != plain).any() for o in others)
    assert len({o.tobytes() for o in others}) > 3


def test_curves_are_written_for_tensorboard(job: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    wanted = job(tmp_path / "s", "distill.validation=0.4", "distill.seed=5")
    distill(dataclasses.replace(wanted, compute=dataclasses.replace(wanted.compute, curves=True)))
    events = list((tmp_path / "s/tensorboard").iterdir())
    assert events
    content = b"".join(e.read_bytes() for e in events)
    for name in (b"loss", b"learning_rate", b"validation"):
        assert name in content
