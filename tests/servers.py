"""Servers on loopback for what is shared over a network: S3, and web servers with and without ranges, good and bad."""

from __future__ import annotations

import contextlib
import mimetypes
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

KEY, SECRET = "AKIAEXAMPLEEXAMPLE", "verysecretverysecretverysecret"


@dataclass
class Bucket:
    """A bucket on a server of its own: `client` is boto3's, `requests` are method and path of all that was asked."""

    name: str
    endpoint: str
    client: Any
    requests: list[str] = field(default_factory=list)

    def url(self, path: str = "features.zarr") -> str:
        return f"s3://{self.name}/{path}"

    def listing(self) -> dict[str, str]:
        """The ETag of every object."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {o["Key"]: o["ETag"] for page in pages for o in page.get("Contents", [])}

    def read(self, key: str) -> bytes:
        found: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return found

    def flip(self, key: str, place: int = 50) -> None:
        """Change one bit of an object."""
        data = bytearray(self.read(key))
        data[place % len(data)] ^= 1
        self.client.put_object(Bucket=self.name, Key=key, Body=bytes(data))


@contextlib.contextmanager
def s3_bucket(name: str = "team") -> Iterator[Bucket]:
    """A fresh bucket; this process's environment leads s3fs and boto3 to it until the end.

    The server answers one request after the other, so that its conditional writes are atomic, as those of real ones.
    """
    import boto3
    import fsspec
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: object) -> None: ...

    requests: list[str] = []
    backend = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        return backend(environ, start)

    server = make_server("127.0.0.1", 0, application, threaded=False, request_handler=Quiet)
    with _serving(server), pytest.MonkeyPatch.context() as patch:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        for variable, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
        }.items():  # fmt: skip
            patch.setenv(variable, value)
        patch.delenv("AWS_PROFILE", raising=False)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=name)
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})  # or it takes the client of an earlier one
        try:
            yield Bucket(name, endpoint, client, requests)
        finally:
            client.close()


@dataclass
class Web:
    """A web server over a folder: its address, and what was asked of it."""

    url: str
    requests: list[str] = field(default_factory=list)
    harm: Callable[[str, bytes], tuple[int, bytes, int]] | None = None  # path, bytes: status, bytes, declared length


@contextlib.contextmanager
def web_server(root: Path, *, ranges: bool = True) -> Iterator[Web]:
    """Files below `root` over HTTP; where `ranges` is false, requests for a part are answered with the whole."""
    web = Web("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, root, ranges, web))
    with _serving(server):
        web.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield web


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or each answer waits for an acknowledgement
    timeout = 5

    def __init__(self, root: Path, ranges: bool, web: Web, *args: Any) -> None:
        self.root, self.ranges, self.web = root, ranges, web
        super().__init__(*args)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.web.requests.append(f"{self.command} {path}")
        file = self.root / path
        status, data = (200, file.read_bytes()) if file.is_file() else (404, b"<html>not found</html>")
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.ranges and status == 200:
            status, data = 206, data[int(part[1]) : int(part[2]) + 1 if part[2] else None]
        length = len(data)
        if self.web.harm:
            status, data, length = self.web.harm(path, data)
        self.send_response(status)
        self.send_header("Content-Type", mimetypes.guess_type(path)[0] or "application/octet-stream")
        self.send_header("Content-Length", str(length))
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.close_connection = length != len(data)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def _serving(server: Any) -> Iterator[None]:
    thread = Thread(target=partial(server.serve_forever, 0.05))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unused_url() -> str:
    """An address at which nobody listens."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
