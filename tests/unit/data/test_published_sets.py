"""Revisited Oxford and Paris and the million distractors, in the layouts they are published in, made up and tiny."""

from __future__ import annotations

import json
import pickle
import pickletools
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cgd.data.archives import archives_below
from cgd.data.datasets import open_benchmark, open_dataset
from cgd.errors import InputError

KINDS = ("roxford5k", "rparis6k")
GALLERY = [f"tower_{n:06}" for n in range(40)]
QUERIES = ["spire_000001", "spire_000002"]
GND = [
    {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [0, 2], "hard": [39], "junk": [1]},
    {"bbx": [130, 17, 843, 732], "easy": [], "hard": [3, 4], "junk": []},  # whole numbers in some of the published ones
]
CONTENT = {"gnd": GND, "imlist": GALLERY, "qimlist": QUERIES}


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def write_truth(root: Path, kind: str, form: str = "pkl", content: Any = CONTENT) -> Path:
    """The file as it is published: a pickle of protocol 3, or the same content as JSON."""
    file = root / kind / f"gnd_{kind}.{form}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, 3) if form == "pkl" else json.dumps(content).encode())
    return file


def benchmark(root: Path, kind: str, form: str = "pkl") -> Path:
    write_truth(root, kind, form)
    touch(root / kind, *(f"jpg/{name}.jpg" for name in (*GALLERY, *QUERIES)))
    return root / kind


# revisited Oxford and Paris


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_up_here_is_of_the_published_form(tmp_path: Path, shared: Path, kind: str) -> None:
    made, published = (
        path.read_bytes() for path in (write_truth(tmp_path, kind), shared / f"data/revisitop/gnd_{kind}.pkl")
    )
    assert made[:2] == published[:2] == b"\x80\x03"
    operations = [{op.name for op, _, _ in pickletools.genops(data)} for data in (made, published)]
    assert operations[0] - {"APPEND"} <= operations[1]  # a list of one: Paris has none
    assert pickle.loads(published).keys() == CONTENT.keys()  # noqa: S301  (data of the tests)


@pytest.mark.parametrize("form", ["pkl", "json"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_benchmark_is_opened_from_its_published_layout(tmp_path: Path, kind: str, form: str) -> None:
    root = benchmark(tmp_path, kind, form)
    found = open_benchmark(f"{kind}:{tmp_path}")
    assert (found.gallery.ids, found.queries.ids) == (tuple(GALLERY), tuple(QUERIES))
    assert found.gallery.paths == tuple(f"jpg/{name}.jpg" for name in GALLERY)
    assert found.queries.boxes == ((136.5, 34.1, 648.5, 955.7), (130.0, 17.0, 843.0, 732.0))
    assert (found.gallery.root, found.queries.root, found.gallery.boxes) == (root, root, None)
    assert found.truth is not None
    assert [part.tolist() for part in found.truth.hard] == [[39], [3, 4]]
    assert not found.leave_one_out


def test_without_any_image_there_is_what_the_store_holds(tmp_path: Path) -> None:
    write_truth(tmp_path, "roxford5k")
    assert len(open_benchmark(f"roxford5k:{tmp_path}").gallery) == 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (GALLERY[10:30], r"\d+ of 32 images looked for are missing, e\.g\. jpg/tower_0000\d\d\.jpg"),
        (QUERIES[:1], r"1 of 2 images looked for are missing, e\.g\. jpg/spire_000001\.jpg"),
        (QUERIES, r"2 of 2 images looked for are missing"),
    ],
    ids=["gallery", "a query", "queries"],
)
def test_half_unpacked_says_what_is_missing_and_where_it_comes_from(
    tmp_path: Path, kind: str, lost: Sequence[str], told: str
) -> None:
    root = benchmark(tmp_path, kind)
    for name in lost:
        (root / f"jpg/{name}.jpg").unlink()
    source = {"roxford5k": "oxbuild_images", "rparis6k": "paris_1 and paris_2"}[kind]
    with pytest.raises(InputError, match=rf"{told}.*must stand at jpg/<image>\.jpg, from {source}"):
        open_benchmark(f"{kind}:{tmp_path}")


def test_paris_in_one_folder_for_each_place_is_not_how_it_must_look(tmp_path: Path) -> None:
    write_truth(tmp_path, "rparis6k")
    touch(tmp_path / "rparis6k", *(f"jpg/paris/tower/{name}.jpg" for name in (*GALLERY, *QUERIES)))
    with pytest.raises(InputError, match=r"32 of 32 .*all in one folder"):
        open_benchmark(f"rparis6k:{tmp_path}")


def test_a_compressed_archive_of_a_benchmark_says_how_it_can_be_read(tmp_path: Path) -> None:
    write_truth(tmp_path, "roxford5k")
    with tarfile.open(tmp_path / "roxford5k/oxbuild_images.tgz", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"not read \(oxbuild_images\.tgz\), run `gunzip .*roxford5k/\*\.tgz` once"):
        open_benchmark(f"roxford5k:{tmp_path}")


@pytest.mark.parametrize("form", ["pkl", "json"])
@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "", "a\nb", "C:\\a"])
@pytest.mark.parametrize("part", ["imlist", "qimlist"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, part: str, name: str, form: str) -> None:
    write_truth(tmp_path, "roxford5k", form, {**CONTENT, part: [name, *CONTENT[part][1:]]})
    with pytest.raises(InputError, match="is no name of an image in jpg/"):
        open_benchmark(f"roxford5k:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gnd": [{**GND[0], "hard": [40]}, GND[1]]}, "points at gallery image 40, but its imlist has 40"),
        ({"gnd": GND[:1]}, "2 queries but ground truth for 1"),
        ({"qimlist": []}, "0 queries but ground truth for 2"),
        ({"imlist": [*GALLERY[:-1], GALLERY[0]]}, "names the image 'tower_000000' twice"),
    ],
)
def test_ground_truth_that_does_not_fit_its_lists_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    for form in ("pkl", "json"):
        write_truth(tmp_path / form, "rparis6k", form, {**CONTENT, **change})
        with pytest.raises(InputError, match=told):
            open_benchmark(f"rparis6k:{tmp_path / form}")


# the million distractors

NAMES = tuple(f"{n % 7}/{n:03}.jpg" for n in range(200))


def distractors(folder: Path, listed: bytes | None = None) -> Path:
    root = folder / "revisitop1m"
    root.mkdir()
    (root / "revisitop1m.txt").write_bytes("".join(f"{n}\n" for n in NAMES).encode() if listed is None else listed)
    return root


def pack(root: Path, number: int, names: Sequence[str]) -> None:
    """One archive as it is published, its images nowhere else."""
    touch(root / "packing", *names)
    (root / "jpg").mkdir(exist_ok=True)
    with tarfile.open(root / f"jpg/revisitop1m.{number}.tar", "w") as archive:
        for name in names:
            archive.add(root / "packing" / name, name)


def test_the_list_is_the_same_unpacked_or_in_archives_or_half_of_each(tmp_path: Path) -> None:
    root = distractors(tmp_path)
    nothing = open_dataset(f"revisitop1m:{tmp_path}")
    touch(root, *(f"jpg/{n}" for n in NAMES))
    unpacked = open_dataset(f"revisitop1m:{tmp_path}")
    for name in NAMES[:150]:
        (root / "jpg" / name).unlink()
    pack(root, 1, NAMES[:100])
    pack(root, 2, NAMES[100:150])
    half = open_dataset(f"revisitop1m:{tmp_path}")
    for name in NAMES[150:]:
        (root / "jpg" / name).unlink()
    pack(root, 3, NAMES[150:])
    packed = open_dataset(f"revisitop1m:{tmp_path}")
    assert nothing == unpacked == half == packed
    assert packed.ids == NAMES
    assert packed.paths == tuple(f"jpg/{n}" for n in NAMES)


def test_one_image_that_no_archive_holds_is_found_among_all(tmp_path: Path) -> None:
    """A few samples would hardly meet it; archives are asked for every image."""
    root = distractors(tmp_path)
    pack(root, 1, NAMES[:77] + NAMES[78:])
    with pytest.raises(InputError, match=rf"1 of 1 images looked for are missing, e\.g\. jpg/{NAMES[77]}, also from"):
        open_dataset(f"revisitop1m:{tmp_path}")


def test_archives_that_are_not_there_are_named(tmp_path: Path) -> None:
    root = distractors(tmp_path)
    for number in range(1, 101):
        if number not in (7, 50):
            pack(root, number, NAMES[2 * number - 2 : 2 * number])
    told = r"4 of 4 images .*revisitop1m\.txt has them.*of revisitop1m\.1 to \.100, 2 are not there: 7, 50\)"
    with pytest.raises(InputError, match=told):
        open_dataset(f"revisitop1m:{tmp_path}")


def test_half_unpacked_distractors_say_what_is_missing(tmp_path: Path) -> None:
    root = distractors(tmp_path)
    touch(root, *(f"jpg/{n}" for n in NAMES[:100]))
    told = r"16 of 32 images .*missing.* stand at jpg/, as revisitop1m\.txt has them, or in archives there\.$"
    with pytest.raises(InputError, match=told):
        open_dataset(f"revisitop1m:{tmp_path}")


def test_an_image_that_archives_hold_twice_is_told_when_they_are_opened(tmp_path: Path) -> None:
    root = distractors(tmp_path)
    pack(root, 1, NAMES)
    pack(root, 2, NAMES[5:6])
    with pytest.raises(InputError, match=rf"hold jpg/{NAMES[5]} 2 times \(revisitop1m\.1\.tar, revisitop1m\.2\.tar\)"):
        open_dataset(f"revisitop1m:{tmp_path}")
    touch(root, f"jpg/{NAMES[5]}")  # the right one, unpacked
    assert len(open_dataset(f"revisitop1m:{tmp_path}")) == 200


def test_archives_beside_a_whole_folder_are_not_opened(tmp_path: Path) -> None:
    root = distractors(tmp_path)
    touch(root, *(f"jpg/{n}" for n in NAMES))
    (root / "jpg/revisitop1m.1.tar").write_bytes(b"half a download")
    assert len(open_dataset(f"revisitop1m:{tmp_path}")) == 200


@pytest.mark.parametrize(
    "listed",
    [
        b"0/a.jpg\r\n1/b.jpg\r\n",
        b"\n0/a.jpg\n\n \n1/b.jpg",
        b"\xef\xbb\xbf0/a.jpg\n1/b.jpg\n",
        b"  0/a.jpg\t\n1/b.jpg\n",
    ],
    ids=["lines of Windows", "blank lines", "a byte order mark", "blanks"],
)
def test_lists_that_were_only_saved_otherwise_are_the_same_list(tmp_path: Path, listed: bytes) -> None:
    distractors(tmp_path, listed)
    assert open_dataset(f"revisitop1m:{tmp_path}").ids == ("0/a.jpg", "1/b.jpg")


def test_names_of_any_language_are_read(tmp_path: Path) -> None:
    root = distractors(tmp_path, "日本/神社.jpg\n".encode())
    pack(root, 1, ["日本/神社.jpg"])
    (path,) = open_dataset(f"revisitop1m:{tmp_path}").paths
    assert archives_below(root).read(path) == "日本/神社.jpg".encode()


@pytest.mark.parametrize(
    "line",
    ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "..", "a//b.jpg", "a/", "./a.jpg", "..\\a.jpg", "C:\\a", "a\0b"],
)
def test_a_line_that_is_no_path_of_an_image_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    distractors(tmp_path, f"0/a.jpg\n\n{line}\n".encode())
    with pytest.raises(InputError, match=r"revisitop1m\.txt, line 3: .* is no path of an image below jpg/"):
        open_dataset(f"revisitop1m:{tmp_path}")


def test_a_list_in_another_encoding_or_with_an_image_twice_is_refused(tmp_path: Path) -> None:
    root = distractors(tmp_path, "0/a.jpg\nGebäude.jpg\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"revisitop1m\.txt is not text in UTF-8 \(byte 11\)"):
        open_dataset(f"revisitop1m:{tmp_path}")
    (root / "revisitop1m.txt").write_text("0/a.jpg\n1/b.jpg\n0/a.jpg\n")
    with pytest.raises(InputError, match=r"revisitop1m names the image '0/a\.jpg' twice"):
        open_dataset(f"revisitop1m:{tmp_path}")
    (root / "revisitop1m.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds no image"):
        open_dataset(f"revisitop1m:{tmp_path}")
