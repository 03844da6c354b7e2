"""Files of other tools that are damaged, hostile or of something else: one sentence each, and nothing is stored."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import CPU, accepted, cgd, evaluate, extract, photos, refused

from cgd.store.feature_store import FeatureStore

NAMES = ("a.png", "b.png", "c.png")
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


class _Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("trapped"),)  # type: ignore[return-value]


@pytest.fixture
def place(bare: Path) -> Path:
    """Three photographs, and a store without them."""
    photos(bare / "photos", *NAMES)
    return bare


def take(file: str, *arguments: str) -> tuple[str, ...]:
    data = ("--dataset", "folder:photos", "--workers", "0")
    return ("store", "import", file, "--kind", "embeddings", *data, "--teacher", "theirs", *arguments)


def hloc(file: str, **changes: object) -> str:
    with h5py.File(file, "w") as target:
        for name, row in ({**dict(zip(NAMES, ROWS, strict=True)), **changes}).items():
            target[f"{name}/global_descriptor"] = row
    return file


def plain(file: str, **changes: object) -> str:
    with h5py.File(file, "w") as target:
        for name, value in ({"ids": np.array(NAMES, object), "features": ROWS, **changes}).items():
            target[name] = value
    return file


def npy(file: str, array: object, beside: object = None) -> str:
    np.save(file, array)
    if beside is not None:
        Path(f"{file}.ids.json").write_text(beside if isinstance(beside, str) else json.dumps(beside))
    return file


def nothing_stored() -> bool:
    return not Path("features.zarr").exists() or not list(FeatureStore.open("features.zarr").entries())


def _not_hdf5() -> str:
    Path("v.h5").write_bytes(b"vectors")
    return "v.h5"


def _compressed() -> str:
    Path("v.h5").write_bytes(gzip.compress(Path(hloc("whole.h5")).read_bytes()))
    return "v.h5"


def _cut_short() -> str:
    data = Path(hloc("v.h5")).read_bytes()
    Path("v.h5").write_bytes(data[: len(data) // 2])
    return "v.h5"


def _cut_npy() -> str:
    npy("v.npy", ROWS)
    os.truncate("v.npy", 150)
    return "v.npy"


def _pickled() -> str:
    Path("v.npy").write_bytes(pickle.dumps(_Trap()))
    return "v.npy"


def _boundless() -> str:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}".ljust(117) + b"\n"
    Path("v.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return "v.npy"


def _compressed_chunk() -> str:
    with h5py.File("v.h5", "w") as target:
        target["ids"] = np.array(NAMES, object)
        target.create_dataset("features", data=ROWS, chunks=(3, 4), compression="gzip")
        at, size = target["features"].id.get_chunk_info(0).byte_offset, target["features"].id.get_chunk_info(0).size
    with open("v.h5", "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * size)
    return "v.h5"


def _linked(link: object) -> Callable[[], str]:
    def make() -> str:
        hloc("secret.h5")
        with h5py.File(hloc("v.h5"), "a") as target:
            target["d.png"] = link
        return "v.h5"

    return make


def _external() -> str:
    Path("secret").write_bytes(b"\0" * 48)
    with h5py.File("v.h5", "w") as target:
        target["ids"] = np.array(NAMES, object)
        target.create_dataset("features", (3, 4), "<f4", external=[("secret", 0, h5py.h5f.UNLIMITED)])
    return "v.h5"


def _virtual() -> str:
    layout = h5py.VirtualLayout((3, 4), "<f4")
    layout[:] = h5py.VirtualSource(plain("secret.h5"), "features", (3, 4))
    with h5py.File("v.h5", "w") as target:
        target["ids"] = np.array(NAMES, object)
        target.create_virtual_dataset("features", layout)
    return "v.h5"


def _wide() -> str:
    with h5py.File("v.h5", "w") as target:
        target["ids"] = np.array(NAMES, object)
        target.create_dataset("features", (3, 1 << 40), "<f4", chunks=(1, 1024))
    return "v.h5"


def _linked_twice() -> str:
    with h5py.File(hloc("v.h5"), "a") as target:
        target["a.png/round"] = target["/"]  # a group inside itself
    return "v.h5"


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "missing": (lambda: "nowhere.h5", "there is no file nowhere.h5"),
    "another format": (lambda: "v.mat", "v.mat: vectors come in files .h5, .hdf5 or .npy"),
    "not HDF5": (_not_hdf5, "v.h5 is no HDF5 file"),
    "compressed": (_compressed, "v.h5 is no HDF5 file: it is of another format, compressed, or cut short"),
    "cut short": (_cut_short, "cannot read v.h5: Unable to synchronously open file (truncated file"),
    "cut short, npy": (_cut_npy, "cannot read v.npy: mmap length is greater than file size"),
    "pickled": (_pickled, "cannot read v.npy: the magic string is not correct"),
    "objects": (lambda: npy("v.npy", np.array([_Trap()], object)), "cannot read v.npy: Array can't be memory-mapped"),
    "boundless": (_boundless, "cannot read v.npy"),
    "a damaged chunk": (_compressed_chunk, "cannot read v.h5"),
    "a soft link": (_linked(h5py.SoftLink("/a.png")), "'d.png' is a link to another place"),
    "an external link": (_linked(h5py.ExternalLink("secret.h5", "/a.png")), "'d.png' is a link to another place"),
    "numbers elsewhere": (_external, "the numbers of 'features' stand in other files, which are not opened"),
    "numbers of another file": (_virtual, "the numbers of 'features' stand in other files, which are not opened"),
    "too wide": (_wide, "'features' has the shape (3, 1099511627776), expected (images, dimensions)"),
    "nothing in it": (lambda: plain("v.h5", ids=np.array([], "S1"), features=ROWS[:0]), "v.h5 holds no vector"),
    "local features": (lambda: hloc("v.h5") and _keypoints(), "v.h5 has neither a 'global_descriptor' in a group"),
    "whole numbers": (lambda: hloc("v.h5", **{"a.png": [1, 2, 3, 4]}), "'a.png/global_descriptor' holds int64"),
    "whole numbers, npy": (lambda: npy("v.npy", ROWS.astype(int)), "v.npy: the array holds int64"),
    "another width": (lambda: hloc("v.h5", **{"c.png": ROWS[0, :3]}), "'c.png' has a global_descriptor of shape (3,)"),
    "a table": (lambda: hloc("v.h5", **{"a.png": ROWS}), "'a.png/global_descriptor' has the shape (3, 4), expected"),
    "one row": (lambda: npy("v.npy", ROWS[0]), "the array has the shape (4,), expected (images, dimensions)"),
    "too few rows": (lambda: npy("v.npy", ROWS[:2]), "v.npy has 2 rows, photos has 3 images"),
    "too few ids": (lambda: plain("v.h5", ids=np.array(NAMES[:2], object)), "v.h5 has 2 ids for 3 vectors"),
    "ids twice": (lambda: npy("v.npy", ROWS, ["a.png"] * 3), "v.npy.ids.json names 'a.png' twice"),
    "ids that are none": (lambda: plain("v.h5", ids=[1, 2, 3]), "v.h5: 'ids' holds int64, not text"),
    "ids without text": (lambda: npy("v.npy", ROWS, [1, 2, 3]), "v.npy.ids.json: 'ids' is no list of texts"),
    "ids not UTF-8": (lambda: plain("v.h5", ids=np.array([b"\xff"] * 3, "S1")), "cannot read v.h5: 'utf-8' codec"),
    "ids no JSON": (lambda: npy("v.npy", ROWS, "{"), "cannot read v.npy.ids.json: Expecting property name"),
    "ids too deep": (lambda: npy("v.npy", ROWS, "[" * 100_000), "cannot read v.npy.ids.json: "),
    "valid of another size": (lambda: plain("v.h5", valid=[True]), "'valid' is no list of 3 times true or false"),
    "none valid": (lambda: plain("v.h5", valid=[False] * 3), "v.h5 holds no vector"),
    "others' ids": (lambda: plain("v.h5", ids=np.array(["x", "y", "z"], object)), "none of the 3 ids in v.h5 is an"),
    "NaN": (lambda: npy("v.npy", np.where(ROWS == 6, np.nan, ROWS)), "v.npy: row 1, the image 'b.png', holds numbers"),
    "infinite": (lambda: hloc("v.h5", **{"c.png": ROWS[2] / 0}), "v.h5: row 2, the image 'c.png', holds numbers"),
    "beyond single": (lambda: npy("v.npy", ROWS.astype(float) * 1e38 * 9), "v.npy: row 0, the image 'a.png', holds"),
}  # fmt: skip


def _keypoints() -> str:
    with h5py.File("v.h5", "w") as target:
        target["a.png/keypoints"] = ROWS
    return "v.h5"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used(case: str) -> None:
    make, message = BAD[case]
    with np.errstate(divide="ignore"):
        file = make()
    assert message in refused(*take(file))
    assert nothing_stored()
    assert not Path("trapped").exists()


@pytest.mark.usefixtures("place")
def test_a_group_inside_itself_is_walked_once() -> None:
    assert accepted(*take(_linked_twice()))["valid"] == 3


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("DINO v2", "a label has nothing but a-z, 0-9, '.' and '-', e.g. dino-v2"),
        ("gem", "this name is taken by cgd itself; give the label another, e.g. gem-1"),
        ("imported", "this name is taken by cgd itself"),
    ],
)
def test_a_label_that_means_something_else(label: str, message: str) -> None:
    assert message in refused(*take(hloc("v.h5"), "--teacher", label))
    assert nothing_stored()


def test_images_that_are_missing_or_others(place: Path) -> None:
    accepted(*extract("--dataset", "folder:photos", teachers="mobilenet-v1?width=0.25&size=32&weights=random"))
    (place / "photos/a.png").write_bytes((place / "photos/b.png").read_bytes())
    assert "the image 'a.png' of photos below" in refused(*take(hloc("v.h5")))
    (place / "photos/a.png").unlink()
    assert "has 2 images" in refused(*take(npy("v.npy", ROWS)))


def test_what_only_a_network_can_do(place: Path) -> None:
    accepted(*take(hloc("v.h5")))
    photos(place / "others", "x.png", "y.png")
    message = "the vectors of theirs were imported, there is no network here"
    data = ("--dataset", "folder:others", *CPU)
    assert message in refused("extract-teachers", *data, "--teachers", "theirs")
    assert message in refused("extract-teachers", "--dataset", "photos", "--views", "1", "--teachers", "theirs", *CPU)
    assert "nothing was imported as 'imported:others'" in refused(
        "extract-teachers", *data, "--teachers", "imported:others"
    )
    assert "unknown teacher 'their'" in refused(*evaluate("folder:others", "--teachers", "their"))


@pytest.mark.usefixtures("place")
def test_exports_that_cannot_be() -> None:
    key = accepted(*take(hloc("v.h5")))["key"]
    assert "out.mat: vectors are exported to files .h5, .hdf5 or .npy" in refused("store", "export", key, "out.mat")
    assert "--layout is of HDF5" in refused("store", "export", key, "out.npy", "--layout", "plain")
    assert "v.h5 is there already: remove it, or name another file" in refused("store", "export", key, "v.h5")
    Path("out.npy.ids.json").touch()
    assert "out.npy.ids.json is there already" in refused("store", "export", key, "out.npy")
    assert "cannot write nowhere/out.h5" in refused("store", "export", key, "nowhere/out.h5")
    assert "cannot write nowhere/out.npy" in refused("store", "export", key, "nowhere/out.npy")
    assert "fits 'images'" in refused("store", "export", "images", "out.h5")
    assert cgd("store", "export", key, "out.h5", "--layout", "sideways").exit_code == 2
    shard = Path("features.zarr", key, "vectors/c/0/0/0")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    for name in ("out.h5", "other.npy"):
        assert "differs from its seal" in refused("store", "export", key, name)
    assert not [path for path in Path().iterdir() if path.name.startswith(("out.h5", "other"))]


FULL = """
import resource, signal, sys
from cgd.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
main(sys.argv[2:])
"""


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["out.h5", "out.npy"])
def test_a_file_that_may_not_grow(name: str) -> None:
    wide = dict(zip(NAMES, np.ones((3, 2000), np.float32), strict=True))
    key = accepted(*take(hloc("v.h5", **wide)))["key"]
    command = [sys.executable, "-c", FULL, "9000", "store", "export", key, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"error: cannot write {name}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(Path().glob("out*"))


@pytest.mark.usefixtures("bare")
def test_a_misspelt_teacher_where_there_is_no_store_yet() -> None:
    photos(Path("photos"), "x.png")
    message = refused("extract-teachers", "--dataset", "folder:photos", "--teachers", "gemm", *CPU)
    assert "unknown teacher 'gemm': did you mean gem" in message
