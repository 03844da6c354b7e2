"""Images inside tar archives: found under the names a list gives them, read as they were packed."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import threading
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgd.data import archives as module
from cgd.data.archives import LARGEST, archive_files, archives_below
from cgd.data.images import read_image
from cgd.errors import InputError

CONTENT = {"0/00/one.jpg": b"first", "0/01/two.jpg": b"", "1/three.png": b"third" * 1000}


def pack(path: Path, content: Mapping[str, bytes] = CONTENT, prefix: str = "", form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "distractors/jpg").mkdir(parents=True)
    return tmp_path / "distractors"


# what is found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "jpg/", "./jpg/", "distractors/jpg/", "./distractors/jpg/"])
@pytest.mark.parametrize("place", ["a.tar", "jpg/a.tar"])
def test_members_are_read_wherever_their_archive_was_made(root: Path, place: str, prefix: str, form: int) -> None:
    pack(root / place, prefix=prefix, form=form)
    archives = archives_below(root)
    assert {name: archives.read(f"jpg/{name}") for name in CONTENT} == CONTENT
    assert archives.hold([f"jpg/{name}" for name in CONTENT]).all()


def test_a_long_name_and_one_that_is_no_ascii_are_read(root: Path) -> None:
    names = ["x" * 90 + "/" + "y" * 120 + ".jpg", "Gebäude/éà.jpg", "日本/神社.jpg"]
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        pack(root / f"{number}.tar", {f"{number}/{name}": name.encode() for name in names}, form=form)
    for number in range(2):
        assert [archives_below(root).read(f"jpg/{number}/{n}") for n in names] == [n.encode() for n in names]


def test_an_image_of_no_archive_is_none(root: Path) -> None:
    pack(root / "a.tar")
    archives = archives_below(root)
    for path in ("jpg/one.jpg", "jpg/0/00/one.jp", "jpg/0/00", "jpg/more/0/00/one.jpg", "", "jpg/"):
        assert archives.read(path) is None
        assert not archives.hold([path]).any()
    assert archives.hold([]).shape == (0,)


def test_names_that_are_no_text_and_folders_are_in_nobodys_way(root: Path) -> None:
    with tarfile.open(root / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, kind in (("ä.jpg", tarfile.REGTYPE), ("0", tarfile.DIRTYPE), ("0/a.jpg", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    archives = archives_below(root)
    assert (archives.read("jpg/0/a.jpg"), archives.read("jpg/ä.jpg")) == (b"", None)


def test_members_are_not_kept_in_memory_one_by_one(root: Path) -> None:
    pack(root / "a.tar", {f"{n}.jpg": b"" for n in range(5000)})
    tracemalloc.start()
    archives = archives_below(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(archives.digests) == 5000
    assert sum(a.nbytes for a in (archives.digests, archives.owners, archives.offsets, archives.sizes)) == 36 * 5000
    assert peak < 200 * 5000  # a TarInfo alone has more than a thousand


def test_images_are_found_among_many_archives(root: Path) -> None:
    content = [{f"{n}/{k}.jpg": b"%d %d" % (n, k) for k in range(40)} for n in range(30)]
    for n, part in enumerate(content):
        pack(root / f"jpg/revisitop1m.{n}.tar", part)
    archives = archives_below(root)
    assert (len(archives.files), len(archives.digests)) == (30, 1200)
    for part in content:
        assert {name: archives.read(f"jpg/{name}") for name in part} == part


def test_only_plain_tars_of_the_folder_and_of_jpg_are_looked_into(root: Path) -> None:
    plain = pack(root / "b.tar", {"b.jpg": b"b"})
    (root / "a.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    shutil.copy(plain, root / "jpg/served-plain.tar.gz")  # as some servers send it
    (root / "jpg/c.tgz").write_bytes(gzip.compress(b"anything"))
    (root / "d.tar.tmp").write_bytes(b"half a download")
    (root / "e.tar").mkdir()
    pack(root / "jpg/deeper/f.tar")
    assert [p.name for p in archive_files(root)] == ["a.tar.gz", "b.tar", "c.tgz", "served-plain.tar.gz"]
    archives = archives_below(root)
    assert [p.name for p in archives.files] == ["b.tar", "served-plain.tar.gz"]
    assert [p.name for p in archives.compressed] == ["a.tar.gz", "c.tgz"]
    assert f"`gunzip {root}/*.tar.gz {root}/jpg/*.tgz`" in archives.advice


def test_a_folder_without_archives_or_that_is_not_there_has_none(root: Path) -> None:
    for folder in (root, root / "nowhere"):
        archives = archives_below(folder)
        assert (archives.files, archives.read("jpg/a.jpg"), archives.told, archives.advice) == ((), None, "", "")
        assert not archives.hold(["a", "b"]).any()


# once per process


def test_archives_are_looked_into_once_even_by_many_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {f"{n}.jpg": bytes([n]) * 5000 for n in range(50)}
    pack(root / "a.tar", content)
    looked, known = [], module._index
    monkeypatch.setattr(module, "_index", lambda *given: looked.append(given) or known(*given))
    barrier = threading.Barrier(8)

    def read_all(_: int) -> dict[str, bytes | None]:
        barrier.wait()
        return {name: archives_below(root).read(f"jpg/{name}") for name in content}

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_all, range(8))) == [content] * 8
    archives_below(root, again=True)
    assert len(looked) == 1


def test_what_was_added_or_exchanged_is_seen_when_looked_at_again(root: Path) -> None:
    assert archives_below(root).read("jpg/a.jpg") is None
    for data, changed in ((b"old", 1), (b"new and longer" * 999, 1), (b"NEW AND LONGER" * 999, 2)):
        before = archives_below(root).read("jpg/a.jpg")
        pack(root / "a.tar", {"a.jpg": data, "b.jpg": b""})
        os.utime(root / "a.tar", ns=(changed, changed))
        assert before is None or archives_below(root).read("jpg/a.jpg") == data[: len(before)]
        assert archives_below(root, again=True).read("jpg/a.jpg") == data


def test_two_working_directories_are_two_data_sets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        pack(root / name / "data/a.tar", {"a.jpg": name.encode()})
        monkeypatch.chdir(root / name)
        assert archives_below(Path("data")).read("a.jpg") == name.encode()


# images


def picture(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(data, "PNG")
    return data.getvalue()


def test_an_image_is_the_same_unpacked_or_not_and_the_file_wins(root: Path) -> None:
    pack(root / "a.tar", {"a.png": picture("red"), "b.png": picture("lime"), "broken.png": b"nothing"})
    (root / "jpg/b.png").write_bytes(picture("blue"))
    for name, colour in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        image = read_image(root, f"jpg/{name}").image
        assert image is not None
        assert image.getpixel((0, 0)) == colour
    packed = [read_image(root, f"jpg/{name}") for name in ("a.png", "broken.png")]
    with tarfile.open(root / "a.tar") as archive:
        archive.extractall(root / "jpg", filter="data")
    for before, name in zip(packed, ("a.png", "broken.png"), strict=True):
        after = read_image(root, f"jpg/{name}")
        np.testing.assert_array_equal(after.digest, before.digest)
        assert after.reason == before.reason


def test_a_missing_image_names_the_archives_that_were_looked_into(root: Path) -> None:
    with pytest.raises(InputError, match=r"jpg/x\.jpg is missing below .*distractors: restore it, or take it out"):
        read_image(root, "jpg/x.jpg")
    for n in range(5):
        pack(root / f"{n}.tar", {f"{n}.jpg": b""})
    archives_below(root, again=True)
    with pytest.raises(InputError, match=r"also from its archives \(0\.tar, 1\.tar and 3 more\): restore it"):
        read_image(root, "jpg/x.jpg")
    (root / "jpg/6.tar.gz").write_bytes(gzip.compress(b"x"))
    archives_below(root, again=True)
    with pytest.raises(InputError, match=r"compressed archives are not read \(6\.tar\.gz\), run `gunzip .*jpg/\*\.tar"):
        read_image(root, "jpg/x.jpg")


# what is refused


def test_an_image_that_is_there_twice_is_refused_with_its_archives(root: Path) -> None:
    pack(root / "a.tar", {"a.jpg": b"1", "c.jpg": b"c"})
    pack(root / "jpg/b.tar", {"jpg/a.jpg": b"2"})
    with tarfile.open(root / "c.tar", "w") as archive:
        for data in (b"1", b"2"):
            member = tarfile.TarInfo("d.jpg")
            member.size = 1
            archive.addfile(member, io.BytesIO(data))
    archives = archives_below(root)
    assert archives.hold(["jpg/a.jpg", "jpg/c.jpg", "jpg/d.jpg"]).tolist() == [False, True, False]
    with pytest.raises(InputError, match=r"hold jpg/a\.jpg 2 times \(a\.tar, b\.tar\): remove all but one"):
        archives.read("jpg/a.jpg")
    with pytest.raises(InputError, match=r"hold jpg/d\.jpg 2 times \(c\.tar\)"):
        archives.read("jpg/d.jpg")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_what_is_no_file_is_refused_when_it_is_asked_for(root: Path, kind: bytes) -> None:
    with tarfile.open(root / "a.tar", "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (kind, "/etc/passwd") if name == "a.jpg" else (tarfile.REGTYPE, "")
            archive.addfile(member)
    archives = archives_below(root)
    assert archives.read("jpg/b.jpg") == b""
    assert archives.hold(["jpg/a.jpg", "jpg/b.jpg"]).tolist() == [False, True]
    with pytest.raises(InputError, match=r"a\.tar holds jpg/a\.jpg as a link, a device or in pieces.*: unpack it"):
        archives.read("jpg/a.jpg")


def test_a_member_in_pieces_is_refused(root: Path) -> None:
    with tarfile.open(root / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"GNU.sparse.map": "0,512,1024,512", "GNU.sparse.size": "1536"}
        member.size = 1024
        archive.addfile(member, io.BytesIO(bytes(1024)))
    with pytest.raises(InputError, match="in pieces"):
        archives_below(root).read("jpg/a.jpg")


def test_a_member_larger_than_an_image_is_refused_and_not_read(root: Path) -> None:
    with open(root / "a.tar", "wb") as handle:  # a file with a hole: it takes no room
        member = tarfile.TarInfo("a.jpg")
        member.size = LARGEST + 1
        handle.write(member.tobuf())
        handle.truncate(LARGEST + 4096)
    archives = archives_below(root)
    assert not archives.hold(["jpg/a.jpg"]).any()
    with pytest.raises(InputError, match=r"a\.tar says that jpg/a\.jpg has 1\.1 GB, more than an image"):
        archives.read("jpg/a.jpg")


def test_an_archive_that_is_gone_or_shorter_than_it_was_is_refused(root: Path) -> None:
    pack(root / "a.tar")
    archives = archives_below(root)
    (root / "a.tar").write_bytes((root / "a.tar").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"a\.tar changed while it was read"):
        archives.read("jpg/1/three.png")
    (root / "a.tar").unlink()
    with pytest.raises(InputError, match=r"cannot read jpg/1/three\.png from .*a\.tar: No such file"):
        archives.read("jpg/1/three.png")
