"""Reading weights files safely and filling networks strictly."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cgd.errors import WeightsError

# What torch and safetensors raise on damaged files of their formats, old and new.
_UNREADABLE = (
    SafetensorError, RuntimeError, EOFError, ValueError, LookupError, OSError, AssertionError, TypeError, struct.error,
    AttributeError, MemoryError, OverflowError
)  # fmt: skip


SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")  # that weights files are found by
HEAD = "head."  # what a student's last layer is called, where it has one
HEADER = "cgd"  # one key of the safetensors header holds all we write there: several would come in random order
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by name, and the plain values that `cgd teachers import` put beside them."""

    path: Path
    state: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class WeightsFile:
    """A weights file that may be elsewhere: its name and SHA-256 say what it is, `path` where it is, if known."""

    name: str
    digest: str
    path: Path | None

    def read(self) -> Checkpoint:
        """Its tensors; a clear error where the file is not on this machine."""
        if self.path is None:
            raise WeightsError(
                f"the weights file {self.name} is needed now: give the folder that holds it with --weights."
            )
        return read_checkpoint(self.path)


def locate(name: str, digest: str | None, folder: Path | None, hint: str = "") -> WeightsFile:
    """The file `name` in `folder`, or as a path where no folder is given; `hint` says how to get an absent one.

    With its `digest` known, the file may be absent until it is read; one with another digest is refused.
    """
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        raise WeightsError(f"sha256={digest} of the weights {name} is no SHA-256: 64 hexadecimal digits.")
    path = (Path(name) if folder is None else folder / name).absolute()
    if not path.is_file():
        if digest:
            return WeightsFile(name, digest, None)
        where = f"is not in {folder}" if folder else "is not here: give the folder that holds it with --weights DIR"
        raise WeightsError(f"the weights file {name} {where}{hint}.")
    found = file_digest(path)
    if digest not in (None, found):
        raise WeightsError(
            f"{path} has the SHA-256 {found}, the recipe was made with {digest}: get the file of the recipe."
        )
    return WeightsFile(name, found, path)


def with_digest(digest: str, folder: Path | None) -> Path | None:
    """The weights file in `folder` that has this SHA-256, whatever it is called."""
    files = sorted(folder.iterdir()) if folder and folder.is_dir() else []
    readable = (p for p in files if p.suffix in SUFFIXES and p.is_file() and os.access(p, os.R_OK))
    return next((path for path in readable if file_digest(path) == digest), None)


def file_digest(path: Path) -> str:
    """SHA-256 of a weights file; a missing one is a clear error."""
    try:
        stat = path.stat()
    except OSError as error:
        raise WeightsError(f"cannot read the weights file {path}: {error.strerror}.") from error
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read `.safetensors`, or a torch file from which nothing but tensors and plain values is built."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_torch(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors.")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no named tensors, neither at its top nor under 'state_dict'.")
    return Checkpoint(path, {k: v for k, v in state.items() if isinstance(v, Tensor)}, {})


def read_torch(path: Path, stand_ins: Sequence[Any] = ()) -> Any:
    """What a torch file holds: tensors, numbers, text, plain containers, and `stand_ins` for what they name.

    Raises `WeightsError` where the file is damaged or asks for anything else.
    """
    if inside := _packed(path):
        raise WeightsError(f"{path} is an archive that holds {inside}: unpack it and give that file.")
    try:
        with _only(stand_ins), warnings.catch_warnings(action="ignore"):  # on kinds of tensors that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} is refused: {_why_refused(error)}.") from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


@contextmanager
def _only(stand_ins: Sequence[Any]) -> Iterator[None]:
    """Let torch's unpickler build `stand_ins`, and nothing that other libraries have allowed for themselves."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(list(stand_ins))
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _packed(path: Path) -> str | None:
    """The weights file inside a .zip that is not itself a torch file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None
    return None if any(n.endswith("data.pkl") for n in names) else next((n for n in names if ".pt" in n), None)


def read_header(path: Path) -> dict[str, Any]:
    """What `cgd teachers import` wrote beside the tensors of a safetensors file; empty where it did not."""
    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads((handle.metadata() or {}).get(HEADER, "{}"))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a damaged header.")
    return header


def _read_safetensors(path: Path) -> Checkpoint:
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as handle:
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return Checkpoint(path, state, header)


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is no readable weights file, perhaps cut short: {_first_line(error)}.")


def fill(network: nn.Module, checkpoint: Checkpoint, drop: Sequence[str] = ()) -> None:
    """Load every tensor of `checkpoint` into `network`; names and shapes must agree exactly.

    `drop` are prefixes of tensors the network has no use for (a classifier). Only batch norm's step counters,
    which influence nothing, may be absent from the file.
    """
    given = {k: v for k, v in checkpoint.state.items() if not any(k.startswith(prefix) for prefix in drop)}
    wanted = network.state_dict()
    missing = sorted(k for k in wanted.keys() - given.keys() if not k.endswith("num_batches_tracked"))
    surplus = sorted(given.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & given.keys() if wanted[k].shape != given[k].shape)
    kinds = {"tensors missing": missing, "unknown tensors": surplus, "of another shape": shapes}
    told = [f"{len(names)} {what} (first: {names[0]})" for what, names in kinds.items() if names]
    if told:
        raise WeightsError(f"{checkpoint.path} belongs to another network: {', '.join(told)}.")
    counters = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}
    network.load_state_dict(counters | given)


def fill_below_head(network: nn.Module, checkpoint: Checkpoint) -> None:
    """As `fill`, but a head of another size than the file's stays as it was drawn, and the log says so."""
    own = network.state_dict()
    heads = [{k: v.shape for k, v in s.items() if k.startswith(HEAD)} for s in (own, checkpoint.state)]
    if heads[0] == heads[1]:
        fill(network, checkpoint)
        return
    below = {k: v for k, v in checkpoint.state.items() if not k.startswith(HEAD)}
    fill(network, replace(checkpoint, state=below | {k: own[k] for k in heads[0]}))
    told = "a new one is drawn" if heads[0] else "there is none now"
    log.info("%s gives all but the head: %s", checkpoint.path, told)


def _why_refused(error: Exception) -> str:
    """Why a pickle was refused, and the global it names; torch's advice to load it all the same is not passed on."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return f"it holds pickled code or objects, not only tensors (it asks for {asked[1]})"
    return "it is no weights file, is damaged, or holds pickled code or objects"


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):  # its text is the key alone
        return f"KeyError {error}"
    return (str(error).splitlines() or [type(error).__name__])[0]
