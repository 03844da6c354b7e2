"""Bytes by path below a store's root: create-if-absent publication, and nothing is ever overwritten."""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from cgd.errors import DamageError, StoreError

TEMPORARY = ".cgd/tmp"


class LocalFiles:
    """A folder of a file system that has hard links; read-only unless `write`."""

    def __init__(self, root: Path, *, write: bool = False) -> None:
        self.root = root
        self.write = write

    def read(self, path: str) -> bytes:
        """The bytes at `path`; raises `FileNotFoundError`."""
        return (self.root / path).read_bytes()

    def read_json(self, path: str) -> dict[str, Any]:
        """The object at `path`; one that is damaged is refused by name."""
        try:
            value = json.loads(self.read(path))
        except ValueError as error:
            raise DamageError(f"{self.root / path} is damaged: {' '.join(str(error).split())}.") from error
        if not isinstance(value, dict):
            raise DamageError(f"{self.root / path} is damaged: it holds no JSON object.")
        return value

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def children(self, folder: str) -> list[str]:
        """Names of what stands directly in `folder`, sorted; empty where there is no such folder."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(self.root / folder))
        return []

    def publish(self, path: str, data: bytes) -> bool:
        """Let `data` appear whole at `path` unless something stands there; True if this call put it there.

        A crash leaves either nothing or everything: the bytes reach the disk under a temporary name, the name
        appears by a hard link (which fails where the name exists), and then the folder reaches the disk.
        """
        if not self.write:
            raise StoreError(f"the store {self.root} is open for reading only; cannot write {path}.")
        target = self.root / path
        if target.exists():
            return False
        temporary = self.root / TEMPORARY / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _make_folder(temporary.parent)
            _make_folder(target.parent)
            try:
                with open(temporary, "xb") as handle:
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        except OSError as error:
            raise StoreError(
                f"cannot write {path} in the store {self.root}: {error.strerror or error}; nothing stored is lost: "
                "mend that (free space, rights) and repeat the same command."
            ) from error
        return True

    def sweep(self) -> None:
        """Remove the temporary files of this machine's processes that no longer live."""
        for name in self.children(TEMPORARY):
            host, _, rest = name.rpartition("-")[0].rpartition("-")
            if host == socket.gethostname() and rest.isdigit() and not _alive(int(rest)):
                (self.root / TEMPORARY / name).unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Write a file of this machine's (not of a store) whole or not at all, over whatever stands there.

    `shared` says that several processes may write it at once.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
        try:
            with open(temporary, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; mend that and repeat the same command, it continues."
        ) from error


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents so that each survives a power loss."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
