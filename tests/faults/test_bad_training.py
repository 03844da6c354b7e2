"""What a user can get wrong in training, through the command line: one sentence, before any time is spent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import CROPS, LABEL, accepted, cgd, distill, extract, photos, refused, sealed

from cgd.store.feature_store import FeatureStore


def test_distilling_from_what_was_never_extracted(place: Path) -> None:
    message = refused(*distill(dataset="lm@query"))
    assert "run `cgd extract-teachers --dataset lm@query" in message
    assert not (place / "student").exists()


@pytest.mark.usefixtures("place")
def test_distilling_from_what_was_never_whitened() -> None:
    accepted(*extract("--dataset", "lm@query"))
    assert "run `cgd fit-whitening --dataset lm@query`" in refused(*distill(dataset="lm@query"))


@pytest.mark.usefixtures("bare")
def test_distilling_without_any_store(drawn: Path) -> None:
    dataset = f"manifest:{drawn / 'manifest.csv'}"
    assert "`cgd extract-teachers` makes one" in refused(*distill(dataset=dataset))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--student", "resnet81"), "unknown student 'resnet81': did you mean resnet18"),
        (("--fusion", "maxmin"), "unknown fusion 'maxmin': did you mean max-min"),
        (("--method", "whitenmtd"), "unknown method 'whitenmtd': did you mean whiten-mtd"),
        (("--whitening", "nothing"), "not whitened"),
    ],
)
def test_a_training_that_cannot_be(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*distill(*arguments))
    assert len([k for k in sealed(Path("features.zarr")) if k.kind == "students"]) == 0


@pytest.mark.usefixtures("place")
def test_views_nobody_extracted() -> None:
    accepted(*extract("--dataset", "lm@query"))
    accepted("fit-whitening", "--dataset", "lm@query", "--dim", "2")
    assert "extract with --views 4" in refused(*distill(dataset="lm@query"))


@pytest.mark.usefixtures("place")
def test_more_views_than_are_stored() -> None:
    message = refused(*distill("--set", "distill.crops=3"))
    assert "distill.crops=3, but the teachers mobilenet-v1-width-0.25 have 1 crops in common" in message
    assert "extract with --views 3, or set distill.crops to at most 1" in message


def test_teachers_of_different_data_sets(place: Path) -> None:
    other = photos(place / "others", *(f"{n}.png" for n in range(12)))
    others = "timm:resnet10t?size=64&weights=random"
    accepted(*extract("--dataset", f"folder:{other}", "--views", "1", *CROPS, teachers=others))
    message = refused(*distill("--teachers", f"{LABEL},timm:resnet10t"))
    assert "has no embeddings of lm@train of timm:resnet10t: run `cgd extract-teachers" in message


@pytest.mark.usefixtures("place")
def test_teachers_that_saw_other_crops() -> None:
    other = "timm:resnet10t?size=64&weights=random"
    narrow = ("--set", "extract.crop_area=[0.8, 1.0]")
    accepted(*extract("--dataset", "lm@train", "--views", "1", *CROPS, *narrow, teachers=other))
    accepted("fit-whitening", "--dataset", "lm@train", "--dim", "8", "--teachers", "timm:resnet10t")
    assert "are of different crops (area): extract every teacher with the same extract settings" in refused(*distill())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("method", ["cgd", "embedding"])
def test_a_student_of_another_width_than_codebook_and_teachers(method: str) -> None:
    fusion = ("--fusion", "cgd-pairwise") if method == "cgd" else ()
    wide = ("--student", "mobilenet-v1?width=0.25&dim=12&size=64", "--set", "cgd.positions=4", "--set", "cgd.bits=2")
    message = refused(*distill("--method", method, *fusion, *wide))
    assert "has 12 dimensions, they have 8: give the student ?dim=8, or whiten to --dim 12" in message


def test_a_checkpoint_of_another_recipe(place: Path) -> None:
    (place / "student").mkdir()
    torch.save(
        {"student": "students/another-0123456789abcdef", "lines": [], "begun": {}}, place / "student/training.pt"
    )
    message = refused(*distill("--set", "distill.positives=image"))
    assert "holds the unfinished training of students/another-0123456789abcdef" in message
    assert "give another --out" in message
    assert (place / "student/training.pt").is_file()


def test_a_checkpoint_that_is_none_is_not_said_to_be_worth_running(place: Path) -> None:
    (place / "student").mkdir()
    (place / "student/training.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    message = refused(*distill())
    assert "student/training.pt is damaged (it is no training state): delete it to train from the start" in message
    assert "weights_only" not in message


@pytest.mark.usefixtures("place")
def test_a_whitening_fitted_on_another_kind_of_view() -> None:
    store = FeatureStore.open("features.zarr")
    whitened = [entry.key for entry in store.entries("whitening")]
    of_fixed = next(str(k) for k in whitened if store.get(k).settings["view_kind"] == "fixed")
    accepted(*extract("--dataset", "lm@query"))
    found = accepted("fit-whitening", "--dataset", "lm@query", "--apply", of_fixed)
    assert list(found) == ["fixed"]  # not the crops, were there some
    of_crops = next(str(k) for k in whitened if store.get(k).settings["view_kind"] == "crop")
    message = refused("fit-whitening", "--dataset", "lm@query", "--apply", of_crops)
    assert "has no embeddings of mobilenet-v1-width-0.25 under crop views" in message


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "distill.views=fixed", "--set", "distill.crops=1"), "distill.crops is of crops"),
        (("--exclude", "nowhere.txt"), "cannot read the labels to exclude from nowhere.txt: No such file"),
        (("--set", "distill.validation=0.95"), "distill.validation is at least 0 and at most 0.9"),
        (("--set", "distill.validation=0.05"), "at least two must be held out"),
        (("--set", "distill.photometric=dark"), "unknown value 'dark'"),
        (("--set", "distill.precision=fp8"), "distill.precision: unknown value 'fp8'"),
        (("--set", "distill.chunk_images=-1"), "distill.chunk_images is at least 0"),
        (("--set", "distill.teachers=[gem]"), "unknown teacher 'gem'"),
    ],
)
def test_a_setting_of_training_that_cannot_be_meant(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*distill(*arguments))


@pytest.mark.usefixtures("place")
def test_only_a_training_is_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    result = cgd("store", "ls")
    assert result.exit_code == 2
    assert "torchrun is for cgd distill" in result.stderr


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "variables",
    [{"RANK": "3"}, {"WORLD_SIZE": "8", "RANK": "3"}, {"WORLD_SIZE": "many", "RANK": "", "LOCAL_RANK": "0"}],
)
def test_variables_that_something_else_set_do_not_silence_a_command(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert len(accepted("store", "ls")["artifacts"]) == 9


@pytest.mark.usefixtures("place")
def test_a_budget_of_one_image_is_refused_by_name() -> None:
    assert "distill.images=1 leaves a single image" in refused(*distill("--set", "distill.images=1"))
