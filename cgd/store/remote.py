"""Bytes of a store behind a URL: S3, Google Cloud Storage, memory, and HTTP for reading."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from cgd.errors import InputError, MissingError, StoreError
from cgd.store import catalog
from cgd.store.files import TEMPORARY, Files, LocalFiles

T = TypeVar("T")
ATTEMPTS = 4
WAIT = 0.5  # seconds, at most, before the second attempt; twice as long before each further one
PROBE = f"{TEMPORARY}/probe"
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_URL_IN_TEXT = re.compile(r"\w+://[^\s'\"]+")
_GONE_OTHERWISE = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_SAID_NO = (errno.EINVAL, errno.EPERM, errno.ENOSYS)  # what s3fs makes of requests that a server will never accept
_IN_MEMORY = Lock()  # fsspec's memory looks and then writes
log = logging.getLogger(__name__)


def open_files(url: str | Path, *, write: bool = False) -> Files:
    """Whatever holds the bytes of the store at `url`: a folder, or anything fsspec knows."""
    match = _URL.fullmatch(str(url))
    if match is None or match["protocol"] == "file":
        return LocalFiles(Path(str(url).removeprefix("file://")).expanduser(), write=write)
    if match["protocol"] in EXTRAS and "@" in match["rest"].partition("/")[0]:
        raise InputError(
            f"{without_secrets(str(url))}: user and password do not belong into a bucket's URL; give them in the "
            "environment, as for every other program that reads it."
        )
    if match["protocol"] in ("http", "https"):
        if write:
            shown = without_secrets(str(url))
            raise StoreError(
                f"{shown} can only be read: write to a folder or a bucket (--store), with --upstream {shown} behind it."
            )
        return HttpFiles(str(url))
    return RemoteFiles(str(url), write=write)


def without_secrets(url: str) -> str:
    """A URL as it may be printed and stored: without password, and on the web without user and query."""
    if url.startswith(("http://", "https://")):
        return re.sub(r"(?<=://)[^/]*@", "", url.partition("?")[0])
    return re.sub(r"(?<=://)[^/@]*:[^/]*@", "", url)


class RemoteFiles(Files):
    """A prefix of an object store; `address` is its URL with whatever secrets it holds, `url` without.

    One conditional request publishes a file, so it appears whole and the first writer wins. Nothing is cached, because
    others write too. What fails in passing is tried again.
    """

    def __init__(self, url: str, *, write: bool = False) -> None:
        self.address = url.rstrip("/")
        self.url = without_secrets(self.address).rstrip("/")
        self.write = write
        self._conditional = False
        self._attempts = 1 if EXTRAS.get(url.partition("://")[0]) == "gcs" else ATTEMPTS  # gcsfs itself repeats
        self._open()

    def _open(self) -> None:
        try:
            import aiohttp  # noqa: F401
            import fsspec  # type: ignore[import-untyped]
            import tenacity  # noqa: F401

            self._system, root = fsspec.core.url_to_fs(self.address, **_options(self.address))
        except ImportError as error:
            extra = EXTRAS.get(self.url.partition("://")[0], "remote")
            raise MissingError(
                f"the store {self.url} needs other packages: pip install 'cgd[{extra}]' ({error})."
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
            # no such protocol, or one that wants other settings than a URL can hold
            said = " ".join(without_secrets(str(error)).split())
            raise InputError(
                f"cannot open the store {self.url}: {said}; name a folder, s3://, gs:// or https://."
            ) from error
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes:
        found: bytes = self._tried("read", path, lambda: self._system.cat_file(self._at(path)))
        return found

    def exists(self, path: str) -> bool:
        # fsspec's `isfile` also answers no where the network is down
        try:
            found = self._tried("look for", path, lambda: self._system.info(self._at(path)))
        except FileNotFoundError:
            return False
        return bool(found["type"] == "file")

    def size(self, path: str) -> int:
        return int(self._tried("look for", path, lambda: self._system.info(self._at(path)))["size"])

    def children(self, folder: str) -> list[str]:
        at = self._at(folder)
        try:
            found = self._tried("list", folder, lambda: self._system.ls(at, detail=False))
        except FileNotFoundError:
            return []
        names = (str(name).rstrip("/") for name in found)
        return sorted({name.rpartition("/")[2] for name in names if name != at.rstrip("/")})

    def walk(self, folder: str) -> list[str]:
        try:
            found = self._tried("list", folder, lambda: self._system.find(self._at(folder)))
        except FileNotFoundError:
            return []
        return sorted(str(name).removeprefix(self._root).lstrip("/") for name in found)

    def publish(self, path: str, data: bytes) -> bool:
        self._refuse_unless_writing(path)
        self._check_conditions()
        return self._create(path, data)

    def replace(self, path: str, data: bytes) -> None:
        self._refuse_unless_writing(path)
        self._put(path, data, "overwrite")

    def remove(self, path: str) -> None:
        self._refuse_unless_writing(path)
        try:
            self._tried("remove", path, lambda: self._system.rm_file(self._at(path)))
        except FileNotFoundError:
            return

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self._put(path, data, "create")
        except FileExistsError:
            return False
        return True

    def _put(self, path: str, data: bytes, mode: str) -> None:
        try:
            with _IN_MEMORY if self.url.startswith("memory:") else nullcontext():
                self._tried("write", path, lambda: self._system.pipe_file(self._at(path), data, mode=mode))
        except FileNotFoundError as error:
            raise StoreError(
                f"cannot write {path} in the store {self.url}: there is no such bucket; create it, or name another."
            ) from error

    def _check_conditions(self) -> None:
        """Refuse a server that overwrites when asked to create: several writers would tear an artifact."""
        if self._conditional:
            return
        if not self._can_create() or (self._create(PROBE, b"1") and self._create(PROBE, b"2")):
            raise StoreError(
                f"the server of {self.url} does not know conditional writes (If-None-Match), so several writers could "
                "tear what is stored there: share a folder, or a bucket of a server that knows them."
            )
        self._conditional = True

    def _can_create(self) -> bool:
        """Whether creating is one step; fsspec's own way, where a system has none, is to look and then to write."""
        from fsspec import AbstractFileSystem

        return self._system.async_impl or type(self._system).pipe_file is not AbstractFileSystem.pipe_file

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _tried(self, verb: str, path: str, request: Callable[[], T]) -> T:
        """The answer to a request, which is repeated where the network or the server failed in passing."""
        import tenacity

        patiently = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random_exponential(WAIT, 10),
            retry=tenacity.retry_if_exception(_in_passing),
            before_sleep=lambda _: log.debug("%s/%s: failed, again in a moment", self.url, path),
            reraise=True,
        )
        try:
            return patiently(request)
        except (TypeError, AttributeError, NameError):  # bugs
            raise
        except Exception as error:  # of every system's own kind
            if isinstance(error, FileExistsError) or _exists_already(error):
                raise FileExistsError(path) from error
            if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
                raise FileNotFoundError(path) from error
            said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            said = _URL_IN_TEXT.sub(lambda found: without_secrets(found[0]), said)
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
        self._root, mark, query = self.address.partition("?")
        self._root, self._query = self._root.rstrip("/"), mark + query
        self._artifacts: catalog.Artifacts | None = None

    def read(self, path: str) -> bytes:
        data = super().read(path)
        if path.endswith(".json") and data.lstrip()[:1] == b"<":
            raise StoreError(
                f"{self.url}/{path} is a web page and no file of a store: name the URL of the folder that holds a "
                "store's zarr.json."
            )
        return data

    def exists(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if catalog.lists(folder):
            return name in self.children(folder)
        try:
            self.read(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        try:
            found = self._system.info(self._at(path))["size"]
        except FileNotFoundError:  # whatever was the matter
            found = None
        return int(found) if found is not None else len(self.read(path))

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

    def walk(self, folder: str) -> list[str]:
        return Files.walk(self, folder)

    def _at(self, path: str) -> str:
        return super()._at(path) + self._query


def _options(url: str) -> dict[str, Any]:
    """No caches of listings; addresses and credentials come from the environment and fsspec's own settings."""
    extra = EXTRAS.get(url.partition("://")[0])
    options: dict[str, Any] = {"use_listings_cache": False} if extra else {}
    if extra == "s3":  # several files are read at once anyway; otherwise each is asked for its size first
        options["max_concurrency"] = 1
    return options


def _in_passing(error: BaseException) -> bool:
    """Whether an error may be gone a moment later: not what a server answered about the file or the rights."""
    import aiohttp

    if isinstance(error, OSError):
        return not isinstance(error, _GONE_OTHERWISE) and error.errno not in _SAID_NO
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in (408, 429)
    return isinstance(error, aiohttp.ClientError)


def _exists_already(error: BaseException) -> bool:
    """Whether a server refused to create what exists; s3fs knows only Amazon's wording of that."""
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") in ("PreconditionFailed", "412")
