"""A remote store, opened with fsspec: what it holds, its bytes, and its failures as sentences.

Requests that fail are repeated with growing pauses. Credentials appear in no message: addresses are shown without user,
password and query, and what other libraries say is searched for them.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ms_prefstream.errors import PrefStreamError, SourceError, printable
from ms_prefstream.fingerprint import hash_of

Answer = TypeVar("Answer")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each repetition of a request that failed."""
PATIENCE = 20.0
"""Seconds after the first failure from which on nothing is repeated: some packages repeat requests on their own."""
REQUEST_SECONDS = 60.0
"""Seconds after which a request without an answer has failed."""

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]+://)")  # how fsspec joins file systems
_WEB = ("http", "https")
_BY_S3 = ("obs",)  # stores that speak S3, where fsspec has no implementation of their own
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "obs": "s3fs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub",
    "hdfs": "pyarrow", "gs": "gcsfs", "gcs": "gcsfs", "oss": "ossfs", "abfs": "adlfs", "az": "adlfs",
}  # fmt: skip
_IN_EXTRA = ("s3fs", "aiohttp")  # packages that the extra [remote] installs
_TAGS = ("ETag", "etag", "Content-MD5", "Digest", "md5", "sha256", "checksum", "blob_id", "xet_hash", "VersionId")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "updated", "created")
_BLOCK = 8 << 20  # bytes of one range
_AT_ONCE = 4  # ranges that are requested together
_WITHOUT_FOLDERS = ("s3", "s3a", "obs", "gs", "gcs", "oss")
_MISSING = (404, 410)
_REFUSED = (401, 403, 407)
_SECRET_IN_TEXT = re.compile(r"(?<=://)[^/\s@'\"]+@|(?<=[\w/=])\?[^\s'\"<>]*")
_PUBLIC = ("endpoint_url", "endpoint", "region_name")  # options that are no secrets
_LEAST_SECRET = 4  # characters; shorter values of storage_options are no secrets, such as a number of retries


def is_url(text: str) -> bool:
    """Returns whether a source is a URL, such as ``s3://bucket/train.jsonl``, and no path."""
    return _URL.match(text) is not None


def without_secrets(url: str) -> str:
    """Returns a URL as messages show it: without user, password, query and fragment."""
    if len(chain := _CHAIN.split(url)) > 1:
        return "::".join(map(without_secrets, chain))
    protocol, mark, rest = url.partition("://")
    if protocol in _WEB:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{protocol}{mark}{host.rpartition('@')[2] if protocol != 'hf' else host}{slash}{path}"


class Entry(NamedTuple):
    """A file in a store.

    Attributes:
        url: Its address.
        size: Its bytes; None if the store does not say.
        version: Hash of its size and its ETag, checksum or time; None if the store gives none of them.
        tag: What a web server recognises the file by, its ETag or its time, or "".
    """

    url: str
    size: int | None
    version: str | None
    tag: str = ""


class ChangedError(Exception):
    """The file in the store is another one than that of the entry."""


@dataclass
class _Tries:
    """How often a request has failed, and when it failed first."""

    failed: int = 0
    since: float = 0.0


class Store:
    """The store that a URL lies in.

    Args:
        url: Any address in the store.
        options: What fsspec takes: credentials, endpoint. A mapping under the name of a protocol holds for that
            protocol alone, as in fsspec's chains.
        error: The class of the errors.

    Raises:
        PrefStreamError: Of the class `error`: the protocol is unknown, or a package is missing.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, error: type[PrefStreamError] = SourceError
    ) -> None:
        self._error, self._secrets = error, tuple(sorted(_texts_in(options or {}), key=len, reverse=True))
        self.protocol = url.partition("://")[0].lower()
        self.lists = self.protocol not in _WEB  # web servers have no lists of their files
        if "::" in url and self.protocol not in _WEB:
            raise error(
                f"{without_secrets(url)}: a URL with :: is not opened, because fsspec takes it for a chain of file "
                "systems, such as zip:// in s3://. Unpack the file, or rename it."
            )
        try:
            from fsspec import filesystem
            from fsspec.core import url_to_fs
            from fsspec.registry import known_implementations, registry

            protocols = {*known_implementations, *registry, *_BY_S3}
            options = {
                "use_listings_cache": False,
                "skip_instance_cache": True,
                **_options_of(self.protocol, options or {}, protocols),
            }
            self._alias = self.protocol in _BY_S3 and self.protocol not in {*known_implementations, *registry}
            is_web = self.protocol in _WEB  # where :: may be in a host or a query
            self._fs = filesystem(self.protocol, **options) if is_web else url_to_fs(self._native(url), **options)[0]
        except ImportError as problem:
            raise error(f"{without_secrets(url)}: {_install(self.protocol, problem)}") from None
        except Exception as problem:  # whatever the packages raise
            raise error(
                f"{without_secrets(url)}: the store cannot be opened ({self._said(problem)}). Check the protocol, and "
                "storage_options, which fsspec gets as they are."
            ) from None

    def entry(self, url: str) -> Entry | None:
        """Returns the file at a URL; None if there is none."""
        return self._repeated("looked up", url, lambda: self._entry(url))

    def below(self, folder: str) -> list[str]:
        """Returns the URLs of all files below a folder, sorted; without the empty files that stand for folders."""
        path = self._path(folder.rstrip("/"))
        found = self._repeated("listed", folder, lambda: self._call("find", path))
        return self._urls(folder.rstrip("/"), path, [one for one in found if not one.endswith("/")])

    def is_bucket(self, url: str) -> bool:
        """Returns whether a URL names a whole bucket, and nothing in it."""
        return self.protocol in _WITHOUT_FOLDERS and "/" not in self._path(url.rstrip("/"))

    def matching(self, pattern: str) -> list[str]:
        """Returns the URLs of all files that a glob matches, sorted."""
        path = self._path(pattern)
        found = self._repeated("listed", pattern, lambda: self._call("glob", path, detail=True))
        return self._urls(pattern, path, [name for name, one in found.items() if one.get("type") != "directory"])

    def read(self, url: str, most: int) -> bytes | None:
        """Returns the contents of a small file; None if there is none.

        Raises:
            PrefStreamError: It has more than `most` bytes, or cannot be read.
        """
        found = self.entry(url)
        if found is None:
            return None
        content = bytearray()
        for begin, data in self.blocks(found, lambda: len(content)):
            content[begin:] = data
            if len(content) > most:
                raise self._error(
                    f"{without_secrets(url)} is larger than {most:,} bytes, the most that is read. It is damaged."
                )
        return bytes(content)

    def blocks(self, entry: Entry, at: Callable[[], int]) -> Iterator[tuple[int, bytes]]:
        """Yields the bytes of a file from an offset on, each block with its offset.

        What breaks off is requested again from there on. A web server without ranges begins again at 0, and so does the
        offset.

        Args:
            entry: The file.
            at: Returns the offset of the next byte that is needed; asked again after a failure.

        Raises:
            ChangedError: The store has another file there by now.
            PrefStreamError: It cannot be read.
        """
        tries, furthest = _Tries(), 0
        while entry.size is None or at() < entry.size:
            try:
                for begin, data in self._body(entry, at()):
                    if begin + len(data) > furthest:  # a server without ranges begins again: that alone is no progress
                        tries, furthest = _Tries(), begin + len(data)
                    yield begin, data
                if entry.size is None:
                    return
                if at() < entry.size:
                    raise EOFError(f"the body ended at byte {at():,} of {entry.size:,}")
            except Exception as problem:
                self._pause("read", entry.url, problem, tries)

    def put(self, path: str, url: str) -> Entry:
        """Copies a local file to a URL, and returns what the store has there then.

        Raises:
            PrefStreamError: It cannot be written, or has another size in the store.
        """
        target, size = self._path(url), os.path.getsize(path)
        if self.protocol not in _WITHOUT_FOLDERS:  # there it would create a bucket that was misspelt
            self._repeated("written", url, lambda: self._call("makedirs", target.rpartition("/")[0], exist_ok=True))
        seconds = REQUEST_SECONDS + size / (1 << 20)

        def send() -> None:
            if size > _BLOCK:
                self._call("put_file", path, target, seconds=seconds)
            else:  # `put_file` may open the target first, and leave it empty if the file cannot be read
                with open(path, "rb") as file:
                    data = file.read()
                self._call("pipe_file", target, data, seconds=seconds)

        self._repeated("written", url, send)
        found = self.entry(url)
        if found is None or found.size != size:
            has = "nothing" if found is None else f"{found.size:,} bytes"
            raise self._error(
                f"{without_secrets(url)}: {size:,} bytes were written, and the store has {has} there. Another program "
                "may write to the same place: stop it, then run again."
            )
        return found

    def remove(self, url: str) -> None:
        """Deletes a file, if it exists."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._call("rm_file", self._path(url))

        self._repeated("deleted", url, remove)

    def _entry(self, url: str) -> Entry | None:
        if self.protocol in _WEB:
            return self._web_entry(url)
        try:
            found = self._call("info", self._path(url))
        except FileNotFoundError:
            return None
        return None if found.get("type") == "directory" else _entry_of(url, found.get("size"), found)

    def _web_entry(self, url: str) -> Entry | None:
        for method in ("head", "get"):  # an address that is signed for one of them refuses the other
            response = self._request(method, url, {})
            self._close(response)
            if response.status in _MISSING:
                return None
            if response.status < 400:
                break
        response.raise_for_status()
        size = None
        is_sent = _is_packed(url) or response.headers.get("Content-Encoding", "identity") == "identity"
        if is_sent and "Content-Length" in response.headers:
            size = int(response.headers["Content-Length"])
        return _entry_of(url, size, response.headers)._replace(tag=_tag_of(response.headers))

    def _request(self, method: str, url: str, headers: Mapping[str, str]) -> Any:
        async def request() -> Any:
            session, given = await self._fs.set_session(), dict(self._fs.kwargs)
            given["headers"] = {**given.get("headers", {}), "Accept-Encoding": "identity", **headers}
            # Some servers name the compression of a file as that of their answer: what .gz says must stay compressed.
            given["auto_decompress"] = not _is_packed(url)
            return await session.request(method, self._fs.encode_url(url), **{"allow_redirects": True, **given})

        return self._awaited(request)

    def _body(self, entry: Entry, begin: int) -> Iterator[tuple[int, bytes]]:
        """Yields the bytes from an offset on until the body ends or breaks off."""
        if self.protocol in _WEB:
            yield from self._web_body(entry, begin)
            return
        path, size = self._path(entry.url), entry.size
        if size is None:
            data = self._call("cat_file", path)
            yield 0, data
            return
        while begin < size:
            starts = list(range(begin, min(size, begin + _AT_ONCE * _BLOCK), _BLOCK))
            ends = [min(start + _BLOCK, size) for start in starts]
            if self._fs.async_impl:
                found = self._call("cat_ranges", [path] * len(starts), starts, ends)
            else:
                found = (self._call("cat_file", path, start=start, end=end) for start, end in zip(starts, ends))  # noqa: B905
            for start, end, data in zip(starts, ends, found, strict=True):
                if isinstance(data, BaseException):
                    raise data
                if data:
                    yield start, data[: end - start]
                if len(data) != end - start:
                    raise EOFError(f"{len(data):,} bytes came from byte {start:,} on; expected {end - start:,}")
            begin = ends[-1]

    def _web_body(self, entry: Entry, begin: int) -> Iterator[tuple[int, bytes]]:
        headers = {"Range": f"bytes={begin}-", "If-Range": entry.tag} if begin and entry.tag else {}
        response = self._request("get", entry.url, headers)
        try:
            response.raise_for_status()
            if _tag_of(response.headers) != entry.tag:
                raise ChangedError
            ranged = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if response.status != 206 or ranged is None:
                begin = 0
            elif int(ranged[1]) != begin:
                raise EOFError(f"byte {ranged[1]} came where byte {begin} was requested")
            while data := self._awaited(response.content.readany):
                yield begin, data
                begin += len(data)
        finally:
            self._close(response)

    def _close(self, response: Any) -> None:
        self._fs.loop.call_soon_threadsafe(response.close)  # a response belongs to the thread of its loop

    def _repeated(self, done: str, url: str, call: Callable[[], Answer]) -> Answer:
        """Returns the result of a request, which is repeated while it fails."""
        tries = _Tries()
        while True:
            try:
                return call()
            except Exception as problem:
                self._pause(done, url, problem, tries)

    def _pause(self, done: str, url: str, problem: Exception, tries: _Tries) -> None:
        """Pauses before a request that failed is repeated.

        Raises:
            PrefStreamError: It must not be repeated, or has failed too often.
        """
        if isinstance(problem, (PrefStreamError, ChangedError)):
            raise problem
        name, status = without_secrets(url), getattr(problem, "status", 0)
        if isinstance(problem, PermissionError) or status in _REFUSED or "Credential" in type(problem).__name__:
            raise self._error(
                f"{name}: the store refuses access ({self._said(problem)}). Give the credentials as fsspec takes them: "
                "in the environment, in the store's own configuration, or as storage_options."
            ) from None
        if isinstance(problem, FileNotFoundError) or status in _MISSING:
            raise self._error(
                f"{name}: it cannot be {done}: the store has no such file, folder or bucket ({self._said(problem)}). "
                "Check the address; a file must not be deleted while it is read."
            ) from None
        tries.since = tries.since if tries.failed else time.monotonic()
        tries.failed += 1
        seconds = time.monotonic() - tries.since
        if isinstance(problem, (TypeError, ValueError, NotImplementedError)):
            raise self._error(
                f"{name}: it cannot be {done}: {self._said(problem)}. Check the address, and storage_options, which "
                "fsspec gets as they are."
            ) from None
        if tries.failed > len(PAUSES) or seconds > PATIENCE:
            raise self._error(
                f"{name}: it cannot be {done}: the store failed {tries.failed} times within {seconds:.0f} s, at last "
                f"with: {self._said(problem)}. Check the network, the address and storage_options, then run again; "
                "what was copied is kept."
            ) from None
        time.sleep(PAUSES[tries.failed - 1])

    def _said(self, problem: BaseException) -> str:
        """Returns what an error of another library says, without credentials."""
        text = " ".join(str(problem).split()) or type(problem).__name__
        text = _SECRET_IN_TEXT.sub("…", text)
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return printable(text.rstrip("."))

    def _call(self, name: str, *args: Any, seconds: float | None = None, **kwargs: Any) -> Any:
        """Calls a method of the file system; one that does not answer in time fails."""
        if not self._fs.async_impl:
            return getattr(self._fs, name)(*args, **kwargs)
        return self._awaited(getattr(self._fs, f"_{name}"), *args, seconds=seconds, **kwargs)

    def _awaited(self, call: Callable[..., Any], *args: Any, seconds: float | None = None, **kwargs: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._fs.loop, call, *args, timeout=seconds or REQUEST_SECONDS, **kwargs)

    def _native(self, url: str) -> str:
        return f"{'s3' if self._alias else self.protocol}://{url.partition('://')[2]}"

    def _path(self, url: str) -> str:
        found: str = self._fs._strip_protocol(self._native(url))
        return found

    def _urls(self, url: str, path: str, found: list[str]) -> list[str]:
        """Returns the URLs of paths in the store, given one URL and its path."""
        head = url.removesuffix(path.lstrip("/"))
        return sorted(head + one.lstrip("/") for one in found)


def _entry_of(url: str, size: Any, found: Mapping[str, Any]) -> Entry:
    size = size if isinstance(size, int) else None
    marks = [str(found[name]) for name in _TAGS if found.get(name)]
    marks = marks or [str(found[name]) for name in _TIMES if found.get(name)]
    return Entry(url, size, hash_of([str(size).encode(), *(mark.encode() for mark in marks)]) if marks else None)


def _is_packed(url: str) -> bool:
    return without_secrets(url).lower().endswith((".gz", ".zst"))


def _tag_of(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _texts_in(value: Any) -> Iterator[str]:
    """Yields the texts in nested options: each may be a secret."""
    if isinstance(value, str) and len(value) >= _LEAST_SECRET:
        yield value
    elif isinstance(value, Mapping):
        yield from (text for name, one in value.items() if name not in _PUBLIC for text in _texts_in(one))
    elif isinstance(value, (list, tuple)):
        yield from (text for one in value for text in _texts_in(one))
    elif hasattr(value, "__dict__"):  # such as an object with a token
        yield from _texts_in(vars(value))


def _options_of(protocol: str, options: Mapping[str, Any], protocols: Container[str]) -> dict[str, Any]:
    """Returns the options of one protocol: those of all, and over them those under its name."""
    own = {name: one for name, one in options.items() if name in protocols and isinstance(one, Mapping)}
    return {**{name: one for name, one in options.items() if name not in own}, **own.get(protocol, {})}


def _install(protocol: str, problem: ImportError) -> str:
    package = _PACKAGES.get(protocol, "")
    more = f" {package}" if package and package not in _IN_EXTRA else ""
    needs = " and Hadoop's native library with Java" if protocol == "hdfs" else ""
    what = "fsspec" if (problem.name or "").partition(".")[0] == "fsspec" else package or "a package of its own"
    return (
        f"reading {protocol}:// needs {what}{needs}, which is not installed here. Install it: "
        f'pip install "ms-prefstream[remote]"{more}.'
    )
