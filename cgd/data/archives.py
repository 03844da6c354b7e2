"""Images inside the tar archives of a data set, found by name and read where they lie; nothing is unpacked.

A plain tar holds every member whole at a known offset. A compressed one does not: reading one image from the middle of
it means decompressing all before it, so compressed archives are named but not read.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tarfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cgd.data.loading import ahead
from cgd.errors import InputError
from cgd.progress import progress

PLACES = ("", "jpg")  # below the data set's folder
SUFFIXES = (".tar", ".tar.gz", ".tgz")
LARGEST = 1 << 30  # bytes of an image
READERS = 8  # of archives at the same time: the disk is waited for, not the processor
_GZIP = b"\x1f\x8b"
_DIGEST = 16
_NO_FILE = -1  # instead of the size of a folder, a link, a device or a member in pieces
_EXTENDED = b"xgXLK"  # types of headers that hold a name or a comment for the next one
_LONGEST = 1 << 20  # bytes of an extended header


@dataclass(frozen=True)
class Archives:
    """The archives `files` below a data set's `root`, and where their members are, sorted by `digests` of their names.

    `digests` (N,) are of 16 bytes, `owners` (N,) index `files`, `offsets` and `sizes` (N,) are bytes. `compressed`
    archives are not looked into.
    """

    root: Path
    files: tuple[Path, ...]
    compressed: tuple[Path, ...]
    digests: np.ndarray
    owners: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def hold(self, paths: Sequence[str]) -> np.ndarray:
        """Which of `paths` (M,) `read` can give, bool."""
        first, last = self._find(paths)
        size = np.append(self.sizes, _NO_FILE)[first]
        held: np.ndarray = (last - first == 1) & (size >= 0) & (size <= LARGEST)
        return held

    def read(self, path: str) -> bytes | None:
        """The bytes of the image `path`, relative to `root`, or None where it is in no archive.

        Raises `InputError` where it is there several times, is no file or too large, or its archive cannot be read.
        """
        (row,), (after,) = self._find([path])
        if row == after:
            return None
        if after - row > 1:
            owners = [self.files[owner].name for owner in np.unique(self.owners[row:after])]
            raise InputError(
                f"the archives below {self.root} hold {path} {after - row} times ({_some(owners)}): "
                "remove all but one, or unpack the right one."
            )
        file, offset, size = self.files[self.owners[row]], int(self.offsets[row]), int(self.sizes[row])
        if size == _NO_FILE:
            raise InputError(f"{file} holds {path} as a link, a device or in pieces, not as a file: unpack it.")
        if size > LARGEST:
            raise InputError(f"{file} says that {path} has {size / 1e9:.1f} GB, more than an image: fetch it again.")
        try:
            with open(file, "rb") as handle:
                handle.seek(offset)
                data = handle.read(size)
        except OSError as error:
            raise InputError(f"cannot read {path} from {file}: {error.strerror}; mend that and repeat.") from error
        if len(data) < size:
            raise InputError(f"{file} changed while it was read: repeat the same command.")
        return data

    @property
    def told(self) -> str:
        """Where an image that is missing was looked for as well; empty where there is no archive to read."""
        return f", also from its archives ({_some([f.name for f in self.files])})" if self.files else ""

    @property
    def advice(self) -> str:
        """What makes compressed archives readable; empty where there are none."""
        if not self.compressed:
            return ""
        kinds = dict.fromkeys((f.parent, ".tgz" if f.suffix == ".tgz" else ".tar.gz") for f in self.compressed)
        patterns = [f"{shlex.quote(str(folder))}/*{suffix}" for folder, suffix in kinds]
        return (
            f"compressed archives are not read ({_some([f.name for f in self.compressed])}), run "
            f"`gunzip {' '.join(patterns)}` once, after which they take hardly more room"
        )

    def _find(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """First row, and the row after the last one, of the members that are each of `paths`."""
        wanted = np.frombuffer(b"".join(_digest(path, self.root.name) for path in paths), f"S{_DIGEST}")
        return np.searchsorted(self.digests, wanted), np.searchsorted(self.digests, wanted, "right")


_known: dict[str, tuple[object, Archives]] = {}
_looking = threading.Lock()


def archive_files(root: Path) -> list[Path]:
    """The archives of the data set in `root`, compressed ones too; none of them is opened."""
    folders = [root / place for place in PLACES if (root / place).is_dir()]
    return [p for folder in folders for p in sorted(folder.iterdir()) if p.name.endswith(SUFFIXES) and p.is_file()]


def archives_below(root: Path, again: bool = False) -> Archives:
    """The members of the archives of the data set in `root`, once per process; `again` looks whether these changed.

    Every header is read, not the images between them. Raises `InputError` where an archive is damaged or cut short.
    """
    place = os.path.abspath(root)
    with _looking:  # the first of several threads looks, the others wait
        if again or place not in _known:
            stamps = {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in archive_files(Path(place))}
            if place not in _known or _known[place][0] != stamps:
                _known[place] = stamps, _index(Path(place), tuple(stamps))
        return _known[place][1]


def _index(root: Path, found: Sequence[Path]) -> Archives:
    compressed = tuple(file for file in found if _starts(file) == _GZIP)
    files = tuple(file for file in found if file not in set(compressed))
    parts = []
    with progress(len(files), f"looking into {root.name}", "archives") as bar:
        for part in ahead(lambda file: _members(file, root.name), files, min(READERS, len(files)), 2 * READERS):
            parts.append(part)
            bar.update(1)
    digests = np.frombuffer(b"".join(names for names, _, _ in parts), f"S{_DIGEST}")
    order = np.argsort(digests, kind="stable")
    owners = np.repeat(np.arange(len(files), dtype=np.uint32), [len(sizes) for _, _, sizes in parts])
    offsets, sizes = (
        np.concatenate([np.zeros(0, np.int64), *(np.frombuffer(p[column], np.int64) for p in parts)])
        for column in (1, 2)
    )
    return Archives(root, files, compressed, digests[order], owners[order], offsets[order], sizes[order])


def _members(file: Path, root_name: str) -> tuple[bytes, array[int], array[int]]:
    """Digests of the names, offsets and sizes of all members."""
    names, offsets, sizes = bytearray(), array("q"), array("q")
    for member in _headers(file):
        names += _digest(member.name, root_name)
        offsets.append(member.offset_data)
        sizes.append(member.size if member.isreg() and not member.issparse() else _NO_FILE)
    return bytes(names), offsets, sizes


class _Header(tarfile.TarInfo):
    """Refuses a name of many megabytes, which would be read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > _LONGEST:
            raise tarfile.HeaderError(f"a header of {header.size} bytes")
        return header


def _headers(file: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a plain tar archive, none of them kept."""
    try:
        with open(file, "rb") as handle, tarfile.open(fileobj=handle, mode="r:", tarinfo=_Header) as archive:
            before, length = -1, os.fstat(handle.fileno()).st_size
            while (member := archive.next()) is not None:
                if member.size < 0 or not before < archive.offset <= length:
                    raise tarfile.HeaderError(f"{member.size} bytes at byte {member.offset_data} of {length}")
                before = archive.offset
                archive.members.clear()  # type: ignore[attr-defined]  # or it would keep them all
                yield member
            handle.seek(archive.offset)
            if handle.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile ends silently at a header it cannot read
                raise tarfile.HeaderError(f"no header at byte {archive.offset}")
    except OSError as error:
        raise InputError(f"cannot read the archive {file}: {error.strerror}; mend that and repeat.") from error
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:  # what tarfile lets through
        raise InputError(f"the archive {file} is damaged or cut short ({error}): fetch it again.") from error


def _starts(file: Path) -> bytes:
    try:
        with open(file, "rb") as handle:
            return handle.read(len(_GZIP))
    except OSError as error:
        raise InputError(f"cannot read the archive {file}: {error.strerror}; mend that and repeat.") from error


def _digest(name: str, root_name: str) -> bytes:
    """Of a path, whether an archive was made in the data set's folder, beside it or in the folder `jpg` of it."""
    for prefix in ("./", f"{root_name}/", "jpg/"):
        name = name.removeprefix(prefix)
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=_DIGEST).digest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
