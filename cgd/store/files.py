"""Bytes by path below a store's root, in a folder: create-if-absent publication, and nothing is ever overwritten."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from cgd.errors import DamageError, StoreError

TEMPORARY = ".cgd/tmp"
STALE_SECONDS = 86_400.0  # no write takes a day
FETCHES = 16  # requests in flight to a store over a network
T = TypeVar("T")
R = TypeVar("R")


class Files(ABC):
    """Where a store's bytes are; read-only unless `write`.

    `address` opens the place again; `url` is the same without passwords, to be shown.
    """

    url: str
    address: str
    write: bool
    is_local = False
    lists = True  # whether what stands there can be listed, and not only what a catalog names

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes at `path`; raises `FileNotFoundError`, and `StoreError` where they cannot be read.

        That is a `DamageError` only where they are lost: whoever repairs may not take a silent network for damage.
        """

    @abstractmethod
    def exists(self, path: str) -> bool: ...

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes at `path`; raises `FileNotFoundError`."""

    @abstractmethod
    def children(self, folder: str) -> list[str]:
        """Names of what stands directly in `folder`, sorted; empty where there is no such folder."""

    @abstractmethod
    def publish(self, path: str, data: bytes) -> bool:
        """Let `data` appear whole at `path` unless something stands there; True if this call put it there."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Let `data` appear whole at `path`, over what stands there: for repair, upgrade and the catalog only."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove the file at `path`, if it is there."""

    def sweep(self) -> None:  # noqa: B027 (only folders have temporary files)
        """Remove what dead processes of this machine left."""

    def free_bytes(self) -> int | None:
        """Bytes free, where that can be known."""
        return None

    def settle(self, path: str, data: bytes, is_whole: Callable[[bytes], bool]) -> tuple[bytes, bool]:
        """Publish `data`; what stands at `path` then, and whether this call put it there.

        The first writer wins, unless its bytes were cut off or damaged on their way: what stands there differs and is
        not `is_whole`. Then `data` takes its place, since no receipt can vouch for the other.
        """
        ours = self.publish(path, data)
        there = self.read(path)
        if there == data or (not ours and is_whole(there)):
            return there, ours
        self.replace(path, data)
        if self.read(path) != data:
            raise DamageError(f"{path} arrives damaged in {self.url}: mend its disk or network and repeat the command.")
        return data, True

    def walk(self, folder: str) -> list[str]:
        """Paths of all files below `folder`, sorted."""
        found = []
        for name in self.children(folder):
            path = f"{folder}/{name}" if folder else name
            found += [path] if self.exists(path) else self.walk(path)
        return found

    def _refuse_unless_writing(self, path: str) -> None:
        if not self.write:
            raise StoreError(f"the store {self.url} is open for reading only; cannot write {path}.")


class LocalFiles(Files):
    """A folder of a file system that has hard links."""

    is_local = True

    def __init__(self, root: Path, *, write: bool = False) -> None:
        self.root = root
        self.url = str(root)
        self.address = os.path.abspath(root)  # another process may stand in another folder
        self.write = write

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(*error.args) from error
        except OSError as error:
            if error.errno == errno.EIO:  # the disk lost it; anything else may be gone a moment later
                raise DamageError(f"{self.root / path} cannot be read from the disk: {error.strerror}.") from error
            raise StoreError(
                f"cannot read {self.root / path}: {error.strerror}; mend that and repeat the same command."
            ) from error

    def exists(self, path: str) -> bool:
        with self._explained(path), suppress(FileNotFoundError, NotADirectoryError):
            return stat.S_ISREG(os.stat(self.root / path).st_mode)
        return False

    def size(self, path: str) -> int:
        with self._explained(path):
            return (self.root / path).stat().st_size

    def children(self, folder: str) -> list[str]:
        with self._explained(folder), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(self.root / folder))
        return []

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """Tell in one sentence what the operating system refuses; what is not there is for the caller."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise StoreError(
                f"cannot read {self.root / path}: {error.strerror}; mend that and repeat the same command."
            ) from error

    def free_bytes(self) -> int | None:
        root = self.root.absolute()
        while not root.exists():
            root = root.parent
        return shutil.disk_usage(root).free

    def publish(self, path: str, data: bytes) -> bool:
        """As `Files.publish`.

        A crash leaves either nothing or everything: the bytes reach the disk under a temporary name, the name
        appears by a hard link (which fails where the name exists), and then the folder reaches the disk.
        """
        self._refuse_unless_writing(path)
        if self.exists(path):
            return False
        return self._place(path, data, over=False)

    def replace(self, path: str, data: bytes) -> None:
        self._refuse_unless_writing(path)
        self._place(path, data, over=True)

    def remove(self, path: str) -> None:
        self._refuse_unless_writing(path)
        target = self.root / path
        try:
            target.unlink(missing_ok=True)
            with suppress(OSError):  # folders that are empty now
                for folder in list(target.relative_to(self.root).parents)[:-1]:
                    (self.root / folder).rmdir()
        except OSError as error:
            raise StoreError(
                f"cannot remove {path} from the store {self.root}: {error.strerror or error}; mend that and repeat."
            ) from error

    def _place(self, path: str, data: bytes, *, over: bool) -> bool:
        try:
            try:
                return self._write(path, data, over=over)
            except FileNotFoundError:  # somebody removed a folder that was empty until now
                return self._write(path, data, over=over)
        except OSError as error:
            raise StoreError(
                f"cannot write {path} in the store {self.root}: {error.strerror or error}; nothing stored is lost: "
                "mend that (free space, rights) and repeat the same command."
            ) from error

    def _write(self, path: str, data: bytes, *, over: bool) -> bool:
        target = self.root / path
        temporary = self.root / TEMPORARY / f"{here()}-{os.getpid()}-{secrets.token_hex(4)}"
        _make_folder(temporary.parent)
        _make_folder(target.parent)
        try:
            with open(temporary, "xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            try:
                temporary.replace(target) if over else os.link(temporary, target)
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def sweep(self) -> None:
        """Remove temporary files of processes that no longer live: those of this place, and old ones of its name."""
        for name in self.children(TEMPORARY):
            place, _, rest = name.rpartition("-")[0].rpartition("-")
            path = self.root / TEMPORARY / name
            with suppress(FileNotFoundError):
                dead = place == here() and rest.isdigit() and not _alive(int(rest))
                old = (
                    place.partition("~")[0] == socket.gethostname()
                    and time.time() - path.stat().st_mtime > STALE_SECONDS
                )
                if dead or old:
                    path.unlink()


@cache
def here() -> str:
    """This machine since it was started, as its processes see it: containers may share a host's name and a disk."""
    seen = []
    with suppress(OSError):  # there is no /proc everywhere
        seen = [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return f"{socket.gethostname()}~{hashlib.sha256(''.join(seen).encode()).hexdigest()[:8]}"


def fetch_all(fetch: Callable[[T], R], wanted: Sequence[T]) -> list[R]:
    """`fetch` of each, many at once: for requests over a network."""
    if not wanted:
        return []
    with ThreadPoolExecutor(FETCHES) as pool:
        return list(pool.map(fetch, wanted))


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
