"""Who made what, when, with which libraries and by which command: beside an artifact, outside its mark and its seal."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cgd.store import layout
from cgd.store.files import Files
from cgd.store.remote import without_secrets
from cgd.store.seals import text
from cgd.types import Key

LIBRARIES = ("cgd", "torch", "torchvision", "timm", "pillow", "numpy", "zarr", "h5py")
_END = ".end.json"
log = logging.getLogger(__name__)


class Record:
    """One process's part in an artifact: told when it begins, and again when it sees the end."""

    def __init__(self, files: Files, key: Key) -> None:
        self.files = files
        self.key = key
        self.started = time.time()
        self.wrote = 0
        self._begun = False
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.started))
        self._stem = f"{layout.PROVENANCE}/{key}/{moment}-{socket.gethostname()}-{os.getpid()}"

    def begin(self) -> None:
        """Tell who works here, once; before the first shard, so that a process that dies has said it."""
        if self._begun:
            return
        self._begun = True
        about = {
            "user": _user(),
            "host": socket.gethostname(),
            "started": _moment(self.started),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "libraries": libraries(),
            "command": command(),
        }
        self.files.publish(f"{self._stem}.json", text(about))

    def end(self, notes: Mapping[str, Any]) -> None:
        """Tell what was written; `notes` are times and memory: what differs between two equal runs."""
        if self.wrote:
            about = {"finished": _moment(time.time()), "shards_written": self.wrote, **notes}
            self.files.publish(f"{self._stem}{_END}", text(about))


def read(files: Files, key: Key) -> list[dict[str, Any]]:
    """The records of all processes that worked on `key`, oldest first; damaged ones are left out."""
    records: dict[str, dict[str, Any]] = {}
    for name in files.children(f"{layout.PROVENANCE}/{key}"):
        try:
            about = json.loads(files.read(f"{layout.PROVENANCE}/{key}/{name}"))
        except (FileNotFoundError, ValueError):
            continue
        if isinstance(about, dict):
            records.setdefault(name.removesuffix(_END).removesuffix(".json"), {}).update(about)
    return [records[stem] for stem in sorted(records)]


def tell_of_other_libraries(key: Key, records: Sequence[Mapping[str, Any]]) -> None:
    """Warn where an artifact that is continued was begun with other versions."""
    ours = libraries()
    for record in records:
        theirs = record.get("libraries", {})
        unlike = [name for name in LIBRARIES if name in theirs and theirs[name] != ours.get(name)]
        other = [f"{name} {theirs[name]} there, {ours.get(name, 'none')} here" for name in unlike]
        if other:
            log.warning(
                "%s was begun on %s with other libraries (%s): its rows may differ in their last digits.",
                key,
                record.get("host", "another machine"),
                "; ".join(other),
            )
            return


def libraries() -> dict[str, str]:
    """Versions of the libraries that can change a result."""
    return {name: v for name in LIBRARIES if (v := _version(name))}


def code_digest() -> str:
    """What tells the code of this package from another of the same version."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def command() -> str | None:
    """The `cgd` command this process runs, as one would type it, without passwords in URLs; None in another program."""
    program = Path(sys.argv[0])
    if program.name not in ("cgd", "__main__.py") or "cgd" not in str(program):
        return None
    words = [re.sub(r"[a-z][a-z0-9+.-]*://.*", lambda found: without_secrets(found[0]), word) for word in sys.argv[1:]]
    return shlex.join(["cgd", *words])


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user entry
        return "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
