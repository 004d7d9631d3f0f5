"""Local copies of remote files and caches, in one folder that all processes of a machine share.

    FOLDER/<hash of the URL>/lock                    held while a copy is looked for or made
    FOLDER/<hash of the URL>/<version>/NAME          a copy: a file, or the files of a cache
    FOLDER/<hash of the URL>/<version>.lock          held by every process that uses the copy
    FOLDER/<hash of the URL>/<version>.partial/      a copy that is being made, or was interrupted

A version is a hash of size and ETag (or checksum, or time) of a file, and of the manifest of a cache. So a file that
changes in its store becomes another copy, and nobody's open copy changes. While a process of this machine uses a copy,
every other process gets the same one: ranks of a machine never read different bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ms_prefstream.disk import MOST_BYTES, LocalCopy, cause_of, check_path, close_quietly, size_of, sync_folder
from ms_prefstream.errors import CacheError, OptionError, PrefStreamError, SourceError
from ms_prefstream.mindrecord.files import note_of
from ms_prefstream.mindrecord.manifest import MANIFEST, Manifest, check_files, read_manifest
from ms_prefstream.sources.cached import check_readable
from ms_prefstream.sources.store import ChangedError, Entry, Store, is_url, without_secrets

LIMIT = "MS_PREFSTREAM_CACHE_GB"
"""Environment variable with the most gigabytes that copies take; half of the disk if it is not set."""

_LOCK, _PARTIAL, _LOCK_OF = "lock", ".partial", ".lock"
_VERSION = re.compile(r"[0-9a-f]{16}")
_CHANGES = 3  # times that a file may change while it is copied
_LINE_SECONDS = 10.0
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_log = logging.getLogger("ms_prefstream")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Options of `ms_prefstream.stream` for remote sources and caches; documented there."""

    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.storage_options is not None and not isinstance(self.storage_options, Mapping):
            raise OptionError(
                f"storage_options is of type {type(self.storage_options).__name__}; expected a dict of what "
                'fsspec takes, such as {"endpoint_url": "https://..."}.'
            )
        given = self.cache_dir
        if given is not None:
            if not isinstance(given, (str, os.PathLike)) or not os.fspath(given) or is_url(str(given)):
                raise OptionError(f"cache_dir is {given!r}; expected the path of a folder of this machine.")
            check_path(given, OptionError, "cache_dir")

    @property
    def folder(self) -> str:
        """The folder of the copies."""
        if self.cache_dir is not None:
            return os.path.abspath(os.path.expanduser(self.cache_dir))
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return os.path.join(home, "ms_prefstream", "files")

    def with_(self, storage_options: Any, cache_dir: Any) -> Remote:
        """Returns the same options but for those that are given."""
        given = {"storage_options": storage_options, "cache_dir": cache_dir}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})

    def store(self, url: str, error: type[PrefStreamError] = SourceError) -> Store:
        """Returns the store of a URL."""
        return Store(url, self.storage_options, error)

    def place_of(self, url: str) -> str:
        """Returns the folder of a URL in the folder of the copies."""
        return os.path.join(self.folder, hashlib.sha256(url.encode()).hexdigest()[:32])


LOCAL = Remote()
"""The options where none are given."""


def copy_file(store: Store, url: str, remote: Remote) -> LocalCopy:
    """Returns the local copy of a remote file, which is made if there is none of its present version.

    Raises:
        SourceError: There is no such file, it cannot be read, or there is no room for it.
    """
    shown, name = without_secrets(url), _name_of(url)
    entry = _entry_at(store, url)
    with _Place(remote, url) as place:
        for _ in range(_CHANGES):
            if (held := place.find(entry.version, _has_file(name, entry.size))) is not None:
                return LocalCopy(os.path.join(held.path, name), shown, held)
            folder = place.begin(entry.version)
            place.make_room(entry.size or 0, shown)
            with contextlib.suppress(ChangedError):
                fetch(store, entry, os.path.join(folder, name))
                if entry.version is None or store.entry(url) == entry:
                    held = place.finish(folder)
                    return LocalCopy(os.path.join(held.path, name), shown, held)
            place.discard(folder)
            entry = _entry_at(store, url)
    raise _still_changing(shown)


def copy_cache(store: Store, url: str, remote: Remote) -> LocalCopy | None:
    """Returns the folder with the local copy of a remote cache; None if there is no manifest at the URL.

    Every file is compared with the SHA-256 of the manifest.

    Raises:
        CacheError: A file is missing, or is not the one of the manifest.
        SourceError: The layout is for other readers, or there is no room.
    """
    url = url.rstrip("/")
    shown, text = without_secrets(url), store.read(f"{url}/{MANIFEST}", MOST_BYTES)
    if text is None:
        return None
    with _Place(remote, url) as place:
        for _ in range(_CHANGES):
            version = hashlib.sha256(text).hexdigest()[:16]
            if (held := place.find(version, _has_cache)) is not None:
                return LocalCopy(held.path, shown, held)
            folder = place.begin(version)
            with _on_disk(folder), open(os.path.join(folder, MANIFEST), "wb") as file:
                file.write(text)
            manifest = read_manifest(LocalCopy(folder, shown))
            check_readable(shown, manifest)
            place.make_room(sum(note.bytes for note in manifest.files.values()), shown)
            if _fetch_parts(store, url, folder, manifest, text):
                held = place.finish(folder)
                return LocalCopy(held.path, shown, held)
            place.discard(folder)
            if (text := store.read(f"{url}/{MANIFEST}", MOST_BYTES)) is None:
                raise CacheError(f"{shown}: the cache was deleted or replaced while it was copied. Run again.")
    raise _still_changing(shown)


def _fetch_parts(store: Store, url: str, folder: str, manifest: Manifest, text: bytes) -> bool:
    """Copies the files of a cache; returns False if the store has another manifest by now."""
    for name, note in sorted(manifest.files.items()):
        path, at = os.path.join(folder, name), f"{url}/{name}"
        with _on_disk(path):
            if size_of(path) is not None and note_of(path, note.rows) == note:
                continue
        found = store.entry(at)
        if found is not None and found.size in (None, note.bytes):
            with _on_disk(path):
                with contextlib.suppress(ChangedError):
                    fetch(store, found._replace(size=note.bytes), path)
                    if note_of(path, note.rows) == note:
                        continue
                os.unlink(path)
        if store.read(f"{url}/{MANIFEST}", MOST_BYTES) != text:
            return False
        has = "is missing" if found is None else "is damaged: its size or its SHA-256 is not that of the manifest"
        raise CacheError(f"{without_secrets(at)} {has}. Copy the file to the store again, or write the cache again.")
    return True


def _has_file(name: str, size: int | None) -> Callable[[str], bool]:
    """Returns a function that says whether a folder still has the copy of a file."""

    def is_whole(folder: str) -> bool:
        found = size_of(os.path.join(folder, name))
        return found is not None and size in (None, found)

    return is_whole


def _has_cache(folder: str) -> bool:
    """Returns whether a folder still has all files of the copy of a cache."""
    try:
        check_files(folder, read_manifest(folder))
    except PrefStreamError:
        return False
    return True


def fetch(store: Store, entry: Entry, path: str) -> None:
    """Copies a file, from the end of what an interrupted run has copied.

    Raises:
        ChangedError: The store has another file by now.
        SourceError: The store fails, or the disk is full.
    """
    name = without_secrets(entry.url)
    with _on_disk(path), open(path, "ab") as file:
        begin, first, line = time.monotonic(), file.tell(), time.monotonic() + _LINE_SECONDS
        for offset, data in store.blocks(entry, file.tell):
            if offset != file.tell():
                file.truncate(offset)
                file.seek(offset)
            file.write(data)
            if time.monotonic() >= line:
                line += _LINE_SECONDS
                speed = (file.tell() - first) / (time.monotonic() - begin)
                total = "" if entry.size is None else f" of {entry.size / 1e6:,.0f}"
                _log.info("copying %s: %s%s MB, %.0f MB/s", name, f"{file.tell() / 1e6:,.0f}", total, speed / 1e6)
        file.flush()
        os.fsync(file.fileno())
        if entry.size is not None and file.tell() != entry.size:
            raise ChangedError


class _Held:
    """A shared lock on a copy, for as long as this object lives."""

    def __init__(self, path: str) -> None:
        self.path, self._file = path, -1
        self._file = os.open(path + _LOCK_OF, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def __del__(self, close: Callable[[int], None] = close_quietly) -> None:
        if self._file >= 0:
            close(self._file)


class _Place(contextlib.AbstractContextManager["_Place"]):
    """All copies of one URL, locked by this process inside the `with` block."""

    def __init__(self, remote: Remote, url: str) -> None:
        self._root, self._path, self._url = remote.folder, remote.place_of(url), without_secrets(url)
        with _on_disk(self._path):
            os.makedirs(self._path, exist_ok=True)
            self._lock = os.open(os.path.join(self._path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _locked(self._lock):
                    _log.info("waiting for another process that copies %s", self._url)
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
            except BaseException:
                close_quietly(self._lock)
                raise

    def __exit__(self, *_: object) -> None:
        close_quietly(self._lock)

    def find(self, version: str | None, is_whole: Callable[[str], bool]) -> _Held | None:
        """Returns the copy to use; None if one is to be made. Older copies are deleted unless a process uses them.

        A copy that a process of this machine uses goes before the version that the store has now. Where somebody has
        deleted files of a copy, such as a clean-up by age, these are copied again.
        """
        with _on_disk(self._path):
            for found in _copies_at(self._path):
                used = os.path.basename(found)
                if used == version and not is_whole(found):
                    os.rename(found, found + _PARTIAL)
                    continue
                if used == version or not _remove(found):
                    if used != version and version is not None:
                        _log.warning(
                            "%s changed in the store after it was copied, and another stream of this machine reads "
                            "the first copy, so this one does, too. Restart all of them to read the new file.",
                            self._url,
                        )
                    os.utime(found)
                    return _Held(found)
        return None

    def begin(self, version: str | None) -> str:
        """Returns the folder for the copy of a version; without a version nothing of an interrupted run is used."""
        path = os.path.join(self._path, (version or secrets.token_hex(8)) + _PARTIAL)
        with _on_disk(path):
            for other in os.scandir(self._path):
                if other.name.endswith(_PARTIAL) and other.path != path:
                    shutil.rmtree(other.path)
            os.makedirs(path, exist_ok=True)
        return path

    def finish(self, folder: str) -> _Held:
        """Makes a copy complete, and returns it."""
        path = folder.removesuffix(_PARTIAL)
        with _on_disk(path):
            os.rename(folder, path)
            sync_folder(self._path)
            return _Held(path)

    def discard(self, folder: str) -> None:
        """Deletes a copy that is not complete."""
        with _on_disk(folder):
            shutil.rmtree(folder)

    def make_room(self, needed: int, name: str) -> None:
        """Deletes the copies that were used longest ago and are not in use, until there is room for a copy.

        What an interrupted run has copied counts as room.

        Args:
            needed: Bytes of the whole copy.
            name: The file or cache, for the error.

        Raises:
            SourceError: There is too little room without them.
        """
        with _on_disk(self._path):
            disk = os.statvfs(self._path)
            limit, free = _limit(disk.f_blocks * disk.f_frsize), disk.f_bavail * disk.f_frsize
            copies = list(_all_copies(self._root))
        used = sum(size for _, size, _ in copies)
        needed -= sum(size for _, size, path in copies if path.startswith(self._path) and path.endswith(_PARTIAL))
        for _, size, path in sorted(copies):
            if used + needed <= limit and needed <= free:
                return
            with _on_disk(path):
                if os.path.dirname(path) != self._path and _remove_of_others(path):
                    used, free = used - size, free + size
        if used + needed > limit or needed > free:
            why = (
                f"{free / 1e9:,.1f} GB are free on the disk" if needed > free else f"{LIMIT} allows {limit / 1e9:,.1f}"
            )
            raise SourceError(
                f"{name}: its copy needs {needed / 1e9:,.1f} GB in {self._root}, where copies in use take "
                f"{used / 1e9:,.1f} GB and {why}. Give another folder (cache_dir), raise the limit ({LIMIT}), or make "
                "room."
            )


def _limit(disk: int) -> float:
    text = os.environ.get(LIMIT, "")
    try:
        limit = float(text) * 1e9 if text else disk / 2
        if not limit > 0:
            raise ValueError
    except ValueError:
        raise OptionError(f"{LIMIT} is {text!r}; expected a number of gigabytes, such as 200.") from None
    return limit


def _locked(file: int) -> bool:
    """Takes an exclusive lock and returns True; False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copies_at(place: str) -> list[str]:
    return [entry.path for entry in os.scandir(place) if _VERSION.fullmatch(entry.name) and entry.is_dir()]


def _all_copies(root: str) -> Iterator[tuple[float, int, str]]:
    """Yields time of the last use, bytes and folder of all copies, complete or not."""
    for place in os.scandir(root):
        if not re.fullmatch(r"[0-9a-f]{32}", place.name) or not place.is_dir(follow_symlinks=False):
            continue
        for entry in os.scandir(place.path):
            if _VERSION.fullmatch(entry.name.removesuffix(_PARTIAL)) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # another process deletes it
                    size = sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(entry.path))
                    yield entry.stat().st_mtime, size, entry.path


def _remove(copy: str) -> bool:
    """Deletes a copy unless a process uses it; the caller holds the lock of its place. Returns whether it did."""
    path = copy + _LOCK_OF
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _locked(file):
            return False
        if not copy.endswith(_PARTIAL):  # a copy that is deleted in part must not look complete
            os.rename(copy, copy := copy + _PARTIAL)
        shutil.rmtree(copy)
        os.unlink(path)
        return True
    finally:
        close_quietly(file)


def _remove_of_others(copy: str) -> bool:
    """Deletes a copy of another URL, unless it is in use, being made or looked for."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(os.path.join(os.path.dirname(copy), _LOCK), os.O_RDWR | os.O_CLOEXEC)
        try:
            return _locked(file) and _remove(copy)
        finally:
            close_quietly(file)
    return False


def _name_of(url: str) -> str:
    """Returns the name of the copy of a file: a plain name with the suffix of the address, wherever that points."""
    name = without_secrets(url).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:] or "file"
    return f"_{name}" if name.startswith(".") else name


def _entry_at(store: Store, url: str) -> Entry:
    if (found := store.entry(url)) is None:
        raise SourceError(f"{without_secrets(url)}: no such file in the store. Check the address.")
    return found


def _still_changing(name: str) -> SourceError:
    return SourceError(
        f"{name}: it changed in the store {_CHANGES} times while it was copied; expected a file that nobody writes. "
        "Wait until it is complete, then run again."
    )


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[None]:
    """Turns an OSError of the body, about the folder of the copies, into a `SourceError`."""
    try:
        yield
    except OSError as error:
        what = "it has no locks" if error.errno in _NO_LOCKS else cause_of(error)
        raise SourceError(
            f"{path}: the local copy of a remote file cannot be written: {what}. Give another folder: cache_dir."
        ) from error
