"""What a user can get wrong, through the command line: one sentence, no traceback, and nothing stored is lost."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import (
    CPU,
    CROPS,
    LABEL,
    SMALL,
    TEACHER,
    accepted,
    benchmark,
    cgd,
    distill,
    evaluate,
    extract,
    photos,
    refused,
    sealed,
)
from PIL import Image
from safetensors.torch import save_file

from cgd.store.feature_store import FeatureStore
from cgd.types import Key

# data sets that cannot be opened


@pytest.mark.usefixtures("place")
def test_a_missing_folder() -> None:
    assert "nowhere does not exist" in refused(*extract("--dataset", "folder:nowhere"))


def test_a_folder_without_images(bare: Path) -> None:
    (bare / "empty").mkdir()
    assert "holds no image" in refused(*extract("--dataset", "folder:empty"))
    assert not (bare / "features.zarr").exists()


@pytest.mark.usefixtures("place")
def test_an_unknown_kind_and_an_unknown_name() -> None:
    assert "did you mean folder" in refused(*extract("--dataset", "foldr:photos"))
    assert "did you mean lm" in refused(*extract("--dataset", "lmm@train"))


@pytest.mark.usefixtures("place")
def test_an_unknown_split() -> None:
    assert "did you mean train" in refused(*extract("--dataset", "lm@trian"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,file\na,a.png\n", "has no column 'path'; it has image_id, file"),
        ("id,path\na,a.png\n", "has no column 'image_id'"),
        ("image_id,path\na,1.png\na,2.png\n", "names the image 'a' twice"),
        ("image_id,path\na,/etc/a.png\n", "holds the path '/etc/a.png'"),
        ("image_id,path\na,x/../../a.png\n", "holds the path 'x/../../a.png'"),
        ("image_id,path\na,.\n", "holds the path '.'"),
        ("image_id,path\na,a.png\nb,b.png,too,many\n", "cannot read the manifest"),
        ("", "cannot read the manifest"),
        ("image_id,path\n", "holds no image"),
        ("image_id,path,bbx\na,a.png,1 2 3\n", "expected 'x1 y1 x2 y2'"),
    ],
)
def test_a_manifest_that_cannot_be_used(bare: Path, content: str, message: str) -> None:
    (bare / "manifest.csv").write_text(content)
    assert message in refused(*extract("--dataset", "manifest:manifest.csv"))
    assert not (bare / "features.zarr").exists()


def test_a_file_name_that_is_no_text(bare: Path) -> None:
    photos(bare / "photos", "a.png")
    os.rename(bare / "photos/a.png", os.fsencode(bare / "photos") + b"/\xff.png")
    refused(*extract("--dataset", "folder:photos"))


def test_a_listed_image_that_is_not_there(bare: Path) -> None:
    photos(bare / "photos", "a.png")
    (bare / "photos/manifest.csv").write_text("image_id,path\na,a.png\nb,b.png\n")
    message = refused(*extract("--dataset", "manifest:photos/manifest.csv"))
    assert "the image b.png is missing below" in message


# images that cannot be decoded


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_an_unreadable_image_in_the_middle_of_a_set_is_listed_and_the_rest_goes_on(bare: Path, damage: str) -> None:
    names = [f"{label}/{n}.png" for label in "abc" for n in range(3)]
    victim = photos(bare / "photos", *names) / "b/1.png"
    data = {"empty": b"", "text": b"no picture", "cut": victim.read_bytes()[:300]}[damage]
    victim.write_bytes(data)
    told = cgd(*extract("--dataset", "folder:photos", "--views", "1", *CROPS))
    assert told.exit_code == 0
    assert "8 of 9 images are valid" in told.stdout
    assert "invalid: b/1.png: " in told.stdout
    report = accepted(*extract("--dataset", "folder:photos", "--views", "1", *CROPS))
    assert (report["images"], report["valid"]) == (9, 8)
    ((failed,),) = [report["failed"]]
    assert failed["id"] == "b/1.png"
    assert failed["reason"]
    store = FeatureStore.open(bare / "features.zarr")
    for text in report["teachers"][LABEL]["keys"].values():
        artifact = store.get(Key.parse(text))
        assert artifact.read("valid").tolist() == [i != "b/1.png" for i in artifact.read("ids")]
        assert np.isnan(artifact.read("vectors")[4]).all()
        assert np.isfinite(np.delete(artifact.read("vectors"), 4, axis=0)).all()
        assert artifact.read("reasons")[4] == failed["reason"]
    fitted = accepted("fit-whitening", "--dataset", "photos", "--dim", "4")
    assert fitted[LABEL]["fixed"]["rows"] == 8
    for key in store.find("whitened"):
        vectors = store.get(key).read("vectors")
        assert np.isnan(vectors[4]).all()
        assert np.isfinite(np.delete(vectors, 4, axis=0)).all()


# teachers


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilnet-v1?weights=random", "unknown teacher 'mobilnet-v1': did you mean mobilenet-v1"),
        ("mobilenet-v1?widht=0.25&weights=random", "unknown option 'widht': did you mean width"),
        ("mobilenet-v1?width=a&weights=random", "option 'width' should be float"),
        ("mobilenet-v1?width=0.25", "needs weights"),
        ("timm:resnet10tt?weights=random", "unknown timm network 'resnet10tt': did you mean"),
        ("timm:resnet10t.bogus?weights=random", "bogus"),
        ("timm:resnet10t?pad_type=same&weights=random", "pad_type"),
        ("timm:vit_tiny_patch16_224?size=60&weights=random", "divisible by patch size"),
        (f"{TEACHER},{TEACHER}", "two of the models have the same name"),
        ("", "no teacher is named"),
    ],
)
def test_a_teacher_that_cannot_be_had(name: str, message: str) -> None:
    assert message in refused(*extract("--dataset", "lm@query", teachers=name))


class Attack:
    """Calls `os.system` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def weights_file(folder: Path, kind: str, marker: Path) -> str:
    """A file of `kind` in `folder`; its name."""
    state = {"conv.weight": torch.zeros(3, 2)}
    folder.mkdir()
    path = folder / ("w.safetensors" if "safetensors" in kind else "w.pth")
    if kind.endswith("safetensors"):
        save_file(state, path)
    elif kind == "code":
        path.write_bytes(pickle.dumps({"conv.weight": Attack(marker)}, 2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "cut old torch file")
    if kind.startswith("cut"):
        path.write_bytes(path.read_bytes()[:-40])
    if kind == "empty":
        path.write_bytes(b"")
    return path.name


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other safetensors", "belongs to another network: 135 tensors missing"),
        ("other torch file", "belongs to another network: 135 tensors missing"),
        ("cut safetensors", "no readable weights file"),
        ("cut torch file", "no readable weights file"),
        ("cut old torch file", "w.pth"),
        ("empty", "w.pth"),
        ("code", "refused: it holds pickled code"),
    ],
)
def test_a_weights_file_that_cannot_be_used(place: Path, kind: str, message: str) -> None:
    name = weights_file(place / "weights", kind, place / "ran")
    teacher = f"{SMALL}&weights={name}"
    assert message in refused(*extract("--dataset", "lm@query", "--weights", "weights", teachers=teacher))
    assert not (place / "ran").exists()
    assert not [e for e in FeatureStore.open("features.zarr").entries("embeddings") if not e.sealed]


def test_missing_weights_name_the_file_and_the_folder(place: Path) -> None:
    (place / "weights").mkdir()
    message = refused(*extract("--dataset", "lm@query", "--weights", "weights", teachers="gem"))
    assert "gem.safetensors is not in weights (`cgd teachers import gem FILE" in message
    assert "--weights DIR" in refused(*extract("--dataset", "lm@query", teachers="gem"))


@pytest.mark.usefixtures("place")
def test_initial_weights_that_are_not_there() -> None:
    assert "nothing.safetensors" in refused(*distill("--init", "nothing.safetensors"))


@pytest.mark.usefixtures("place")
def test_a_device_that_is_not_there() -> None:
    arguments = ("extract-teachers", "--dataset", "lm@query", "--teachers", TEACHER, "--device")
    assert "cannot use the device 'gpu'" in refused(*arguments, "gpu")


# the same name for other images


def test_other_images_under_a_name_in_use(bare: Path) -> None:
    names = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    photos(bare / "mine", *names)
    photos(bare / "yours", *names, seed=1)
    accepted(*extract("--dataset", "folder:mine", "--name", "photos"))
    message = refused(*extract("--dataset", "folder:yours", "--name", "photos"))
    assert "is not the one in the store" in message
    assert "another --name" in message
    accepted(*extract("--dataset", "folder:yours", "--name", "others"))
    accepted(*extract("--dataset", "folder:mine", "--name", "photos"))


def test_other_images_under_a_name_in_use_seen_by_another_teacher(bare: Path) -> None:
    """Two teachers of one data set must have seen the same pixels."""
    names = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    photos(bare / "mine", *names)
    photos(bare / "yours", *names, seed=1)
    accepted(*extract("--dataset", "folder:mine", "--name", "photos"))
    other = f"{TEACHER}&pool=avg"
    message = refused(*extract("--dataset", "folder:yours", "--name", "photos", teachers=other))
    assert "is not the one in the store" in message


def test_other_images_under_a_name_half_of_which_is_extracted(bare: Path) -> None:
    """One artifact must not hold shards of two data sets."""
    names = [f"a/{n}.png" for n in range(4)]
    photos(bare / "mine", *names)
    photos(bare / "yours", *names, seed=1)
    accepted(*extract("--dataset", "folder:mine", "--name", "photos", "--shard-rows", "2", "--part", "1/2"))
    message = refused(*extract("--dataset", "folder:yours", "--name", "photos", "--shard-rows", "2"))
    assert "is not the one in the store" in message


# whitening


@pytest.mark.usefixtures("place")
def test_whitening_to_more_dimensions_than_rows() -> None:
    message = refused("fit-whitening", "--dataset", "lm@train", "--dim", "100")
    assert "cannot whiten 24 rows of 256 values to 100 dimensions" in message
    assert "at most 24" in message


@pytest.mark.usefixtures("place")
def test_whitening_to_more_dimensions_than_columns() -> None:
    narrow = "mobilenet-v1?width=0.03125&size=64&weights=random"
    accepted(*extract("--dataset", "lm", teachers=narrow))
    message = refused("fit-whitening", "--dataset", "lm", "--teachers", narrow, "--dim", "40")
    assert "cannot whiten 57 rows of 32 values to 40 dimensions" in message
    assert "at most 32" in message


@pytest.mark.usefixtures("place")
def test_whitening_what_was_never_extracted() -> None:
    message = refused("fit-whitening", "--dataset", "lm@query", "--dim", "2")
    assert "run `cgd extract-teachers --dataset lm@query" in message


def test_whitening_of_images_that_are_all_alike(bare: Path) -> None:
    for n in range(4):
        (bare / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), "red").save(bare / f"photos/{n}.png")
    accepted(*extract("--dataset", "folder:photos"))
    assert "all alike" in refused("fit-whitening", "--dataset", "photos", "--dim", "2")


# distillation


# settings and recipes


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.epoch=5", "unknown key 'epoch': did you mean epochs"),
        ("distil.epochs=5", "unknown section 'distil': did you mean distill"),
        ("distill.epochs=many", "distill.epochs: expected int, got 'many'"),
        ("distill.batch_norm=thaw", "unknown value 'thaw'"),
        ("distill.epochs", "expected section.key=value"),
    ],
)
def test_a_setting_that_does_not_exist(setting: str, message: str) -> None:
    assert message in refused(*distill("--set", setting))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("fit-whitening", "whiten.dim=0"),
        ("fit-whitening", "whiten.floor=-1"),
        ("fit-whitening", "whiten.samples=-5"),
        ("extract-teachers", "extract.crop_size=0"),
        ("extract-teachers", "extract.crop_aspect=[0, 1]"),
        ("extract-teachers", "extract.crop_area=[2.0, 3.0]"),
        ("extract-teachers", "extract.crop_area=[0.9, 0.1]"),
        ("extract-teachers", "extract.flip=7"),
        ("distill", "distill.epochs=0"),
        ("distill", "distill.batch_pairs=0"),
        ("distill", "distill.batch_pairs=1"),
        ("distill", "distill.image_size=0"),
        ("distill", "distill.seed=-1"),
        ("distill", "distill.learning_rate=.nan"),
        ("distill", "whiten-mtd.student_temperature=0"),
    ],
)
def test_a_setting_of_an_impossible_value(command: str, setting: str) -> None:
    before = sealed(Path("features.zarr"))
    arguments = {
        "fit-whitening": ("fit-whitening", "--dataset", "lm@train", "--set", "whiten.dim=4"),
        "extract-teachers": extract("--dataset", "lm@query", "--views", "1"),
        "distill": ("distill", "--dataset", "lm@train", "--student", SMALL, "--out", "student", *CPU,
                    "--set", "distill.image_size=32", "--set", "distill.batch_pairs=4", "--set", "distill.epochs=1"),
    }[command]  # fmt: skip
    assert setting.partition("=")[0].partition(".")[2] in refused(*arguments, "--set", setting)
    assert sealed(Path("features.zarr")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("distill:\n  epoch: 5\n", "r.yaml: distill: unknown key 'epoch': did you mean epochs"),
        ("destill: {}\n", "r.yaml: unknown section 'destill': did you mean distill"),
        ("distill:\n  epochs: [1]\n", "distill.epochs: expected int, got [1]"),
        ("distill: [\n", "r.yaml is not YAML"),
        ("", "names no training images"),
        ("data:\n  train: nobody\n", "unknown data set 'nobody'"),
        ("data:\n  train: lm@train\n", "no teacher is named"),
        ("data:\n  train: lm@train\n  benchmarks: [lmm]\n", "unknown data set 'lmm': did you mean lm"),
    ],
)
def test_a_recipe_that_cannot_be_run(place: Path, content: str, message: str) -> None:
    (place / "r.yaml").write_text(content)
    assert message in refused("run", "r.yaml", *CPU)


@pytest.mark.parametrize("damage", [b"a: [1,\n}", b"just text", b"- a\n", b"\xff\xfe", b"ab:\n  name: lm\n"])
def test_a_damaged_memory_of_places(place: Path, damage: bytes) -> None:
    (place / ".cgd/roots.yaml").write_bytes(damage)
    message = refused(*extract("--dataset", "lm@train"))
    assert "roots.yaml" in message
    assert (place / ".cgd/roots.yaml").read_bytes() == damage


# benchmarks


@pytest.mark.parametrize("broken", ["query", "easy", "hard"])
def test_a_query_or_positive_that_cannot_be_decoded_stops_an_evaluation(bare: Path, broken: str) -> None:
    message = refused(*evaluate(benchmark(bare / "made", broken)))
    assert f"the {'query' if broken == 'query' else 'positive'} '{broken}.png' of made cannot be decoded" in message
    assert not [k for k in sealed(bare / "features.zarr") if k.kind == "scores"]


@pytest.mark.parametrize("broken", ["junk", "negative"])
def test_a_negative_or_junk_image_that_cannot_be_decoded_is_never_found(bare: Path, broken: str) -> None:
    photos(bare / "more", *(f"{n}.png" for n in range(8)), seed=3)
    accepted(*extract("--dataset", "folder:more"))
    accepted("fit-whitening", "--dataset", "more", "--dim", "3")  # then a positive has a cosine below zero
    report = accepted(*evaluate(benchmark(bare / "made", broken), "--whitening", "more"))
    assert report["invalid_gallery"] == 1
    without = " ".join(n for n in ("easy", "hard", "junk", "negative") if n != broken)
    expected = accepted(*evaluate(benchmark(bare / "without", gallery=without), "--whitening", "more"))
    assert expected["invalid_gallery"] == 0
    assert report["protocols"] == expected["protocols"]


def test_a_distractor_that_cannot_be_decoded_is_left_out_and_counted(bare: Path) -> None:
    photos(bare / "more", "1.png", "2.png", "3.png", seed=5)
    (bare / "more/2.png").write_bytes(b"")
    report = accepted(*evaluate(benchmark(bare / "made"), "--distractors", "folder:more"))
    assert (report["distractors"], report["invalid_distractors"]) == (2, 1)


@pytest.mark.shared
def test_a_published_benchmark_whose_images_are_missing(bare: Path, shared: Path) -> None:
    (bare / "data/roxford5k").mkdir(parents=True)
    shutil.copy(shared / "data/revisitop/gnd_roxford5k.json", bare / "data/roxford5k")
    message = refused(*evaluate("roxford5k:data"))
    assert "jpg/" in message
    assert "is missing below data/roxford5k" in message


def test_a_benchmark_whose_ground_truth_is_damaged(bare: Path) -> None:
    text = benchmark(bare / "made")
    for damage in ('{"imlist": [', '{"imlist": []}', '{"imlist": ["easy.png"], "qimlist": ["query.png"], "gnd": [3]}'):
        (bare / "made/gnd.json").write_text(damage)
        assert "gnd.json" in refused(*evaluate(text))
    gnd = {"imlist": ["easy.png"], "qimlist": ["query.png"], "gnd": [{"bbx": [1, 2, 3], "easy": [0]}]}
    (bare / "made/gnd.json").write_text(json.dumps(gnd))
    assert "gnd.json" in refused(*evaluate(text))


def test_a_benchmark_with_neither_labels_nor_ground_truth(bare: Path) -> None:
    photos(bare / "flat", "1.png", "2.png")
    assert "no labels and no ground truth" in refused(*evaluate("folder:flat"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--distractors", "random:many"), "expected random:N with a whole number"),
        (("--distractors", "nobody"), "unknown data set 'nobody'"),
        (("--whitening", "nobody"), "run `cgd fit-whitening --dataset nobody` first"),
    ],
)
def test_parts_of_an_evaluation_that_do_not_exist(bare: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*evaluate(benchmark(bare / "made"), *arguments))


@pytest.mark.parametrize("recipe", ["", "{", "[]", "{}", '{"student": 3}', '{"student": "mobilenet-v1?width=0.25"}'])
def test_a_student_whose_folder_is_damaged(place: Path, recipe: str) -> None:
    (place / "student").mkdir()
    if recipe:
        (place / "student/recipe.json").write_text(recipe)
    assert "student" in refused("evaluate", "--student", "student", "--benchmark", "lm", *CPU)


@pytest.mark.usefixtures("place")
def test_a_student_that_does_not_exist() -> None:
    assert "no students artifact fits 'nobody'" in refused("evaluate", "--student", "nobody", "--benchmark", "lm", *CPU)


# stores


def test_a_store_that_is_a_file(bare: Path) -> None:
    photos(bare / "photos", "1.png")
    (bare / "taken").write_text("mine")
    assert "taken" in refused(*extract("--dataset", "folder:photos", "--store", "taken"))
    assert "taken" in refused("store", "ls", "--store", "taken")
    assert (bare / "taken").read_text() == "mine"


def test_a_store_that_is_a_folder_of_something_else(bare: Path) -> None:
    photos(bare / "photos", "1.png")
    message = refused(*extract("--dataset", "folder:photos", "--store", "photos"))
    assert "no feature store" in message
    assert [p.name for p in (bare / "photos").iterdir()] == ["1.png"]


@pytest.mark.usefixtures("bare")
def test_no_store_at_all() -> None:
    for command in ("ls", "verify"):
        assert "there is no feature store at features.zarr" in refused("store", command)


@pytest.mark.usefixtures("place")
def test_a_key_that_fits_nothing_or_too_much() -> None:
    assert "fits 'nobody'" in refused("store", "info", "nobody")
    message = refused("store", "info", "embeddings")
    assert "fits 2 artifacts; name one of: embeddings/lm-train" in message
