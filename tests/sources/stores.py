"""Stores on this machine for tests: an S3 server, and a web server that can be told to misbehave."""

from __future__ import annotations

import hashlib
import http.server
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

SECRETS = ("AKIA-SECRET-KEY", "very-secret-value")
"""User and password of the S3 server; no message may hold them."""


@dataclass
class S3:
    """An S3 server on loopback, with one bucket.

    Attributes:
        options: `storage_options` for it.
        files: A client, an `s3fs.S3FileSystem`.
    """

    options: dict[str, Any]
    files: Any

    def put(self, key: str, content: bytes) -> str:
        """Writes a file; returns its URL."""
        self.files.pipe_file(f"data/{key}", content)
        return f"s3://data/{key}"

    def tree(self, folder: str) -> dict[str, bytes]:
        """Every file below a folder, with its bytes."""
        begin = f"data/{folder}/"
        return {path.removeprefix(begin): self.files.cat_file(path) for path in self.files.find(begin)}


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    server_of = pytest.importorskip("moto.server", reason="the S3 server of the tests is moto, which is not installed")
    s3fs = pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options = {"key": SECRETS[0], "secret": SECRETS[1], "endpoint_url": f"http://127.0.0.1:{port}"}
    files = s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True)
    files.mkdir("data")
    yield S3(options, files)
    server.stop()


@dataclass
class Web:
    """A web server on loopback.

    Attributes:
        files: Path -> contents.
        ranges: Whether it serves ranges.
        tags: Whether it sends an ETag.
        encoding: The Content-Encoding that it names.
        chunked: Whether it says nothing of sizes, and sends chunks.
        breaks_at: Byte of each file from which on nothing is sent, for so many requests as `breaks`.
        stalls: Seconds before each answer to GET.
        pause: Seconds before a connection breaks.
        status: A status that it answers instead, for so many requests as `failures`.
        swap: Contents of a file once so many bytes of it were requested: path -> (bytes, contents).
        asked: Method, path and Range header of each request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    encoding: str = ""
    chunked: bool = False
    breaks_at: int = 0
    breaks: int = 0
    stalls: float = 0.0
    pause: float = 0.0
    status: int = 503
    failures: int = 0
    swap: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def put(self, path: str, content: bytes) -> str:
        """Writes a file; returns its URL."""
        self.files[f"/{path}"] = content
        return f"{self.url}/{path}"

    def gets(self) -> list[str]:
        """The Range headers of all requests for contents."""
        return [ranged for method, _, ranged in self.asked if method == "GET"]


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, with_body: bool) -> None:
            ranged, path = self.headers.get("Range", ""), self.path.partition("?")[0]
            made.asked.append((self.command, self.path, ranged))
            if with_body:
                time.sleep(made.stalls)
            if made.failures:
                made.failures -= 1
                self._status(made.status)
                return
            content = made.files.get(path)
            if content is None:
                self._status(404)
                return
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            begin, end, status = 0, len(content), 200
            if ranged and made.ranges and self.headers.get("If-Range", tag) == tag:
                begin, status = int(ranged.removeprefix("bytes=").partition("-")[0]), 206
            if begin >= end:
                self._status(416)
                return
            self.send_response(status)
            if made.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(end - begin))
            if status == 206:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{end}")
            if made.encoding:
                self.send_header("Content-Encoding", made.encoding)
            if made.tags:
                self.send_header("ETag", tag)
            self.end_headers()
            if not with_body:
                return
            if made.breaks and begin < made.breaks_at:
                made.breaks -= 1
                end = made.breaks_at
                self.close_connection = True
            if made.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (end - begin, content[begin:end]))
                self.wfile.write(b"" if self.close_connection else b"0\r\n\r\n")
            else:
                self.wfile.write(content[begin:end])
            if self.close_connection:
                self.wfile.flush()
                time.sleep(made.pause)
            if path in made.swap:
                made.files[path] = made.swap.pop(path)

        def _status(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are what is tested
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    server.server_close()
