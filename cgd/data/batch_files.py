"""Images that lie by the thousand in one file: the batches of CIFAR-10, as pickles or plain bytes; nothing is run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cgd.data.pickles import read_plain_pickle
from cgd.errors import InputError
from cgd.models.pickles import STAND_INS

MARK = "#"  # `data_batch_1#17` is the 18th image of that file
SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_HEADER = f"P6\n{SIDE} {SIDE}\n255\n".encode()  # of a portable pixmap: the plainest image file there is
_opening = threading.Lock()


@dataclass(frozen=True)
class BatchFile:
    """`labels` (N,) int64 and `pixels` (N, 3072) uint8, all red values of an image before its green and blue ones."""

    labels: np.ndarray
    pixels: np.ndarray


def read_batch(file: Path) -> BatchFile:
    """A batch of the python version, or of the binary one where its name ends in `.bin`; kept while it does not change.

    Raises `InputError` where the file cannot be read or is no such batch.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}.") from error
    with _opening:  # the first of several threads reads, the others wait
        return _read(file, stat.st_size, stat.st_mtime_ns)


def image_in_batch(root: Path, path: str) -> bytes | None:
    """The image `FILE#ROW` below `root` as the bytes of a pixmap; None where `path` does not name one."""
    file, mark, row = path.rpartition(MARK)
    if not mark or not row.isdecimal() or not (root / file).is_file():
        return None
    pixels = read_batch(root / file).pixels
    if int(row) >= len(pixels):
        raise InputError(f"{root / file} holds {len(pixels)} images, so there is no {path}: fetch the file again.")
    return _HEADER + pixels[int(row)].reshape(3, SIDE, SIDE).transpose(1, 2, 0).tobytes()


@lru_cache(maxsize=6)
def _read(file: Path, size: int, _changed: int) -> BatchFile:
    return _binary(file, size) if file.suffix == ".bin" else _pickled(file)


def _pickled(file: Path) -> BatchFile:
    content = read_plain_pickle(file, {name: stand_in for stand_in, name in STAND_INS})
    try:
        labels = np.array(content["labels"], np.int64)
        pixels: np.ndarray = content["data"].numpy()
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS) or labels.ndim != 1:
            raise ValueError(f"{len(labels)} labels beside pixels of {pixels.shape} {pixels.dtype}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{file} is no batch of CIFAR-10 ({error!r}): fetch it again.") from error
    return BatchFile(labels, pixels)


def _binary(file: Path, size: int) -> BatchFile:
    if size % (1 + _PIXELS) or not size:
        raise InputError(
            f"{file} has {size} bytes, no whole number of images of {1 + _PIXELS} bytes: it is cut short, or no batch "
            "of CIFAR-10; fetch it again."
        )
    rows = np.memmap(file, np.uint8, "r").reshape(-1, 1 + _PIXELS)
    return BatchFile(rows[:, 0].astype(np.int64), rows[:, 1:])
