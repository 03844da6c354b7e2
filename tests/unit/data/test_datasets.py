"""Data sets opened from KIND:PATH: what is listed, under which names, and what is refused."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cgd.data.datasets import default_name, label_truth, open_benchmark, open_dataset
from cgd.errors import InputError
from cgd.types import ImageList


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)
    return path


def manifest(folder: Path, *rows: tuple[str, ...], name: str = "manifest.csv") -> str:
    with open(folder / name, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return f"manifest:{folder / name}"


def listed(ids: str, labels: str | None = None, name: str = "made") -> ImageList:
    names = tuple(ids.split())
    return ImageList(name, None, names, names, labels=tuple(labels.split()) if labels else None)


# folder


def test_a_folder_is_listed_by_relative_path_and_labelled_by_its_sub_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.PNG", "a/deep/3.jpg", "b/1.webp"):
        picture(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("no image")
    images = open_dataset(f"folder:{tmp_path}", "photos")
    assert images.ids == ("a/1.PNG", "a/deep/3.jpg", "b/1.webp", "b/2.png")
    assert images.paths == images.ids
    assert images.labels == ("a", "a/deep", "b", "b")
    assert (images.name, images.split, images.root, images.boxes) == ("photos", None, tmp_path, None)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    assert open_dataset(f"folder:{tmp_path}").labels is None


def test_symbolic_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    picture(elsewhere / "far.png")
    root = tmp_path / "root"
    picture(root / "near/1.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "near/2.png").symlink_to(elsewhere / "far.png")
    images = open_dataset(f"folder:{root}")
    assert images.ids == ("linked/far.png", "near/1.png", "near/2.png")
    assert images.labels == ("linked", "near", "near")


def test_a_cycle_of_links_ends_and_lists_each_image_once(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")
    (tmp_path / "a/back").symlink_to(tmp_path)
    (tmp_path / "a/itself").symlink_to(tmp_path / "a")
    assert open_dataset(f"folder:{tmp_path}").ids == ("a/1.png",)


class _Backwards:
    """A directory listing in the opposite order, as another file system may give it."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self.entries = iter(entries[::-1])

    def __enter__(self) -> "_Backwards":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> "_Backwards":
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)

    def close(self) -> None:
        pass


def test_a_folder_reached_by_two_names_does_not_depend_on_the_order_of_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "tower/1.png")
    (tmp_path / "belfry").symlink_to(tmp_path / "tower")
    forwards = open_dataset(f"folder:{tmp_path}").ids
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: _Backwards(list(scandir(path))))
    assert open_dataset(f"folder:{tmp_path}").ids == forwards


def test_a_folder_has_no_splits(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    with pytest.raises(InputError, match="no splits"):
        open_dataset(f"folder:{tmp_path}", split="train")


def test_a_missing_folder_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        open_dataset(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        open_dataset(f"folder:{tmp_path / 'empty'}")


# KIND:PATH


@pytest.mark.parametrize("text", ["photos", "folder:", ":photos", ""])
def test_text_that_is_no_kind_and_path_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        open_dataset(text)


def test_a_misspelt_kind_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean manifest"):
        open_dataset("manifets:photos/manifest.csv")


def test_default_names_come_from_the_folder_or_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_name("folder:photos") == "photos"
    assert default_name("folder:.") == tmp_path.name
    assert default_name("manifest:shop/manifest.csv") == "shop"
    assert default_name("roxford5k:anywhere") == "roxford5k"
    assert default_name("synthetic:landmarks?labels=4&seed=2") == "landmarks-labels-4-seed-2"


# manifest


def test_a_manifest_gives_ids_paths_labels_and_boxes_in_its_order(tmp_path: Path) -> None:
    text = manifest(
        tmp_path,
        ("image_id", "path", "label", "split", "bbx"),
        ("007", "x/7.png", "NA", "train", "1 2.5 30 40"),
        ("b", "x/1.png", "tower", "test", ""),
    )
    images = open_dataset(text, "shop")
    assert images.ids == ("007", "b")
    assert images.paths == ("x/7.png", "x/1.png")
    assert images.labels == ("NA", "tower")
    assert images.boxes == ((1.0, 2.5, 30.0, 40.0), None)
    assert images.root == tmp_path


def test_a_manifest_needs_neither_labels_nor_boxes_nor_splits(tmp_path: Path) -> None:
    images = open_dataset(manifest(tmp_path, ("image_id", "path"), ("a", "a.png")))
    assert (images.labels, images.boxes, images.split) == (None, None, None)


def test_a_split_of_a_manifest_is_its_rows_only(tmp_path: Path) -> None:
    rows = [("a", "a.png", "train"), ("b", "b.png", "query"), ("c", "c.png", "train")]
    text = manifest(tmp_path, ("image_id", "path", "split"), *rows)
    images = open_dataset(text, "shop", "train")
    assert images.ids == ("a", "c")
    assert images.title == "shop@train"


def test_an_unknown_split_offers_the_nearest(tmp_path: Path) -> None:
    text = manifest(tmp_path, ("image_id", "path", "split"), ("a", "a.png", "train"))
    with pytest.raises(InputError, match=r"'trian'.*did you mean train"):
        open_dataset(text, split="trian")


def test_a_manifest_without_the_column_split_has_no_splits(tmp_path: Path) -> None:
    text = manifest(tmp_path, ("image_id", "path"), ("a", "a.png"))
    with pytest.raises(InputError, match="no column 'split'; it has image_id, path"):
        open_dataset(text, split="train")


@pytest.mark.parametrize("missing", ["image_id", "path"])
def test_a_manifest_without_a_needed_column_names_it(tmp_path: Path, missing: str) -> None:
    kept = {"image_id": "path", "path": "image_id"}[missing]
    with pytest.raises(InputError, match=f"no column '{missing}'; it has {kept}, label"):
        open_dataset(manifest(tmp_path, (kept, "label"), ("a.png", "x")))


def test_an_id_given_twice_is_refused_by_name(tmp_path: Path) -> None:
    text = manifest(tmp_path, ("image_id", "path"), ("a", "1.png"), ("twin", "2.png"), ("twin", "3.png"))
    with pytest.raises(InputError, match="'twin' twice"):
        open_dataset(text)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../1.png", "a/../../1.png", "..", "C:\\1.png", "a\\..\\..\\1.png", "", ".", "./"]
)
def test_paths_that_leave_the_manifests_folder_or_name_no_file_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="relative to the manifest"):
        open_dataset(manifest(tmp_path, ("image_id", "path"), ("a", path)))


def test_a_name_that_only_begins_with_dots_is_an_ordinary_path(tmp_path: Path) -> None:
    rows = [("a", "..a/1.png"), ("b", "x/..2.png")]
    assert open_dataset(manifest(tmp_path, ("image_id", "path"), *rows)).paths == ("..a/1.png", "x/..2.png")


@pytest.mark.parametrize("box", ["1 2 3", "1 2 3 4 5", "a b c d", "1,2,3,4"])
def test_a_box_that_is_not_four_numbers_is_refused(tmp_path: Path, box: str) -> None:
    with pytest.raises(InputError, match="expected 'x1 y1 x2 y2'"):
        open_dataset(manifest(tmp_path, ("image_id", "path", "bbx"), ("a", "a.png", box)))


def test_a_missing_or_empty_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_dataset(f"manifest:{tmp_path / 'manifest.csv'}")
    (tmp_path / "manifest.csv").write_text("")
    with pytest.raises(InputError, match="cannot read the manifest"):
        open_dataset(f"manifest:{tmp_path / 'manifest.csv'}")


def test_a_manifest_with_too_many_cells_in_a_row_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("image_id,path\na,a.png\nb,b.png,c,d\n")
    with pytest.raises(InputError, match="cannot read the manifest") as caught:
        open_dataset(f"manifest:{tmp_path / 'manifest.csv'}")
    assert "\n" not in str(caught.value)


def test_parquet_and_csv_give_the_same_list(tmp_path: Path) -> None:
    rows = [("01", "a.png", "3", "train", "1 2 3 4"), ("02", "b.png", "4", "test", "")]
    columns = ("image_id", "path", "label", "split", "bbx")
    text = manifest(tmp_path, columns, *rows)
    pd.DataFrame(rows, columns=list(columns)).to_parquet(tmp_path / "manifest.parquet")
    other = f"manifest:{tmp_path / 'manifest.parquet'}"
    assert open_dataset(other, "shop") == open_dataset(text, "shop")
    assert open_dataset(other, "shop", "test") == open_dataset(text, "shop", "test")


def test_numbers_in_a_parquet_manifest_become_text(tmp_path: Path) -> None:
    table = pd.DataFrame({"image_id": [10, 11], "path": ["a.png", "b.png"], "label": [3, 4]})
    table.to_parquet(tmp_path / "manifest.parquet")
    images = open_dataset(f"manifest:{tmp_path / 'manifest.parquet'}")
    assert (images.ids, images.labels) == (("10", "11"), ("3", "4"))


def test_a_cell_missing_in_parquet_is_the_empty_cell_of_csv(tmp_path: Path) -> None:
    columns = {"image_id": ["a", "b"], "path": ["a.png", "b.png"], "label": ["x", None], "bbx": ["1 2 3 4", None]}
    pd.DataFrame(columns).to_parquet(tmp_path / "manifest.parquet")
    images = open_dataset(f"manifest:{tmp_path / 'manifest.parquet'}")
    assert images.boxes == ((1.0, 2.0, 3.0, 4.0), None)
    assert images.labels == ("x", "")


# benchmarks


def test_query_and_gallery_splits_make_a_labelled_benchmark(tmp_path: Path) -> None:
    rows = [("q", "q.png", "x", "query"), ("g", "g.png", "x", "gallery"), ("t", "t.png", "x", "train")]
    benchmark = open_benchmark(manifest(tmp_path, ("image_id", "path", "label", "split"), *rows), "shop")
    assert benchmark.queries.ids == ("q",)
    assert benchmark.gallery.ids == ("g",)
    assert benchmark.truth is None
    assert not benchmark.leave_one_out


@pytest.mark.parametrize("splits", [("query", "query"), ("gallery", "gallery"), ("train", "query")])
def test_without_both_splits_every_image_is_searched_among_all_others(tmp_path: Path, splits: tuple[str, str]) -> None:
    rows = [("a", "a.png", "x", splits[0]), ("b", "b.png", "x", splits[1])]
    benchmark = open_benchmark(manifest(tmp_path, ("image_id", "path", "label", "split"), *rows))
    assert benchmark.leave_one_out
    assert benchmark.gallery.ids == ("a", "b")


def test_a_labelled_folder_is_a_leave_one_out_benchmark(tmp_path: Path) -> None:
    picture(tmp_path / "x/1.png")
    picture(tmp_path / "y/2.png")
    benchmark = open_benchmark(f"folder:{tmp_path}")
    assert benchmark.leave_one_out
    assert benchmark.truth is None


def with_truth(folder: Path, gallery: list[str], queries: list[str], boxes: list[list[float] | None]) -> str:
    gnd = [{"bbx": b, "easy": [0], "hard": [], "junk": []} for b in boxes]
    (folder / "gnd.json").write_text(json.dumps({"imlist": gallery, "qimlist": queries, "gnd": gnd}))
    rows = [("one", "x/1.png", "l1", "9 9 9 9"), ("two", "x/2.png", "l2", ""), ("three", "one", "l3", "")]
    return manifest(folder, ("image_id", "path", "label", "bbx"), *rows)


def test_ground_truth_beside_a_manifest_names_paths_first_then_ids(tmp_path: Path) -> None:
    text = with_truth(tmp_path, ["two", "one"], ["x/1.png", "x/2.png"], [[1, 2, 3, 4], None])
    benchmark = open_benchmark(text, "shop")
    assert benchmark.gallery.ids == ("two", "three")  # the path 'one' goes before the image_id 'one'
    assert benchmark.gallery.paths == ("x/2.png", "one")
    assert benchmark.gallery.labels == ("l2", "l3")
    assert benchmark.queries.ids == ("one", "two")
    assert benchmark.queries.boxes == ((1.0, 2.0, 3.0, 4.0), None)  # not the manifest's
    assert benchmark.gallery.title == "shop@gallery"
    assert benchmark.truth is not None


def test_ground_truth_that_names_an_unknown_image_is_refused(tmp_path: Path) -> None:
    text = with_truth(tmp_path, ["two"], ["x/9.png"], [None])
    with pytest.raises(InputError, match=r"'x/9.png', neither a path nor an image_id"):
        open_benchmark(text)


def test_drawn_landmarks_are_a_benchmark_with_ground_truth(drawn: Path) -> None:
    benchmark = open_benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm")
    known = json.loads((drawn / "gnd.json").read_text())
    assert list(benchmark.gallery.paths) == known["imlist"]
    assert list(benchmark.queries.paths) == known["qimlist"]
    assert [list(b or ()) for b in benchmark.queries.boxes or ()] == [g["bbx"] for g in known["gnd"]]


# labels as ground truth


def test_positives_are_the_gallery_images_of_the_querys_label() -> None:
    gallery, queries = listed("a b c d e", "x y x z y"), listed("q r s", "y x w")
    truth = label_truth(gallery, queries, leave_one_out=False)
    for q, label in enumerate(queries.labels or ()):
        assert truth.easy[q].tolist() == [g for g, other in enumerate(gallery.labels or ()) if other == label]
        assert len(truth.hard[q]) == len(truth.junk[q]) == 0
    assert all(part.dtype == np.int64 for parts in (truth.easy, truth.hard, truth.junk) for part in parts)


def test_leave_one_out_makes_the_query_itself_junk() -> None:
    images = listed("a b c d", "x y x x")
    truth = label_truth(images, images, leave_one_out=True)
    assert [e.tolist() for e in truth.easy] == [[2, 3], [], [0, 3], [0, 2]]
    assert [j.tolist() for j in truth.junk] == [[0], [1], [2], [3]]


def test_nothing_is_scored_by_label_without_labels() -> None:
    with pytest.raises(InputError, match="no labels and no ground truth"):
        label_truth(listed("a b"), listed("a b", "x y"), leave_one_out=False)
    with pytest.raises(InputError, match="no labels and no ground truth"):
        label_truth(listed("a b", "x y"), listed("a b"), leave_one_out=False)


# published data sets


@pytest.mark.parametrize("place", ["", "meta", "train"])
def test_gldv2_clean_is_read_from_each_place_of_its_list(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    lines = "landmark_id,images\n17,abc0000000000001 0de0000000000002\n4,fff0000000000003\n"
    (tmp_path / place / "train_clean.csv").write_text(lines)
    unpack(tmp_path, "train/a/b/c/abc0000000000001.jpg", "train/0/d/e/0de0000000000002.jpg",
           "train/f/f/f/fff0000000000003.jpg")  # fmt: skip
    images = open_dataset(f"gldv2-clean:{tmp_path}")
    assert images.ids == ("abc0000000000001", "0de0000000000002", "fff0000000000003")
    assert images.labels == ("17", "17", "4")
    assert images.paths[1] == "train/0/d/e/0de0000000000002.jpg"
    assert images.name == "gldv2-clean"


def unpack(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_gldv2_clean_half_unpacked_says_what_is_missing_and_how_it_must_look(tmp_path: Path) -> None:
    ids = [f"{n:02x}c000000000{n:04x}" for n in range(100)]
    (tmp_path / "train_clean.csv").write_text("landmark_id,images\n1," + " ".join(ids) + "\n")
    unpack(tmp_path, *(f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids[:60]))
    with pytest.raises(InputError, match=r"13 of 32 images looked for are missing, e\.g\. train/3/c/c/.*train/a/b/c/"):
        open_dataset(f"gldv2-clean:{tmp_path}")


SFM = {
    "train": {"cids": ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210", "aaaaaabbbbbb"],
              "cluster": [5, 5, 9], "qidxs": [0], "pidxs": [1], "bbxs": None},
    "val": {"cids": ["00000000112233"], "cluster": [5], "qidxs": [], "pidxs": []},
}  # fmt: skip
SFM_FILES = (
    "ims/ef/cd/ab/0123456789abcdef0123456789abcdef",
    "ims/10/32/54/fedcba9876543210fedcba9876543210",
    "ims/bb/bb/bb/aaaaaabbbbbb",
    "ims/33/22/11/00000000112233",
)


@pytest.mark.parametrize("arrays", [False, True], ids=["lists", "arrays"])
def test_sfm120k_is_read_from_its_published_layout(tmp_path: Path, arrays: bool) -> None:
    content: Any = SFM
    if arrays:
        content = {k: {**v, "cluster": np.array(v["cluster"], np.int64)} for k, v in SFM.items()}
    (tmp_path / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(content, 2))
    unpack(tmp_path, *SFM_FILES)
    images = open_dataset(f"sfm120k:{tmp_path}")
    assert images.paths == SFM_FILES[:3]
    assert images.labels == ("train-5", "train-5", "train-9")
    assert images.ids == tuple(SFM["train"]["cids"])
    assert open_dataset(f"sfm120k:{tmp_path}", split="val").paths == SFM_FILES[3:]
    with pytest.raises(InputError, match="unknown split of sfm120k 'test'"):
        open_dataset(f"sfm120k:{tmp_path}", split="test")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"val": SFM["val"]}, "no cids and clusters of 'train'"),
        ([1], "no cids and clusters of 'train'"),
        ({"train": {"cids": ["abcdefgh"], "cluster": []}}, "1 images of 'train', 0 of them with a model"),
        ({"train": {"cids": ["../../etc/passwd"], "cluster": [1]}}, "is no name of an image"),
        ({"train": {"cids": [b"abcdefgh"], "cluster": [1]}}, "is no name of an image"),
        (Path("x"), "is refused: it is not a pickle of plain values"),
    ],
)
def test_a_damaged_sfm120k_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    (tmp_path / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(InputError, match=told):
        open_dataset(f"sfm120k:{tmp_path}")


def test_sfm120k_half_unpacked_says_what_is_missing_and_how_it_must_look(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no retrieval-SfM-120k\.pkl; it must hold that file, and the images"):
        open_dataset(f"sfm120k:{tmp_path}")
    (tmp_path / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(SFM, 2))
    unpack(tmp_path, *SFM_FILES[:2])
    with pytest.raises(InputError, match=r"1 of 3 images looked for are missing, e\.g\. ims/bb/bb/bb/aaaaaabbbbbb"):
        open_dataset(f"sfm120k:{tmp_path}")


def test_gldv2_clean_without_its_list_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no train_clean.csv, neither at its top nor in meta/ or train/"):
        open_dataset(f"gldv2-clean:{tmp_path}")


@pytest.mark.shared
@pytest.mark.parametrize("suffix", [".json", ".pkl"])
@pytest.mark.parametrize(("kind", "gallery"), [("roxford5k", 4993), ("rparis6k", 6322)])
def test_revisited_benchmarks_are_opened_from_the_published_files(
    tmp_path: Path, shared: Path, kind: str, gallery: int, suffix: str
) -> None:
    (tmp_path / kind).mkdir()
    shutil.copy(shared / f"data/revisitop/gnd_{kind}{suffix}", tmp_path / kind)
    published = json.loads((shared / f"data/revisitop/gnd_{kind}.json").read_text())
    benchmark = open_benchmark(f"{kind}:{tmp_path}")
    assert (len(benchmark.gallery), len(benchmark.queries)) == (gallery, 70)
    assert list(benchmark.gallery.ids) == published["imlist"]
    assert benchmark.queries.paths[0] == f"jpg/{published['qimlist'][0]}.jpg"
    assert benchmark.gallery.root == tmp_path / kind
    assert benchmark.truth is not None
    assert benchmark.truth.hard[3].tolist() == published["gnd"][3]["hard"]
    assert list((benchmark.queries.boxes or ())[5] or ()) == published["gnd"][5]["bbx"]
    assert open_dataset(f"{kind}:{tmp_path}", split="query").ids == benchmark.queries.ids
    assert open_dataset(f"{kind}:{tmp_path}", split="gallery").ids == benchmark.gallery.ids


@pytest.mark.shared
def test_a_revisited_benchmark_has_no_other_splits_than_query_and_gallery(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "roxford5k").mkdir()
    shutil.copy(shared / "data/revisitop/gnd_roxford5k.json", tmp_path / "roxford5k")
    with pytest.raises(InputError, match="train"):
        open_dataset(f"roxford5k:{tmp_path}", split="train")


def test_a_revisited_benchmark_without_ground_truth_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_benchmark(f"roxford5k:{tmp_path}")
    (tmp_path / "roxford5k").mkdir()
    with pytest.raises(InputError, match=r"neither gnd_roxford5k.json nor gnd_roxford5k.pkl"):
        open_benchmark(f"roxford5k:{tmp_path}")


def test_the_million_distractors_are_the_lines_of_their_list(tmp_path: Path) -> None:
    (tmp_path / "revisitop1m").mkdir()
    (tmp_path / "revisitop1m/revisitop1m.txt").write_text("1/one.jpg\n2/two.jpeg\n\n  \n3/three.jpg\n")
    images = open_dataset(f"revisitop1m:{tmp_path}")
    assert images.ids == ("1/one.jpg", "2/two.jpeg", "3/three.jpg")
    assert images.paths == ("jpg/1/one.jpg", "jpg/2/two.jpeg", "jpg/3/three.jpg")
    assert (images.root, images.labels) == (tmp_path / "revisitop1m", None)


def test_the_million_distractors_without_their_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "revisitop1m").mkdir()
    with pytest.raises(InputError, match=r"revisitop1m.txt does not exist"):
        open_dataset(f"revisitop1m:{tmp_path}")


def test_a_published_set_without_splits_has_none_to_ask_for(tmp_path: Path) -> None:
    """Otherwise a misspelt split is the whole set under another name."""
    (tmp_path / "train_clean.csv").write_text("landmark_id,images\n17,abc0000000000001\n")
    (tmp_path / "revisitop1m").mkdir()
    (tmp_path / "revisitop1m/revisitop1m.txt").write_text("1/one.jpg\n")
    for kind in ("gldv2-clean", "revisitop1m"):
        with pytest.raises(InputError, match="nonsense"):
            open_dataset(f"{kind}:{tmp_path}", split="nonsense")


# drawn


def test_drawn_landmarks_stand_below_the_working_directory_and_are_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "synthetic:landmarks?labels=2&images=2&distractors=0"
    images = open_dataset(text, split="train")
    assert images.labels == ("0000", "0000", "0001", "0001")
    assert images.root is not None
    assert (tmp_path / images.root / images.paths[0]).is_file()
    assert (tmp_path / images.root).is_relative_to(tmp_path / ".cgd/synthetic")
    stamp = (images.root / images.paths[0]).stat().st_mtime_ns
    assert open_dataset(text, split="train") == images
    assert (images.root / images.paths[0]).stat().st_mtime_ns == stamp
    assert open_benchmark(text).truth is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthetic:landmark", "did you mean landmarks"),
        ("synthetic:landmarks?label=4", "did you mean labels"),
        ("synthetic:landmarks?labels=many", "should be int"),
        ("synthetic:landmarks?labels=1", "at least 2 labels"),
        ("synthetic:landmarks?labels=2&images=2&distractors=0&seed=-1", "seed"),
    ],
)
def test_drawn_landmarks_that_cannot_be_drawn_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_dataset(text)
