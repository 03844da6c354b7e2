"""Images to RGB pixels: read whole, digested, decoded; EXIF orientation is ignored by policy."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from cgd.data.archives import archives_below
from cgd.data.batch_files import image_in_batch
from cgd.errors import InputError

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"]
)


@dataclass(frozen=True)
class DecodedImage:
    """`image` in RGB, or none with the `reason` why the whole file cannot be decoded; `digest` (32,) uint8."""

    image: Image.Image | None
    digest: np.ndarray
    reason: str


class ImageFile:
    """The bytes of an image's file, with their `digest` (32,) uint8; decoded once, when the pixels are asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digest = digest_of(data)

    @property
    def image(self) -> Image.Image | None:
        """As `DecodedImage`."""
        return self._decoded[0]

    @property
    def reason(self) -> str:
        """As `DecodedImage`."""
        return self._decoded[1]

    @cached_property
    def _decoded(self) -> tuple[Image.Image | None, str]:
        return _try_to_decode(self.data)


def read_image(root: Path | None, path: str) -> DecodedImage:
    """Read and decode `root/path`.

    An image that is missing or cannot be read raises; one that cannot be decoded does not.
    """
    return decode(image_bytes(root, path))


def image_bytes(root: Path | None, path: str) -> bytes:
    """The bytes of the file `root/path`, or else of the image of that name in a batch or in the archives of `root`."""
    if root is None:
        raise InputError(f"the folder that holds {path} is not known on this machine: give --dataset KIND:PATH once.")
    try:
        return (root / path).read_bytes()
    except FileNotFoundError:
        return image_in_batch(root, path) or _from_archives(root, path)
    except OSError as error:
        raise InputError(
            f"cannot read the image {root / path}: {error.strerror}; mend that and repeat the same command."
        ) from error


def digest_of(data: bytes) -> np.ndarray:
    """The SHA-256 (32,) uint8 by which an image is known."""
    return np.frombuffer(hashlib.sha256(data).digest(), np.uint8)


def decode(data: bytes) -> DecodedImage:
    """The image in a file's bytes."""
    image, reason = _try_to_decode(data)
    return DecodedImage(image, digest_of(data), reason)


def _try_to_decode(data: bytes) -> tuple[Image.Image | None, str]:
    """The image, or why there is none."""
    if not data:
        return None, "empty file"
    try:
        return _decode(data), ""
    except (
        OSError,
        ValueError,
        SyntaxError,
        RuntimeError,
        LookupError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        # What Pillow's decoders raise on damaged files; anything else is a bug and keeps its traceback.
        said = re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error))  # an address would differ from run to run
        return None, f"{type(error).__name__}: {said}".replace("\n", " ")[:200]


def _from_archives(root: Path, path: str) -> bytes:
    archives = archives_below(root)
    data = archives.read(path)
    if data is None:
        advice = archives.advice or "restore it, or take it out of the data set"
        raise InputError(f"the image {path} is missing below {root}{archives.told}: {advice}.") from None
    return data


def _decode(data: bytes) -> Image.Image:
    """The first frame in RGB; 16-bit grey is scaled to 8 bits, transparency is dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd metadata; the pixels are what counts
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image, dtype=np.float64)
            wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
            top = 65535.0 if wide else 255.0
            grey = np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)
            return Image.fromarray(grey).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
