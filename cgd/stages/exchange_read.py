"""Vectors in the files of other tools: HDF5 in hloc's layout or a plain one, and `.npy`; nothing is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cgd.errors import CgdError, InputError, MissingError
from cgd.stages.exchange_write import DESCRIPTOR, FEATURES, IDS, VALID, ids_file

LARGEST_DIM = 65_536  # what claims more would take all memory for one row
CACHE = 1 << 26  # bytes of unpacked chunks to keep, where rows are not read in their order
HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Foreign:
    """An open file of M vectors of `dim` dimensions.

    `names` (M) are its ids, or none where rows stand in a data set's order; `valid` (M,) bool tells which rows are to
    be used. `read` gives the rows (m, dim) at some places (m,) in the file's precision.
    """

    names: Sequence[str] | None
    valid: np.ndarray
    dim: int
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.valid)


def content_of(file: Path) -> str:
    """SHA-256 of a file, and of the ids beside it where there are some."""
    digests = []
    for each in (file, *([ids_file(file)] if ids_file(file).is_file() else [])):
        with _sentences(each), open(each, "rb") as handle:
            digests.append(hashlib.file_digest(handle, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@contextmanager
def opened(file: Path) -> Iterator[Foreign]:
    """Open `file` by its suffix; raises `InputError` for what is damaged, no floating point, or elsewhere."""
    if file.suffix.lower() not in (*HDF5, ".npy"):
        raise InputError(f"{file}: vectors come in files .h5, .hdf5 or .npy.")
    if not file.is_file():
        raise MissingError(f"there is no file {file}.")
    with ExitStack() as stack:
        with _sentences(file):
            found = _open_npy(file) if file.suffix.lower() == ".npy" else _open_hdf5(file, stack)
        if not found.valid.any():
            raise InputError(f"{file} holds no vector.")
        yield found


def _open_npy(file: Path) -> Foreign:
    with np.errstate(over="raise"):  # a shape whose size is no number
        vectors = np.lib.format.open_memmap(file, mode="r")  # refuses Python objects
    _check_form(file, "the array", vectors)
    names, valid = None, np.ones(len(vectors), bool)
    beside = ids_file(file)
    if beside.is_file():
        with _sentences(beside):
            about = json.loads(beside.read_text(encoding="utf-8"))
        about = about if isinstance(about, dict) else {IDS: about}
        names = _checked_names(beside, about.get(IDS), len(vectors))
        valid = _checked_valid(beside, np.asarray(about.get(VALID, valid)), len(vectors))
    return Foreign(names, valid, vectors.shape[1], lambda places: np.asarray(vectors[places]))


def _open_hdf5(file: Path, stack: ExitStack) -> Foreign:
    if not h5py.is_hdf5(file):
        raise InputError(f"{file} is no HDF5 file: it is of another format, compressed, or cut short.")
    handle = stack.enter_context(h5py.File(file, "r", locking="best-effort", rdcc_nbytes=CACHE))
    paths = _paths(file, handle)
    if {IDS, FEATURES} <= paths.keys() and isinstance(handle[FEATURES], h5py.Dataset):
        return _plain(file, handle)
    names = [path.removesuffix(f"/{DESCRIPTOR}") for path in paths if path.endswith(f"/{DESCRIPTOR}")]
    if not names:
        raise InputError(
            f"{file} has neither a '{DESCRIPTOR}' in a group for each image (hloc's layout) nor the datasets '{IDS}' "
            f"and '{FEATURES}'."
        )
    return _hloc(file, handle, names)


def _paths(file: Path, handle: h5py.File) -> dict[str, None]:
    """Everything that stands in the file itself; refuses links, which may lead to any other file."""
    found: dict[str, None] = {}

    def visit(path: str, link: object) -> str | None:
        found[path] = None
        return None if isinstance(link, h5py.HardLink) else path  # what is returned ends the visit

    if linked := handle.visititems_links(visit):
        raise InputError(
            f"{file}: {linked!r} is a link to another place, and links are not followed: write a file that holds its "
            "vectors itself."
        )
    return found


def _hloc(file: Path, handle: h5py.File, names: Sequence[str]) -> Foreign:
    dim = _vector(file, handle, names[0]).shape[0]

    def read(places: np.ndarray) -> np.ndarray:
        rows = []
        with _sentences(file):
            for place in places:
                vector = _vector(file, handle, names[place])
                if vector.shape != (dim,):
                    raise InputError(
                        f"{file}: {names[place]!r} has a {DESCRIPTOR} of shape {vector.shape}, {names[0]!r} one of "
                        f"{(dim,)}."
                    )
                rows.append(vector[()])
        return np.stack(rows) if rows else np.empty((0, dim), np.float32)

    return Foreign(names, np.ones(len(names), bool), dim, read)


def _vector(file: Path, handle: h5py.File, name: str) -> h5py.Dataset:
    vector = _dataset(file, handle, f"{name}/{DESCRIPTOR}")
    _check_form(file, f"'{name}/{DESCRIPTOR}'", vector, axes=1)
    return vector


def _plain(file: Path, handle: h5py.File) -> Foreign:
    features, ids = _dataset(file, handle, FEATURES), _dataset(file, handle, IDS)
    _check_form(file, f"'{FEATURES}'", features)
    if h5py.check_string_dtype(ids.dtype) is None:
        raise InputError(f"{file}: '{IDS}' holds {ids.dtype}, not text.")
    names = _checked_names(file, ids.asstr("utf-8")[()].tolist() if ids.ndim == 1 else None, len(features))
    valid = np.ones(len(features), bool)
    if VALID in handle:
        valid = _checked_valid(file, np.asarray(_dataset(file, handle, VALID)[()]), len(features))

    def read(places: np.ndarray) -> np.ndarray:
        with _sentences(file):
            if len(places) and np.array_equal(places, np.arange(places[0], places[0] + len(places))):
                return np.asarray(features[places[0] : places[0] + len(places)])
            rows = np.empty((len(places), features.shape[1]), features.dtype)
            for at in np.argsort(places):  # forward through the file; h5py's own lists of rows are slower
                rows[at] = features[places[at]]
            return rows

    return Foreign(names, valid, features.shape[1], read)


def _dataset(file: Path, handle: h5py.File, path: str) -> h5py.Dataset:
    """A dataset whose bytes stand in the file itself."""
    found = handle[path]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{file}: {path!r} is no dataset.")
    if found.external or found.is_virtual:
        raise InputError(f"{file}: the numbers of {path!r} stand in other files, which are not opened.")
    return found


def _check_form(file: Path, what: str, array: Any, axes: int = 2) -> None:
    """Refuse what is no array of floating point of `axes` axes."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(f"{file}: {what} holds {array.dtype}, vectors are float16, float32 or float64.")
    if len(array.shape) != axes or not 1 <= array.shape[-1] <= LARGEST_DIM:
        raise InputError(
            f"{file}: {what} has the shape {array.shape}, expected {'(images, ' if axes == 2 else '('}dimensions) with "
            f"1 to {LARGEST_DIM} dimensions."
        )


def _checked_names(file: Path, names: Any, rows: int) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file}: '{IDS}' is no list of texts.")
    if len(names) != rows:
        raise InputError(f"{file} has {len(names)} ids for {rows} vectors.")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{file} names {name!r} twice: ids must be unique.")
        seen.add(name)
    return names


def _checked_valid(file: Path, valid: np.ndarray, rows: int) -> np.ndarray:
    if valid.dtype != bool or valid.shape != (rows,):
        raise InputError(f"{file}: '{VALID}' is no list of {rows} times true or false.")
    return valid


@contextmanager
def _sentences(file: Path) -> Iterator[None]:
    """What reading a damaged file raises, as one sentence."""
    try:
        yield
    except CgdError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, ArithmeticError, MemoryError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {file}: {reason}; write or copy it again.") from error
