"""Archives that are damaged, made by an enemy, or only half of what they should be; and resuming from them."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import CROPS, LABEL, accepted, extract, photos, refused, sealed

from cgd.data.archives import archives_below
from cgd.data.images import read_image
from cgd.errors import InputError

NAMES = tuple(f"{n % 3}/{n:02}.png" for n in range(12))


def header(name: str = "a.jpg", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block with a sum that fits; no library would write most of what is tried here."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    fits = 0 <= size < 8**11
    block[124:136] = (
        b"%011o\0" % size if fits else bytes([0x80 if size > 0 else 0xFF]) + size.to_bytes(11, "big", signed=True)
    )
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)
GOOD = header("good.jpg", 3) + padded(b"yes")


def extended(record: bytes, size: int | None = None, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", len(record) if size is None else size, kind) + padded(record)


# what must be refused, at once and in one sentence

HOSTILE = {
    "an empty file": b"",
    "no tar": b"this is no archive\n" * 100,
    "another compression": b"BZh91AY&SY" + bytes(600),
    "a negative size": GOOD + header(size=-1024) + END,
    "a negative size that leads to its own header": GOOD + header(size=-512) + END,
    "a negative size of less than a block": GOOD + header(size=-5) + END,
    "pieces that lead to their own header": GOOD + header(size=-512, kind=tarfile.GNUTYPE_SPARSE) + END,
    "a negative size in an extended header": GOOD + extended(b"15 size=-10000\n") + header() + END,
    "a negative extended header": GOOD + header("pax", -512, tarfile.XHDTYPE) + header() + END,
    "an immensely negative extended header": GOOD + header("pax", -(1 << 80), tarfile.XHDTYPE) + header() + END,
    "a negative long name": GOOD + header("L", -1024, tarfile.GNUTYPE_LONGNAME) + header() + END,
    "an endless long name": GOOD + header("L", 1 << 40, tarfile.GNUTYPE_LONGNAME) + bytes(4096),
    "an extended header of many megabytes": GOOD + header("x", 8 << 20, tarfile.XHDTYPE) + bytes(8 << 20) + END,
    "an extended header of no length": GOOD + extended(b"0 a=b\n") + header() + END,
    "headers of headers": GOOD + (header("L", 1, tarfile.GNUTYPE_LONGNAME) + padded(b"x")) * 5000 + END,
    "a size beyond the end": GOOD + header(size=1 << 50) + END,
    "a size beyond all numbers": GOOD + header(size=1 << 80) + END,
    "a wrong sum": GOOD + b"X" + header()[1:] + END,
    "noise after a member": GOOD + bytes(range(1, 256)) * 3,
    "an extended header for nothing": GOOD + extended(b"10 path=a\n"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_broken_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"the archive .*a\.tar is damaged or cut short .*: fetch it again\."):
        archives_below(tmp_path)
    with pytest.raises(InputError, match=r"a\.tar is damaged"):
        read_image(tmp_path, "jpg/good.jpg")


@pytest.mark.timeout(60)
def test_an_archive_is_refused_wherever_it_is_cut_within_a_member(tmp_path: Path) -> None:
    whole = b"".join(header(f"{n}.jpg", 700) + padded(bytes([n + 1]) * 700) for n in range(3)) + END
    for length in range(0, 3 * 1536, 100):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        if length % 1536:
            with pytest.raises(InputError, match="damaged or cut short"):
                archives_below(tmp_path, again=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_bytes_changed_at_random_never_do_more_than_be_refused(tmp_path: Path, form: int) -> None:
    """Nothing but an `InputError` comes out, and what is still found has the length the archive says."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for n in range(4):
            member = tarfile.TarInfo(f"{'long' * 40 * (n % 2)}{n}ä.jpg")
            member.size = 300 * n
            archive.addfile(member, io.BytesIO(bytes([n]) * member.size))
    whole, generator, refusals = made.getvalue(), np.random.default_rng(form), 0
    for _ in range(1500):
        data = bytearray(whole)
        for place in generator.integers(0, 9 * 512, generator.integers(1, 4)):
            data[place] = generator.choice([0, 0x20, 0x2D, 0x31, 0x37, 0x80, 0xFF, generator.integers(256)])
        for start in range(0, len(data), 512):  # sums that fit, or nearly all would be refused for that alone
            block = data[start : start + 512]
            if generator.random() < 0.8 and any(block[257:262]):
                data[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
        (tmp_path / "a.tar").write_bytes(data)
        try:
            found = archives_below(tmp_path, again=True)
            for n in range(4):
                assert len(found.read(f"jpg/{n}ä.jpg") or b"") <= len(data)
        except InputError:
            refusals += 1
    assert 100 < refusals < 1500
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_names_that_lead_elsewhere_are_never_looked_for_and_nothing_is_written(tmp_path: Path) -> None:
    root = tmp_path / "deep/root"
    (root / "jpg").mkdir(parents=True)
    names = ["/etc/passwd.jpg", "../../out.jpg", "jpg/../../out.jpg", "a/../b.jpg", str(tmp_path / "abs.jpg")]
    with tarfile.open(root / "a.tar", "w") as archive:
        for name in [*names, "good.jpg"]:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"no!"))
        for name, kind in (("jpg", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc"
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    assert read_image(root, "jpg/good.jpg").reason
    for path in ("out.jpg", "b.jpg", "etc/passwd.jpg"):
        with pytest.raises(InputError, match="is missing below"):
            read_image(root, f"jpg/{path}")
    assert sorted(tmp_path.rglob("*")) == before


# the distractors, unpacked or not


def distractors(folder: Path) -> Path:
    """R1M with twelve images, unpacked."""
    root = folder / "revisitop1m"
    photos(root / "jpg", *NAMES)
    (root / "revisitop1m.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


def pack(root: Path, number: int, names: Sequence[str]) -> None:
    """Put images into an archive as it is published, and take their files away."""
    with tarfile.open(root / f"jpg/revisitop1m.{number}.tar", "w") as archive:
        for name in names:
            archive.add(root / "jpg" / name, name)
    for name in names:
        (root / "jpg" / name).unlink()


def extracted(*more: str) -> str:
    arguments = extract("--dataset", "revisitop1m:.", "--views", "1", *CROPS, "--shard-rows", "4", *more)
    return str(accepted(*arguments)["teachers"][LABEL])


Tree = Callable[..., dict[str, bytes]]


def test_a_store_is_the_same_bytes_from_files_from_archives_and_from_half_of_each(bare: Path, tree: Tree) -> None:
    root = distractors(bare)
    extracted("--store", "files")
    extracted("--store", "both", "--part", "1/3")
    for number, names in enumerate((NAMES[:5], NAMES[5:9], NAMES[9:]), 1):
        pack(root, number, names)
    assert not list(root.rglob("*.png"))
    extracted("--store", "both")
    extracted("--store", "archives")
    known = tree(bare / "files")
    assert known == tree(bare / "both") == tree(bare / "archives")
    assert [key.kind for key in sealed(bare / "files")] == ["canaries"] * 2 + ["embeddings"] * 2 + ["images"]
    assert not list(root.rglob("*.png"))


def test_resuming_from_archives_of_other_images_is_refused(bare: Path) -> None:
    root = distractors(bare)
    extracted("--part", "1/3")
    shutil.rmtree(root / "jpg")
    photos(root / "jpg", *NAMES, seed=1)
    pack(root, 1, NAMES)
    message = refused(*extract("--dataset", "revisitop1m:.", "--views", "1", *CROPS, "--shard-rows", "4"))
    assert "is not the one in the store" in message


def test_an_archive_that_was_not_fetched_is_told_before_anything_is_embedded(bare: Path) -> None:
    root = distractors(bare)
    pack(root, 1, NAMES[:5])
    pack(root, 3, NAMES[5:9])
    for name in NAMES[9:]:
        (root / "jpg" / name).unlink()
    message = refused(*extract("--dataset", "revisitop1m:."))
    assert f"3 of 3 images looked for are missing, e.g. jpg/{NAMES[9]}" in message
    assert "also from its archives (revisitop1m.1.tar, revisitop1m.3.tar)" in message
    assert "of revisitop1m.1 to .100, 98 are not there: 2, 4, 5, 6, 7 and 93 more" in message
    assert not (bare / "features.zarr").exists()


def test_a_damaged_archive_is_told_before_anything_is_embedded(bare: Path) -> None:
    root = distractors(bare)
    pack(root, 1, NAMES)
    archive = root / "jpg/revisitop1m.1.tar"
    archive.write_bytes(archive.read_bytes()[:5000])
    assert "revisitop1m.1.tar is damaged or cut short" in refused(*extract("--dataset", "revisitop1m:."))
    assert not (bare / "features.zarr").exists()


def test_an_image_that_is_no_image_in_an_archive_is_listed_as_invalid(bare: Path) -> None:
    root = distractors(bare)
    (root / "jpg" / NAMES[4]).write_bytes(b"no picture")
    pack(root, 1, NAMES)
    report = accepted(*extract("--dataset", "revisitop1m:."))
    assert (report["images"], report["valid"]) == (12, 11)
    assert [failed["id"] for failed in report["failed"]] == [NAMES[4]]
