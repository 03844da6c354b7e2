"""CUB-200-2011, Cars-196 and Stanford Online Products in the layouts they are published in, made up and tiny."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cgd.data.archives import archives_below
from cgd.data.datasets import open_benchmark, open_dataset
from cgd.data.fine_grained import KINDS
from cgd.errors import InputError
from cgd.types import ImageList

BIRDS = {1: "001.Black_footed_Albatross", 100: "100.Brown_Pelican", 101: "101.White_Pelican", 200: "200.Yellowthroat"}
CARS = [f"Maker Model {n} C/V 2012" for n in range(1, 197)]
PIXELS = b"\xff\xd8 not decoded here"


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PIXELS)


def write(file: Path, lines: Sequence[str], end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(line + end for line in lines).encode())


def cub(root: Path, end: str = "\n") -> Path:
    """What CUB_200_2011.tgz unpacks to; every class has two images, and two sides for classification."""
    paths = [f"{name}/{name[4:]}_{n:04}_{n}.jpg" for name in BIRDS.values() for n in (1, 2)]
    labels = [number for number in BIRDS for _ in (1, 2)]
    top = root / "CUB_200_2011"
    write(top / "images.txt", [f"{n} {path}" for n, path in enumerate(paths, 1)], end)
    write(top / "image_class_labels.txt", [f"{n} {label}" for n, label in enumerate(labels, 1)], end)
    write(top / "classes.txt", [f"{number} {name}" for number, name in BIRDS.items()], end)
    write(top / "train_test_split.txt", [f"{n} {n % 2}" for n in range(1, 9)], end)
    write(top / "bounding_boxes.txt", [f"{n} 60.0 27.0 325.0 304.0" for n in range(1, 9)], end)
    touch(top, *(f"images/{path}" for path in paths))
    touch(root, "attributes.txt")
    return top


def structs(**columns: Sequence[Any]) -> np.ndarray:
    """A 1 x N struct array, as MATLAB has it."""
    rows = list(zip(*columns.values(), strict=True))
    return np.array([rows], dtype=[(name, object) for name in columns])


def cars(root: Path, order: Sequence[int] = (1, 98, 99, 196)) -> Path:
    """car_ims.tgz unpacked, with cars_annos.mat beside it."""
    classes = [c for c in order for _ in (1, 2)]
    paths = [f"car_ims/{n:06}.jpg" for n in range(1, len(classes) + 1)]
    box = {f"bbox_{side}": [30.0] * len(paths) for side in ("x1", "y1", "x2", "y2")}
    annotations = structs(relative_im_path=paths, **box, **{"class": classes}, test=[n % 2 for n in range(len(paths))])
    names = np.array([CARS], dtype=object)
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": names}, do_compression=True)
    touch(root, *paths)
    return root


def devkit(root: Path) -> Path:
    """The challenge's folders, whose sides have images of all classes."""
    for file, folder in (
        ("devkit/cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        names = [f"{n:05}.jpg" for n in range(1, 5)]
        box = {f"bbox_{side}": [30.0] * 4 for side in ("x1", "y1", "x2", "y2")}
        (root / "devkit").mkdir(parents=True, exist_ok=True)
        savemat(root / file, {"annotations": structs(**box, **{"class": [1, 98, 99, 196]}, fname=names)})
        touch(root, *(f"{folder}/{name}" for name in names))
    return root


def sop(root: Path, end: str = "\n") -> Path:
    """What Stanford_Online_Products.zip unpacks to; the last class of the test has one image."""
    top = root / "Stanford_Online_Products"
    sides = {"train": [1, 1, 2, 2], "test": [11319, 11319, 11320]}
    image = 0
    for split, labels in sides.items():
        lines = ["image_id class_id super_class_id path"]
        for label in labels:
            image += 1
            lines.append(f"{image} {label} 1 bicycle_final/{110000 + label}_{image}.JPG")
        write(top / f"Ebay_{split}.txt", lines, end)
        touch(top, *(line.split()[3] for line in lines[1:]))
    return top


MAKE: dict[str, Callable[[Path], Path]] = {"cub200": cub, "cars196": cars, "sop": sop}
TOP = {"cub200": "CUB_200_2011", "cars196": "car_ims", "sop": "Stanford_Online_Products"}
every_kind = pytest.mark.parametrize("kind", MAKE)


def both(text: str) -> tuple[ImageList, ImageList]:
    return open_dataset(text, split="train"), open_dataset(text, split="test")


@every_kind
def test_the_first_half_of_the_classes_is_trained_on_and_the_other_searched(tmp_path: Path, kind: str) -> None:
    MAKE[kind](tmp_path)
    train, test = both(f"{kind}:{tmp_path}")
    assert train.labels is not None
    assert test.labels is not None
    expected = {
        "cub200": (BIRDS[1], BIRDS[1], BIRDS[100], BIRDS[100]),
        "cars196": ("001.Maker Model 1 C/V 2012",) * 2 + ("098.Maker Model 98 C/V 2012",) * 2,
        "sop": ("1", "1", "2", "2"),
    }
    assert train.labels == expected[kind]
    assert not set(train.labels) & set(test.labels)
    assert all((tmp_path / path).is_file() for images in (train, test) for path in images.paths)
    assert train.boxes is test.boxes is None  # queries are whole images in the published protocol
    assert open_dataset(f"{kind}:{tmp_path}").ids == train.ids


@every_kind
def test_a_benchmark_is_every_test_image_against_the_others(tmp_path: Path, kind: str) -> None:
    MAKE[kind](tmp_path)
    found = open_benchmark(f"{kind}:{tmp_path}")
    assert found.leave_one_out
    assert found.gallery.ids == open_dataset(f"{kind}:{tmp_path}", split="test").ids
    assert found.gallery.title == f"{kind}@test"
    assert found.recall_at == {"sop": (1, 10, 100, 1000)}.get(kind, (1, 2, 4, 8, 16))


@pytest.mark.parametrize(("kind", "make"), [("cub200", cub), ("sop", sop)])
def test_the_folder_itself_or_the_one_above_and_lines_of_windows(tmp_path: Path, kind: str, make: Any) -> None:
    top = make(tmp_path, end="\r\n")
    above, itself = both(f"{kind}:{tmp_path}"), both(f"{kind}:{top}")
    assert [part.ids for part in above] == [part.ids for part in itself]
    assert [part.labels for part in above] == [part.labels for part in itself]
    assert above[0].paths[0] == f"{TOP[kind]}/{itself[0].paths[0]}"


def test_the_challenges_folders_of_cars_are_split_by_class_too(tmp_path: Path) -> None:
    train, test = both(f"cars196:{devkit(tmp_path)}")
    assert train.labels == ("001", "098") * 2
    assert test.labels == ("099", "196") * 2
    assert train.paths == tuple(f"cars_{side}/0000{n}.jpg" for side in ("train", "test") for n in (1, 2))
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(InputError, match=r"cars_test_annos_withlabels\.mat is missing beside devkit/cars_train_annos"):
        open_dataset(f"cars196:{tmp_path}")


@every_kind
def test_folders_of_classes_are_enough(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.JPG", "test/c/3.jpg", "test/c/notes.txt")
    train, test = both(f"{kind}:{tmp_path}")
    assert (train.ids, train.labels) == (("a/1.jpg", "b/2.JPG"), ("a", "b"))
    assert (test.paths, test.labels) == (("test/c/3.jpg",), ("c",))


def test_folders_of_classes_have_the_ids_of_the_published_birds(tmp_path: Path) -> None:
    top = cub(tmp_path / "published")
    for image in (top / "images").glob("*/*"):
        side = "train" if int(image.parent.name[:3]) <= 100 else "test"
        touch(tmp_path / "folders", f"{side}/{image.parent.name}/{image.name}")
    published, folders = both(f"cub200:{tmp_path}/published"), both(f"cub200:{tmp_path}/folders")
    assert [(p.ids, p.labels) for p in published] == [(f.ids, f.labels) for f in folders]


@every_kind
def test_other_counts_than_the_published_are_a_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    MAKE[kind](tmp_path)
    with caplog.at_level(logging.WARNING, "cgd"):
        open_dataset(f"{kind}:{tmp_path}", split="test")
    known = {"cub200": "5,924", "cars196": "8,131", "sop": "60,502"}[kind]
    assert f"{known} are published" in caplog.text


@every_kind
def test_an_empty_folder_says_how_it_must_look(tmp_path: Path, kind: str) -> None:
    file = {"cub200": "CUB_200_2011/images.txt", "cars196": "cars_annos.mat"}.get(
        kind, "Stanford_Online_Products/Ebay_train.txt"
    )
    with pytest.raises(InputError, match=rf"holds no .*must hold {file}.* or train/<class>/ and test/<class>/"):
        open_dataset(f"{kind}:{tmp_path}")
    with pytest.raises(InputError, match="does not exist"):
        open_dataset(f"{kind}:{tmp_path}/nowhere")


@every_kind
def test_half_unpacked_says_what_is_missing_and_where_it_comes_from(tmp_path: Path, kind: str) -> None:
    MAKE[kind](tmp_path)
    lost = open_dataset(f"{kind}:{tmp_path}", split="test").paths[0]
    (tmp_path / lost).unlink()
    assert len(open_dataset(f"{kind}:{tmp_path}", split="train")) == 4
    archive = {"cub200": r"CUB_200_2011\.tgz", "cars196": r"car_ims\.tgz"}.get(kind, r"Stanford_Online_Products\.zip")
    with pytest.raises(InputError, match=rf"1 of \d images looked for are missing, e\.g\. {lost}.*from {archive}"):
        open_dataset(f"{kind}:{tmp_path}", split="test")


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("cub200", "CUB_200_2011/image_class_labels.txt"),
        ("cub200", "CUB_200_2011/classes.txt"),
        ("cub200", "CUB_200_2011/images.txt"),
        ("sop", "Stanford_Online_Products/Ebay_test.txt"),
    ],
)
def test_a_list_that_is_missing_is_named(tmp_path: Path, kind: str, file: str) -> None:
    MAKE[kind](tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=rf"as published: {file} is missing beside"):
        open_dataset(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(("kind", "pack"), [("cub200", ["CUB_200_2011"]), ("cars196", ["car_ims"])])
def test_what_stays_in_its_archive_is_read_there(tmp_path: Path, kind: str, pack: list[str]) -> None:
    """The tar as it is distributed, decompressed; of the birds it holds the lists as well."""
    MAKE[kind](tmp_path / "files")
    there = tmp_path / "there"
    there.mkdir()
    with tarfile.open(there / f"{pack[0]}.tar", "w") as archive:
        for folder in pack:
            archive.add(tmp_path / "files" / folder, folder)
    if kind == "cars196":
        (tmp_path / "files/cars_annos.mat").rename(there / "cars_annos.mat")
        (tmp_path / "files/car_ims").rename(tmp_path / "elsewhere")
    train, _ = both(f"{kind}:{there}")
    assert len(train) == 4
    assert archives_below(there).read(train.paths[0]) == PIXELS


def test_a_compressed_archive_says_how_it_can_be_read(tmp_path: Path) -> None:
    cub(tmp_path / "files")
    there = tmp_path / "there"
    there.mkdir()
    with tarfile.open(there / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(tmp_path / "files/CUB_200_2011", "CUB_200_2011")
    with pytest.raises(InputError, match=r"not read \(CUB_200_2011\.tgz\), run `gunzip .*there/\*\.tgz` once"):
        open_dataset(f"cub200:{there}")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "001.Black_footed_Albatross/../../a", "C:/a"])
@every_kind
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path: Path, kind: str, path: str) -> None:
    top = MAKE[kind](tmp_path)
    if kind == "cub200":
        lines = (top / "images.txt").read_text().splitlines()
        write(top / "images.txt", [f"1 {path}", *lines[1:]])
    elif kind == "sop":
        write(top / "Ebay_train.txt", ["image_id class_id super_class_id path", f"1 1 1 {path}"])
    else:
        savemat(top / "cars_annos.mat", {"annotations": structs(relative_im_path=[path], **{"class": [1]})})
    with pytest.raises(InputError, match=r"is no path of an image|do not fit"):
        open_dataset(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
    ("file", "lines", "told"),
    [
        ("images.txt", ["1 001.Black_footed_Albatross/a.jpg"] * 2, "line 2: '1' is there twice"),
        ("images.txt", ["1"], "line 1: '1' has not 2 columns"),
        ("image_class_labels.txt", ["2 1"], "do not fit: the image 1"),
        ("image_class_labels.txt", ["1 100"], "do not fit: the image 1, .* is of the class '100.Brown_Pelican'"),
        ("classes.txt", ["1 201.None"], "do not fit"),
    ],
)
def test_lists_of_birds_that_do_not_fit_are_refused(tmp_path: Path, file: str, lines: list[str], told: str) -> None:
    write(cub(tmp_path) / file, lines)
    with pytest.raises(InputError, match=told):
        open_dataset(f"cub200:{tmp_path}")


def test_a_class_that_is_not_of_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"names the class 197, but there are 196"):
        open_dataset(f"cars196:{cars(tmp_path, (1, 197))}")


def test_products_named_twice_or_cut_short_are_refused(tmp_path: Path) -> None:
    file = sop(tmp_path) / "Ebay_train.txt"
    head, first, *_ = file.read_text().splitlines()
    write(file, [head, first, first])
    with pytest.raises(InputError, match="twice"):
        open_dataset(f"sop:{tmp_path}")
    write(file, [head, first, "3 1 1"])
    with pytest.raises(InputError, match="line 3: '3 1 1' has not 4 columns"):
        open_dataset(f"sop:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no MATLAB file of version 5"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "is no MATLAB file of version 5"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + bytes(40), "is damaged"),
    ],
)
def test_a_damaged_file_of_matlab_is_one_sentence(tmp_path: Path, content: bytes, told: str) -> None:
    (cars(tmp_path) / "cars_annos.mat").write_bytes(content)
    with pytest.raises(InputError, match=rf"cars_annos\.mat {told}"):
        open_dataset(f"cars196:{tmp_path}")


def test_another_file_of_matlab_is_refused(tmp_path: Path) -> None:
    savemat(cars(tmp_path) / "cars_annos.mat", {"annotations": structs(fname=["a.jpg"], **{"class": [1]})})
    with pytest.raises(InputError, match="holds no annotations of Cars-196 with `relative_im_path` and `class`"):
        open_dataset(f"cars196:{tmp_path}")


@every_kind
def test_a_split_that_there_is_not_is_refused(tmp_path: Path, kind: str) -> None:
    MAKE[kind](tmp_path)
    with pytest.raises(InputError, match=f"unknown split of {kind} 'val'"):
        open_dataset(f"{kind}:{tmp_path}", split="val")


def test_the_published_counts_are_those_of_the_papers() -> None:
    assert {kind: known.counts for kind, known in KINDS.items()} == {
        "cub200": (5_864, 5_924), "cars196": (8_054, 8_131), "sop": (59_551, 60_502)
    }  # fmt: skip
