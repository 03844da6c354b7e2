"""Bytes of a store behind a URL: S3, Google Cloud Storage, memory, and HTTP for reading."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cgd.errors import InputError, MissingError, StoreError
from cgd.store import catalog
from cgd.store.files import TEMPORARY, Files, LocalFiles

T = TypeVar("T")
ATTEMPTS = 4
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "remote", "https": "remote"}
_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
log = logging.getLogger(__name__)


def open_files(url: str | Path, *, write: bool = False) -> Files:
    """Whatever holds the bytes of the store at `url`: a folder, or anything fsspec knows."""
    match = _URL.fullmatch(str(url))
    if match is None or match["protocol"] == "file":
        return LocalFiles(Path(str(url).removeprefix("file://")).expanduser(), write=write)
    if match["protocol"] in ("http", "https"):
        if write:
            raise StoreError(
                f"{url} can only be read: write to a folder or a bucket (--store), with --upstream {url} behind it."
            )
        return HttpFiles(str(url))
    return RemoteFiles(str(url), write=write)


class RemoteFiles(Files):
    """A prefix of an object store.

    One conditional request publishes a file, so it appears whole and the first writer wins. Nothing is cached, because
    others write too. What fails in passing is tried again.
    """

    def __init__(self, url: str, *, write: bool = False) -> None:
        self.url = url.rstrip("/")
        self.write = write
        self._conditional = False
        self._open()

    def _open(self) -> None:
        try:
            import fsspec  # type: ignore[import-untyped]

            self._system, root = fsspec.core.url_to_fs(self.url, **_options(self.url))
        except ImportError as error:
            extra = EXTRAS.get(self.url.partition("://")[0], "remote")
            raise MissingError(
                f"the store {self.url} needs other packages: pip install 'cgd[{extra}]' ({error})."
            ) from error
        except ValueError as error:  # no such protocol
            raise InputError(
                f"cannot open the store {self.url}: {error}; name a folder, s3://, gs:// or https://."
            ) from error
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes:
        found: bytes = self._tried("read", path, lambda: self._system.cat_file(self._at(path)))
        return found

    def exists(self, path: str) -> bool:
        found: bool = self._tried("look for", path, lambda: self._system.isfile(self._at(path)))
        return found

    def size(self, path: str) -> int:
        return int(self._tried("look for", path, lambda: self._system.info(self._at(path))["size"]))

    def children(self, folder: str) -> list[str]:
        at = self._at(folder)
        try:
            found = self._tried("list", folder, lambda: self._system.ls(at, detail=False))
        except FileNotFoundError:
            return []
        names = (str(name).rstrip("/") for name in found)
        return sorted({name.rpartition("/")[2] for name in names if name != at.rstrip("/")})

    def walk(self, folder: str) -> list[str]:
        found = self._tried("list", folder, lambda: self._system.find(self._at(folder)))
        return sorted(str(name).removeprefix(self._root).lstrip("/") for name in found)

    def publish(self, path: str, data: bytes) -> bool:
        self._refuse_unless_writing(path)
        self._check_conditions()
        return self._create(path, data)

    def replace(self, path: str, data: bytes) -> None:
        self._refuse_unless_writing(path)
        self._tried("write", path, lambda: self._system.pipe_file(self._at(path), data))

    def remove(self, path: str) -> None:
        self._refuse_unless_writing(path)
        try:
            self._tried("remove", path, lambda: self._system.rm_file(self._at(path)))
        except FileNotFoundError:
            return

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self._tried("write", path, lambda: self._system.pipe_file(self._at(path), data, mode="create"))
        except FileExistsError:
            return False
        return True

    def _check_conditions(self) -> None:
        """Refuse a server that overwrites when asked to create: several writers would tear an artifact."""
        if self._conditional:
            return
        probe = f"{TEMPORARY}/probe-{secrets.token_hex(8)}"
        if self._create(probe, b"1") and self._create(probe, b"2"):
            self.remove(probe)
            raise StoreError(
                f"the server of {self.url} does not know conditional writes (If-None-Match), so it cannot hold a store "
                "that is written to directly: write to a folder, and `cgd store copy` it there once it is whole."
            )
        self.remove(probe)
        self._conditional = True

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _tried(self, verb: str, path: str, request: Callable[[], T]) -> T:
        """The answer to a request, which is repeated where the network or the server failed in passing."""
        import tenacity

        patiently = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(0.2, 5),
            retry=tenacity.retry_if_exception(_in_passing),
            before_sleep=lambda state: log.debug("%s/%s: again after %s", self.url, path, state.outcome),
            reraise=True,
        )
        try:
            return patiently(request)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if isinstance(error, (IsADirectoryError, NotADirectoryError)):
                raise FileNotFoundError(path) from error
            said = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(
                f"cannot {verb} {path or 'anything'} in the store {self.url}: {said}; nothing stored is lost: mend "
                "that (network, credentials) and repeat the same command, it continues."
            ) from error


class HttpFiles(RemoteFiles):
    """A store on a web server: no listing, so its catalog says what there is; whole files are fetched.

    A shard is compared with its digest, which takes all of it, so ranges are never asked for.
    """

    lists = False

    def _open(self) -> None:
        super()._open()
        self._root = self.url
        self._artifacts: catalog.Artifacts | None = None

    def exists(self, path: str) -> bool:
        if path == "zarr.json":
            return self._answers(path)
        folder, _, name = path.rpartition("/")
        return name in self.children(folder)

    def children(self, folder: str) -> list[str]:
        if self._artifacts is None:
            try:
                self._artifacts = catalog.read(self)
            except FileNotFoundError:
                raise MissingError(
                    f"{self.url} has no {catalog.PATH}, without which a web server's store cannot be listed: whoever "
                    "keeps it runs `cgd store copy` into it, which writes one."
                ) from None
        return catalog.children(self._artifacts, folder)

    def _answers(self, path: str) -> bool:
        try:
            self.read(path)
        except FileNotFoundError:
            return False
        return True


def _options(url: str) -> dict[str, Any]:
    """No caches of listings; addresses and credentials come from the environment and fsspec's own settings."""
    if url.startswith(("memory:", "http:", "https:")):
        return {}
    return {"use_listings_cache": False}


def _in_passing(error: BaseException) -> bool:
    """Whether an error may be gone a moment later: not what a server answered about the file or the rights."""
    lasting = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
    if isinstance(error, lasting) or not isinstance(error, Exception):
        return False
    status = getattr(error, "status", None)
    return status is None or status >= 500 or status in (408, 429)
