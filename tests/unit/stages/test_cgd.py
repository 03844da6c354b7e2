"""CGD from stored teachers to scores: codebook, training, symmetric and asymmetric search, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd.errors import InputError, MissingError, StoreError
from cgd.methods.cgd import fuse_vectors
from cgd.pipeline import scoring, steps
from cgd.pipeline.recipe import change, override
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.retrieval.vectors import l2
from cgd.retrieval.whitening import whiten
from cgd.stages import select
from cgd.stages.codebook import fit_codebook
from cgd.stages.descriptors import Fused, computed
from cgd.stages.fuse import gather_vectors, read_codebook
from cgd.stages.whiten import read_whitening
from cgd.types import Key

SETTINGS = [
    "distill.method=cgd",
    "distill.fusion=cgd-two",
    "distill.student=mobilenet-v1?width=0.25&dim=16&size=64",
    "distill.epochs=1",
    "distill.batch_pairs=6",
    "cgd.positions=4",
    "cgd.bits=2",
    "cgd.restarts=1",
]


@dataclasses.dataclass(frozen=True)
class Place:
    session: Session
    recipe: Any
    images: Any
    vectors: dict[str, dict[str, Key]]
    student: Path


@pytest.fixture(scope="module")
def place(drawn: Path, tiny_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two teachers extracted and whitened, and a student distilled from them."""
    folder = tmp_path_factory.mktemp("cgd")
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=Workspace(folder / "roots.yaml"))
    recipe = override(tiny_recipe, SETTINGS)
    images = session.workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm", "train")
    extracted = steps.extract_teachers(session, images, recipe.extract)
    done = steps.fit_whitening(session, {n: r.keys for n, r in extracted.encoders.items()}, recipe.whiten)
    vectors = {label: views for label, (_, views) in done.items()}
    steps.distill(session, images, vectors, recipe, folder / "student")
    return Place(session, recipe, images, vectors, folder / "student")


def first_crops(place: Place) -> list[Key]:
    return [views["crop-1"] for views in place.vectors.values()]


def test_a_codebook_has_unit_anchors_and_says_who_weighed_how_much(place: Place) -> None:
    store = place.session.store()
    (key,) = store.find("codebooks", fusion="cgd-two")
    artifact = store.get(key)
    centroids = artifact.read("centroids")
    assert centroids.shape == (4, 4, 4)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=2), 1, atol=1e-6)
    assert sum(artifact.attributes["weights"]) == pytest.approx(1, abs=1e-6)
    assert artifact.attributes["weights"][1] == pytest.approx(artifact.attributes["rho"], abs=1e-6)
    assert artifact.inputs == first_crops(place)


def test_several_students_share_a_codebook_and_the_loss_alone_makes_no_new_one(place: Place) -> None:
    store = place.session.store(write=True)
    (key,) = store.find("codebooks", fusion="cgd-two")
    for change_of in ({"multiplier": 5.0}, {"direct": 0.5}):
        config = dataclasses.replace(place.recipe.cgd, **change_of)
        assert fit_codebook(store=store, teachers=first_crops(place), fusion="cgd-two", config=config) == key


def test_a_collapse_onto_one_teacher_is_said(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The first teacher twice: whatever the rule gives the second one, it is the same vector; opposite signs too."""
    store = place.session.store(write=True)
    config = dataclasses.replace(place.recipe.cgd, seed=5)
    fit_codebook(store=store, teachers=[first_crops(place)[0]] * 2, fusion="cgd-two", config=config)
    assert "of the weight" in caplog.text
    assert "cgd-pairwise, or set cgd.align=true" in caplog.text


def test_aligned_teachers_correlate_more_and_are_turned_alike_everywhere(place: Place) -> None:
    store = place.session.store(write=True)
    config = dataclasses.replace(place.recipe.cgd, align=True)
    key = fit_codebook(store=store, teachers=first_crops(place), fusion="cgd-two", config=config)
    codebook = read_codebook(store, key)
    assert codebook.rotations is not None
    for rotation in codebook.rotations:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-5)
    np.testing.assert_array_equal(codebook.rotations[0], np.eye(16))
    (plain,) = [k for k in store.find("codebooks", fusion="cgd-two", align=False) if store.get(k).settings["seed"] == 0]
    assert store.get(key).attributes["rho"] > 1.5 * store.get(plain).attributes["rho"]


def test_a_galleries_vectors_are_fused_as_in_training(place: Place) -> None:
    """Through the very whitening of the crops; here on the crops themselves, whose whitened vectors are stored."""
    store = place.session.store()
    (key,) = [k for k in store.find("codebooks", fusion="cgd-two", align=False) if store.get(k).settings["seed"] == 0]
    sources = [store.get(k).inputs for k in first_crops(place)]
    fused = Fused(tuple(s[0] for s in sources), tuple(s[1] for s in sources), "cgd-two", key)
    vectors = computed(store, fused, None)
    found, valid = vectors.read(range(len(place.images))), vectors.valid
    rows = np.arange(len(place.images))
    whitened = [gather_vectors(store.get(k), rows).astype(np.float32) for k in first_crops(place)]
    from cgd import registry

    expected, _, _ = fuse_vectors(whitened, read_codebook(store, key), registry.find("cgd.fusion", "cgd-two"), None)
    assert valid.all()
    np.testing.assert_allclose(found, l2(expected), atol=2e-3)  # half precision on one side
    exact = [whiten(store.get(e).read("vectors"), read_whitening(store, w)) for e, w in sources]
    expected, _, _ = fuse_vectors(exact, None, registry.find("cgd.fusion", "cgd-two"), None)
    np.testing.assert_allclose(found, l2(expected), atol=1e-6)


def test_symmetric_and_asymmetric_scores_have_cards_of_their_own(place: Place, drawn: Path) -> None:
    benchmark = place.session.workspace.benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm")
    config = change(place.recipe, "evaluate", queries="both", distractors=("lm@distractors",))
    student = steps.load_student(place.session, str(place.student))
    symmetric = scoring.evaluate(place.session, benchmark, [student], config)
    asymmetric = scoring.evaluate_asymmetric(place.session, benchmark, str(place.student), config)
    assert [s["mode"] for s in symmetric + asymmetric] == ["symmetric"] * 2 + ["asymmetric"] * 2
    assert [s["distractors"] for s in asymmetric] == [6, 6]
    card = asymmetric[0]["card"]
    assert card["gallery"]["teachers"] == list(place.vectors)
    assert card["gallery"]["fusion"] == "cgd-two"
    assert "mode" not in symmetric[0]["card"]
    again = scoring.evaluate_asymmetric(
        place.session, benchmark, str(place.student), config, teachers=place.recipe.extract.teachers[::-1]
    )
    assert [s["key"] for s in again] == [s["key"] for s in asymmetric]


def test_the_log_tells_weights_and_correlation_of_every_epoch(place: Place) -> None:
    line = json.loads((place.student / "log.jsonl").read_text().splitlines()[-1])
    assert sum(line["teachers"]["weights"]) == pytest.approx(1, abs=1e-5)
    assert 0 < line["teachers"]["rho"][0] < 1


# what is refused


def test_asymmetric_search_needs_a_common_space(place: Place, tmp_path: Path, drawn: Path) -> None:
    recipe = override(place.recipe, ["distill.method=whiten-mtd", "distill.fusion=max-min"])
    steps.distill(place.session, place.images, place.vectors, recipe, tmp_path / "other")
    benchmark = place.session.workspace.benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm")
    with pytest.raises(InputError, match="trained another way: use --mode symmetric"):
        scoring.evaluate_asymmetric(place.session, benchmark, str(tmp_path / "other"), recipe)


def test_other_teachers_than_the_students_are_refused(place: Place, drawn: Path) -> None:
    benchmark = place.session.workspace.benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm")
    with pytest.raises(InputError, match="which is not among --teachers"):
        scoring.evaluate_asymmetric(
            place.session,
            benchmark,
            str(place.student),
            place.recipe,
            teachers=place.recipe.extract.teachers[:1],
        )


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (["distill.fusion=max-min"], InputError, "use cgd-pairwise or cgd-two"),
        (["distill.method=whiten-mtd"], InputError, "use max-mean or max-min or max-rand or mean or rand"),
        (["cgd.positions=5"], InputError, "vectors of 16 values cannot be cut into 5 equal parts"),
        (["cgd.bits=8"], InputError, "256 anchors need as many images, there are 24"),
        (
            ["distill.student=mobilenet-v1?width=0.25&dim=8&size=64"],
            InputError,
            r"has 8 dimensions, they have 16: give the student \?dim=16",
        ),
        (["distill.crops=3"], MissingError, "have 2 crops in common: extract with --views 3"),
    ],
)
def test_a_training_that_cannot_be(place: Place, tmp_path: Path, settings: list[str], error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        steps.distill(place.session, place.images, place.vectors, override(place.recipe, settings), tmp_path / "x")


def test_not_a_number_in_a_stored_vector_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = place.session.store().get(first_crops(place)[0])
    broken = np.zeros((3, 16), np.float16)
    broken[1, 4] = np.nan
    monkeypatch.setattr(type(artifact), "gather", lambda *_: broken)
    with pytest.raises(StoreError, match=r"not finite in row 7"):
        gather_vectors(artifact, np.array([5, 7, 9]))


# other ways to train


def test_raw_vectors_of_different_widths_may_be_distilled(place: Place, tmp_path: Path) -> None:
    recipe = override(place.recipe, ["distill.method=whiten-mtd", "distill.fusion=max-mean", "distill.space=raw"])
    raw = select.training_vectors(place.session.store(), "lm", "train", (), None, "raw")
    report = steps.distill(place.session, place.images, raw, recipe, tmp_path / "raw")
    assert np.isfinite(report.final_loss)
    assert all(key.kind == "embeddings" for key in place.session.store().get(report.key).inputs)


@pytest.mark.parametrize("method", ["embedding", "contrastive"])
def test_the_baselines_train(place: Place, tmp_path: Path, method: str) -> None:
    recipe = override(place.recipe, [f"distill.method={method}", "distill.fusion=mean"])
    report = steps.distill(place.session, place.images, place.vectors, recipe, tmp_path / method)
    assert np.isfinite(report.final_loss)


def test_fewer_crops_make_another_student(place: Place, tmp_path: Path) -> None:
    one = steps.distill(
        place.session, place.images, place.vectors, override(place.recipe, ["distill.crops=1"]), tmp_path / "1"
    )
    assert len([k for k in place.session.store().get(one.key).inputs if k.kind == "whitened"]) == 2
