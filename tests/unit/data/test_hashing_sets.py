"""CIFAR-10 and NUS-WIDE-21 in the layouts they are published in, made up and tiny, and closed sets of one's own."""

from __future__ import annotations

import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cgd.data import batch_files, hashing_sets
from cgd.data.datasets import label_truth, open_benchmark, open_dataset
from cgd.data.hashing_sets import BATCHES, GALLERY, QUERY, TRAIN
from cgd.data.images import read_image
from cgd.errors import InputError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ROWS = 40  # of each batch here; 24 images of a class


# what Python 2 wrote


def text(value: str) -> bytes:
    return b"U" + struct.pack("<B", len(value)) + value.encode("latin1")  # SHORT_BINSTRING


def numbers(values: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + struct.pack("<B", v) for v in values) + b"e"


def array(pixels: np.ndarray) -> bytes:
    """As NumPy 1 reduced one under Python 2: its bytes are a string."""
    rows, columns = pixels.shape
    kind = (
        b"cnumpy\ndtype\n"
        + text("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
    data = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()  # BINSTRING
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    return made + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def pickled(**entries: bytes) -> bytes:
    """A dictionary by protocol 2, as cPickle wrote it."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def images(batch: int) -> tuple[np.ndarray, list[int]]:
    pixels = np.random.default_rng(batch).integers(0, 256, (ROWS, 3072), np.uint8)
    return pixels, [row % 10 for row in range(ROWS)]


def python_version(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        pixels, labels = images(number)
        files = b"](" + b"".join(text(f"toy_s_{row:06}.png") for row in range(ROWS)) + b"e"
        title = text("testing batch 1 of 1" if name == "test_batch" else f"training batch {number + 1} of 5")
        (folder / name).write_bytes(
            pickled(batch_label=title, labels=numbers(labels), data=array(pixels), filenames=files)
        )
    names = b"](" + b"".join(map(text, NAMES)) + b"e"
    (folder / "batches.meta").write_bytes(
        pickled(num_cases_per_batch=b"M\x10\x27", label_names=names, num_vis=b"M\x00\x0c")
    )
    (folder / "readme.html").write_text("<meta>")
    return folder


def binary_version(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        pixels, labels = images(number)
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


VERSIONS = {"python": python_version, "binary": binary_version}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 40 images instead of 10,000; protocols of 5 queries of a class, of 24, at most."""
    monkeypatch.setattr(hashing_sets, "ROWS", ROWS)
    counts = {"cifar10": (2, 10), "cifar10-1": (2, 10), "cifar10-2": (5, 15)}
    monkeypatch.setattr(hashing_sets, "PROTOCOLS", counts)
    batch_files._read.cache_clear()


def test_what_is_made_up_here_is_what_python_2_would_write(tmp_path: Path) -> None:
    """The real unpickler gives the array: the bytes are a pickle of the published kind, not one of our own reader's."""
    data = (python_version(tmp_path) / "data_batch_2").read_bytes()
    content = pickle.loads(data, encoding="bytes")  # noqa: S301  (data of the tests)
    assert list(content) == [b"batch_label", b"labels", b"data", b"filenames"]
    np.testing.assert_array_equal(content[b"data"], images(1)[0])
    assert {op.name for op, _, _ in pickletools.genops(data)} >= {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "BUILD"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("inside", [True, False])
def test_all_images_of_either_version(tmp_path: Path, version: str, inside: bool) -> None:
    folder = VERSIONS[version](tmp_path)
    found = open_dataset(f"cifar10:{folder if inside else tmp_path}")
    assert len(found) == 6 * ROWS
    assert found.labels == tuple(NAMES[row % 10] for _ in BATCHES for row in range(ROWS))
    assert found.ids[ROWS + 3] == "data_batch_2#3"
    for row in (0, 3, ROWS + 17, 6 * ROWS - 1):
        image = read_image(found.root, found.paths[row]).image
        assert image is not None
        planes = images(row // ROWS)[0][row % ROWS].reshape(3, 32, 32)
        np.testing.assert_array_equal(np.asarray(image), np.moveaxis(planes, 0, 2))


def test_both_versions_are_the_same_images(tmp_path: Path) -> None:
    one, other = (open_dataset(f"cifar10:{make(tmp_path)}", "c", QUERY) for make in VERSIONS.values())
    assert (one.ids, one.labels) == (other.ids, other.labels)
    digests = [[read_image(i.root, path).digest.tobytes() for path in i.paths] for i in (one, other)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("protocol", "counts"), [("cifar10", (20, 100, 120)), ("cifar10-1", (20, 100, 220)), ("cifar10-2", (50, 150, 150))]
)
def test_the_three_protocols(tmp_path: Path, protocol: str, counts: tuple[int, int, int]) -> None:
    """Queries are in no other part; per class the published shares."""
    text = f"cifar10:{binary_version(tmp_path)}?protocol={protocol}"
    parts = {split: open_dataset(text, "c", split) for split in (QUERY, TRAIN, GALLERY)}
    assert tuple(map(len, parts.values())) == counts
    query, train, gallery = (set(part.ids) for part in parts.values())
    assert not query & (train | gallery)
    assert {"cifar10": not train & gallery, "cifar10-1": train < gallery, "cifar10-2": train == gallery}[protocol]
    for part in parts.values():
        assert {part.labels.count(name) for name in NAMES} == {len(part) // 10}  # type: ignore[union-attr]
    found = open_benchmark(text)
    assert (found.gallery.ids, found.queries.ids) == (parts[GALLERY].ids, parts[QUERY].ids)


def test_a_seed_draws_other_queries_and_the_same_one_the_same(tmp_path: Path) -> None:
    folder = binary_version(tmp_path)
    ids = [open_dataset(f"cifar10:{folder}{seed}", "c", QUERY).ids for seed in ("", "?seed=0", "?seed=1")]
    assert ids[0] == ids[1] != ids[2]


def test_what_students_are_pretrained_on_are_the_five_training_batches(tmp_path: Path) -> None:
    found = open_dataset(f"cifar10:{python_version(tmp_path)}", "c", "pretrain")
    assert (len(found), found.paths[-1]) == (5 * ROWS, f"data_batch_5#{ROWS - 1}")


def remove(folder: Path) -> None:
    (folder / "data_batch_3").unlink()


def cut(folder: Path) -> None:
    file = folder / "test_batch"
    file.write_bytes(file.read_bytes()[:-5000])


def evil(folder: Path) -> None:
    (folder / "data_batch_1").write_bytes(b"\x80\x02cos\nsystem\n" + text("touch pwned") + b"\x85R.")


def of_cifar100(folder: Path) -> None:
    pixels, labels = images(0)
    (folder / "data_batch_1").write_bytes(pickled(fine_labels=numbers(labels), data=array(pixels)))


def too_few_pixels(folder: Path) -> None:
    pixels, labels = images(0)
    (folder / "data_batch_1").write_bytes(pickled(labels=numbers(labels), data=array(pixels[1:])))


def fewer_images(folder: Path) -> None:
    pixels, labels = images(0)
    (folder / "data_batch_1").write_bytes(pickled(labels=numbers(labels[1:]), data=array(pixels[1:])))


def unnamed(folder: Path) -> None:
    (folder / "batches.meta").write_bytes(pickled(label_names=b"](" + text("cat") + b"e"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            remove,
            "is not complete, data_batch_3 missing: it must hold data_batch_1 to data_batch_5, test_batch and",
        ),
        (cut, "test_batch is refused: it is not a pickle of plain values"),
        (evil, r"data_batch_1 is refused: .*asks for os.system"),
        (of_cifar100, "data_batch_1 is no batch of CIFAR-10 .*labels"),
        (too_few_pixels, "data_batch_1 is no batch of CIFAR-10 .*40 labels beside pixels"),
        (fewer_images, "data_batch_1 holds 39 images, 40 are published"),
        (unnamed, "batches.meta does not name the 10 classes"),
    ],
)
def test_what_is_damaged_is_told_and_nothing_is_run(
    tmp_path: Path, damage: Any, message: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(python_version(tmp_path))
    with pytest.raises(InputError, match=message):
        open_dataset(f"cifar10:{tmp_path}")
    assert not (tmp_path / "pwned").exists()


def test_a_binary_batch_cut_short(tmp_path: Path) -> None:
    file = binary_version(tmp_path) / "data_batch_4.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_4.bin has \d+ bytes, no whole number of images of 3073 bytes"):
        open_dataset(f"cifar10:{tmp_path}")


def test_an_empty_folder_says_how_it_must_look(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no CIFAR-10: it must hold cifar-10-batches-py/ with .*batches.meta"):
        open_dataset(f"cifar10:{tmp_path}")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"unpack it there: tar -xf cifar-10-python.tar.gz"):
        open_dataset(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("?protocol=cifar10-3", "option 'protocol' is one of cifar10, cifar10-1, cifar10-2"),
        ("?shade=1", "unknown option 'shade'"),
        ("@val", "unknown split of cifar10 'val'"),
    ],
)
def test_what_cifar10_has_not(tmp_path: Path, text: str, message: str) -> None:
    binary_version(tmp_path)
    options, _, split = text.partition("@")
    with pytest.raises(InputError, match=message):
        open_dataset(f"cifar10:{tmp_path}{options}", "c", split or None)


def test_an_image_beyond_the_end_of_its_batch(tmp_path: Path) -> None:
    folder = binary_version(tmp_path)
    with pytest.raises(InputError, match=f"holds {ROWS} images, so there is no data_batch_1.bin#{ROWS}"):
        read_image(folder, f"data_batch_1.bin#{ROWS}")
    with pytest.raises(InputError, match="is missing below"):
        read_image(folder, "data_batch_9.bin#0")


# NUS-WIDE-21


def nuswide(root: Path) -> Path:
    """Lists as the method's code has them; that of the gallery is not among these."""
    for number in range(6):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / f"images/{number} a.jpg")
    flags = np.eye(6, 21, dtype=int)
    flags[4, 2] = 1
    rows = [f"images/{n} a.jpg {' '.join(map(str, flags[n]))}" for n in range(6)]
    (root / "train.txt").write_text("\n".join(rows[:3]) + "\n")
    (root / "test.txt").write_text("\r\n".join(rows[3:5]))
    (root / "with_database.txt").write_text("\n".join([*rows[:3], rows[5]]) + "\n")
    return root


def test_nuswide_from_its_lists(tmp_path: Path) -> None:
    root = nuswide(tmp_path)
    train = open_dataset(f"nuswide-21:{root}")
    assert (train.paths, train.labels) == (tuple(f"images/{n} a.jpg" for n in range(3)), ("c01", "c02", "c03"))
    with pytest.raises(
        InputError, match=r"holds no database.txt: .* that list is not distributed with the method's code"
    ):
        open_benchmark(f"nuswide-21:{root}")
    (root / "with_database.txt").rename(root / "database.txt")
    found = open_benchmark(f"nuswide-21:{root}")
    assert found.queries.labels == ("c04", "c03|c05")
    assert [e.tolist() for e in label_truth(found.gallery, found.queries, False).easy] == [[], [2]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/0.jpg 1 0", "line 2: expected a path and 21 numbers 0 or 1"),
        ("images/0.jpg " + "2 " * 21, "line 2: expected a path and 21 numbers 0 or 1"),
        ("1 " * 21, "line 2: expected a path and 21 numbers 0 or 1"),
        ("../0.jpg " + "1 " * 21, r"line 2: '../0.jpg' is no path of an image below"),
        ("images/9.jpg " + "1 " * 21, "is not complete: 1 of 4 images looked for are missing, e.g. images/9.jpg"),
    ],
)
def test_a_damaged_list_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    root = nuswide(tmp_path)
    first, *others = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join([first, line, *others]))
    with pytest.raises(InputError, match=message):
        open_dataset(f"nuswide-21:{root}")


# closed sets


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A manifest of three labels with 10, 5 and one image in `train`, and one elsewhere."""
    rows = [
        f"{label}{n},{label}/{n}.jpg,{label},train"
        for label, count in (("a", 10), ("b", 5), ("c", 1))
        for n in range(count)
    ]
    file = tmp_path / "manifest.csv"
    file.write_text("\n".join(["image_id,path,label,split", *rows, "q,q.jpg,z,query"]))
    return file


def test_a_share_of_every_label_become_queries(shelf: Path) -> None:
    text = f"closed-set:{shelf}?of=train&queries=0.2"
    found = open_benchmark(text)
    assert [found.queries.labels.count(label) for label in "abc"] == [2, 1, 0]  # type: ignore[union-attr]
    assert [found.gallery.labels.count(label) for label in "abc"] == [8, 4, 1]  # type: ignore[union-attr]
    assert open_dataset(text, "s", TRAIN).ids == found.gallery.ids
    assert len(open_dataset(text)) == 16
    assert open_dataset(f"{text}&seed=3", "s", QUERY).ids != found.queries.ids
    assert len(open_dataset(f"closed-set:{shelf}")) == 17


def test_what_cannot_be_divided(shelf: Path) -> None:
    with pytest.raises(InputError, match="queries is a share between 0 and 1, got 1"):
        open_dataset(f"closed-set:{shelf}?queries=1")
    with pytest.raises(InputError, match="unknown split of closed-set 'val'"):
        open_dataset(f"closed-set:{shelf}", "s", "val")
    shelf.write_text("image_id,path\na,a.jpg\n")
    with pytest.raises(InputError, match="has no labels to divide"):
        open_dataset(f"closed-set:{shelf}")


def test_an_empty_folder_is_no_closed_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        open_dataset(f"closed-set:{tmp_path}")
