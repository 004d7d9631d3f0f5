"""Paths, globs and folders as sources: which files they stand for, and how each kind of file is read.

To add a kind of file: write a class that is `RandomAccess` or `OnePass` (see `base`) in a file of its own, and give its
suffixes an entry in `KINDS`, with a function that opens files of that kind.

A source that is no file, such as a table in an SQLite database, needs no entry here: users pass an object of any class
with `__len__` and `__getitem__`, or one that keeps a protocol of `base`. To support its address in `mps.stream`, write
the class in a file of its own and recognise the address in `open.open_source`.
"""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from ms_prefstream.disk import exists, is_folder, is_shortened_url, walk
from ms_prefstream.errors import SourceError
from ms_prefstream.lengths.build import JOURNAL_SUFFIX
from ms_prefstream.lengths.index_file import SUFFIX
from ms_prefstream.mindrecord.manifest import CACHE_FILE, is_cache
from ms_prefstream.sources.base import Source, no_rows, sources_in
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.sources.compressed import StreamedJsonLines
from ms_prefstream.sources.concat import concat
from ms_prefstream.sources.copies import Remote, copy_cache, copy_file
from ms_prefstream.sources.files import name_of, reading, stamp
from ms_prefstream.sources.huggingface import is_saved, open_arrow, open_saved
from ms_prefstream.sources.json_array import JsonArray, holds_array
from ms_prefstream.sources.jsonl import JsonLines
from ms_prefstream.sources.local_hub import cache_roots, data_files, splits_in
from ms_prefstream.sources.own_files import own_kind
from ms_prefstream.sources.parquet import ParquetRows
from ms_prefstream.sources.store import Store, is_url, without_secrets

Opener: TypeAlias = Callable[[list[str], int], list[Source]]
"""Opens neighbouring files of one kind, given their paths and `max_row_bytes`."""


class Kind(NamedTuple):
    """One kind of file: its name in messages, and the function that opens such files."""

    name: str
    open: Opener


_LINES = Kind("JSON Lines", lambda paths, limit: [JsonLines(paths, max_row_bytes=limit)])
_PACKED_LINES = Kind("compressed JSON Lines", lambda paths, limit: [StreamedJsonLines(paths, max_row_bytes=limit)])
_JSON = Kind("JSON", lambda paths, limit: [JsonArray(path, max_row_bytes=limit) for path in paths])
_PARQUET = Kind("Parquet", lambda paths, _: [ParquetRows(paths)])
_ARROW = Kind("Arrow", lambda paths, _: [open_arrow(path) for path in paths])
_SAVED_FOLDER = Kind("saved data set", lambda paths, _: [open_saved(path) for path in paths])
_CACHE_FOLDER = Kind("cache", lambda paths, _: [CachedRows(path) for path in paths])

KINDS = {
    ".jsonl": _LINES,
    ".ndjson": _LINES,
    ".jsonl.gz": _PACKED_LINES,
    ".jsonl.zst": _PACKED_LINES,
    ".ndjson.gz": _PACKED_LINES,
    ".ndjson.zst": _PACKED_LINES,
    ".json.gz": _PACKED_LINES,
    ".json.zst": _PACKED_LINES,
    ".json": _JSON,
    ".parquet": _PARQUET,
    ".arrow": _ARROW,
}
"""Kinds of files by the end of their names."""

_GLOB = re.compile(r"[*?\[]")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?(:\w+)?$")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json")
_SHOWN = 5


def open_paths(patterns: Sequence[str | os.PathLike[str]], max_row_bytes: int, remote: Remote) -> Source:
    """Opens all files that paths, globs and folders stand for, as one source. Of URLs, their local copies are opened.

    Neighbours of one kind are opened together. Plain and compressed JSON Lines are one kind where both occur.
    """
    own: dict[str, str] = {}
    copies = _Copies(remote)
    found: list[tuple[str, Kind]] = []
    for pattern in patterns:
        with reading(os.fspath(pattern)):
            found += [entry for path in _expand(pattern, own, copies) for entry in _files_at(path, own)]
    _check_each_once([path for path, _ in found])
    if any(kind is _PACKED_LINES for _, kind in found):
        found = [(path, _PACKED_LINES if kind is _LINES else kind) for path, kind in found]
    parts: list[Any] = []
    for kind, group in itertools.groupby(found, lambda entry: entry[1]):
        paths = [path for path, _ in group]
        with reading(paths[0]):
            if not any(os.path.getsize(path) for path in paths):
                raise no_rows(name_of(paths))
        parts += kind.open(paths, max_row_bytes)
    parts[0].left_out = own  # see `own_files_beside`
    return concat(parts)


def own_files_beside(source: Any) -> dict[str, str]:
    """Returns the files of this library that a source's folders and globs hold, and what they are; none is a row."""
    return {path: kind for one in sources_in(source) for path, kind in getattr(one, "left_out", {}).items()}


def _expand(pattern: str | os.PathLike[str], own: dict[str, str], copies: _Copies) -> list[str]:
    """Returns the files and folders that a path or a glob stands for; what a glob matches is sorted by name.

    A name that exists is taken literally, also with ``*`` or ``[`` in it. Files of this library that a glob matches
    are left out, and added to `own`.
    """
    text = os.fspath(pattern)
    if not text:
        raise SourceError("The source is an empty path; expected the path of a file, a folder or a glob.")
    if is_url(text):
        return copies.of(text, own)
    path = os.path.expanduser(text)
    if os.path.lexists(path):
        return [path]
    if not _GLOB.search(path):
        if cached := data_files(text, _is_data):
            return cached
        raise _missing(path)
    found = sorted(glob.glob(path, recursive=True))
    _check_searched(path)
    files = _without_own([match for match in found if not os.path.isdir(match)], own)
    if not files:
        what = f"no file{_neighbours(path)}"
        if found:
            some = ", ".join(f"{match}: {own[match]}" if match in own else match for match in found[:_SHOWN])
            what = f"only folders and files that this library wrote ({some})" if own else f"only folders ({some})"
        raise SourceError(f"{text}: the pattern matches {what}; expected data files. Correct the pattern.")
    return files


class _Copies:
    """Local copies of the files that URLs stand for; each store is opened once."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._stores: dict[str, Store] = {}

    def of(self, url: str, own: dict[str, str]) -> list[str]:
        """Returns the local copies of the files, or of the cache, that a URL stands for.

        A copy is made if there is none. What is copied is decided by the names in the store, as for paths. Files of
        this library that a glob or a folder holds are left out, and added to `own`.
        """
        store, shown, remote = self._store(url), without_secrets(url), self._remote
        if store.lists and _GLOB.search(url) and store.entry(url) is None:
            urls = [one for one in store.matching(url) if not one.endswith((SUFFIX, JOURNAL_SUFFIX))]
            if not urls:
                raise SourceError(f"{shown}: the pattern matches no file; expected data files. Correct the pattern.")
        elif _kind_of(shown):
            urls = [url]
        elif (store.lists or "?" not in url) and (cache := copy_cache(store, url, remote)) is not None:
            return [cache]
        elif store.entry(url) is not None:
            urls = [url]
        elif not store.lists:
            raise SourceError(
                f"{shown}: found neither a suffix of a data file ({', '.join(KINDS)}) nor a cache, and web servers "
                "list no folders. Name each file."
            )
        else:
            urls = self._below(store, url.rstrip("/"), own)
        for one in urls:
            if _kind_of(without_secrets(one)) is None:
                raise _of_no_kind(without_secrets(one))
        found: list[str] = [copy_file(store, one, remote) for one in urls]
        if urls == [url]:
            return found
        if not (files := _without_own(found, own)):
            some = ", ".join(f"{one}: {own[str(one)]}" for one in found[:_SHOWN])
            raise SourceError(f"{shown}: found only files that this library wrote ({some}). Name the data.")
        return files

    def _below(self, store: Store, folder: str, own: dict[str, str]) -> list[str]:
        """Returns the URLs of the data files in a folder; all must be of one kind and one split.

        Among files of other kinds, JSON files may be the descriptions of a cache: their copies are read to find out.
        """
        urls = _urls_below(store, folder)
        if len({_kind_of(without_secrets(one)) for one in urls}) > 1:
            shown = {without_secrets(one): one for one in urls}
            found = [copy_file(store, url, self._remote) for name, url in shown.items() if _kind_of(name) is _JSON]
            left = {str(one) for one in found} - {str(one) for one in _without_own([*found], own)}
            urls = [url for name, url in shown.items() if name not in left]
        _check_one_kind(without_secrets(folder), [without_secrets(one) for one in urls])
        return urls

    def _store(self, url: str) -> Store:
        place = "/".join(url.split("/", 3)[:3])  # protocol and host or bucket
        if place not in self._stores:
            self._stores[place] = self._remote.store(url)
        return self._stores[place]


def _urls_below(store: Store, folder: str) -> list[str]:
    """Returns the data files in a remote folder and below."""
    shown, found = without_secrets(folder), store.below(folder)
    names = [(url, os.path.relpath(without_secrets(url), shown)) for url in found]
    names = [(url, name) for url, name in names if not any(part.startswith(".") for part in name.split("/"))]
    files = [url for url, name in names if _is_data(name)]
    if not files:
        if any(re.fullmatch(CACHE_FILE, os.path.basename(name)) for _, name in names):
            raise SourceError(
                f"{shown} holds a cache without its manifest: it is being written, or its writing was interrupted. "
                "Wait for it, or give that command again."
            )
        if found:
            raise _no_data(shown, [name for _, name in names])
        raise SourceError(f"{shown}: no such file or folder in the store; expected data. Check the address.")
    return files


def _is_data(path: str) -> bool:
    return _kind_of(path) is not None and os.path.basename(path) not in _NOT_DATA


def _without_own(files: list[str], own: dict[str, str]) -> list[str]:
    """Returns the files that this library did not write, and adds the others to `own`."""
    found = {file: kind for file in files if (kind := own_kind(file)) is not None}
    own.update({str(file): kind for file, kind in found.items()})
    return [file for file in files if file not in found]


def _check_searched(pattern: str) -> None:
    """Raises OSError if the system cannot say what a glob matches; `glob` skips such folders silently."""
    listed = None
    while _GLOB.search(pattern):
        parent, name = os.path.split(pattern)
        within = pattern if name == "**" else parent
        if within != listed:
            folders = glob.glob(within, recursive=True) if _GLOB.search(within) else [within or "."]
            if _GLOB.search(name):
                listed = within
                for folder in filter(is_folder, folders):
                    os.listdir(folder)
            else:  # looked up without listing the folder
                for folder in folders:
                    exists(os.path.join(folder, name))
        pattern = parent


def _files_at(path: str, own: dict[str, str]) -> Iterator[tuple[str, Kind]]:
    """Yields a file, or what is to be opened in a folder, each with its kind; files are checked to be readable."""
    if is_saved(path):
        yield path, _SAVED_FOLDER
    elif is_cache(path):
        yield path, _CACHE_FOLDER
    else:
        for file in _folder_files(path, own) if os.path.isdir(path) else [path]:
            kind = _kind_of(file)
            if kind is None:
                raise _of_no_kind(file)
            stamp(file)
            yield file, _LINES if kind is _JSON and not holds_array(file) else kind


def _of_no_kind(file: str) -> SourceError:
    return SourceError(
        f"{file}: found the suffix {os.path.splitext(file)[1]!r}, expected one of {', '.join(KINDS)}. "
        "Rename the file if its contents are of such a kind, convert it, or read it yourself and pass the rows."
    )


def _kind_of(path: str) -> Kind | None:
    return next((kind for suffix, kind in KINDS.items() if path.lower().endswith(suffix)), None)


def _folder_files(folder: str, own: dict[str, str]) -> list[str]:
    """Returns the data files in a folder and below, sorted by path; all must be of one kind and one split.

    Files of this library are left out, and added to `own`.
    """
    found = []
    for where, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(where, name) for name in names if name not in _NOT_DATA and not name.startswith(".")]
    files = _without_own(sorted(filter(_kind_of, found)), own)
    if not files:
        raise _no_data(folder, [os.path.relpath(path, folder) for path in found])
    _check_one_kind(folder, files)
    return files


def _no_data(folder: str, names: Sequence[str]) -> SourceError:
    present = ", ".join(sorted(names)[:_SHOWN]) or "nothing"
    return SourceError(
        f"{folder}: found no data files in the folder ({present}), expected {', '.join(KINDS)}. "
        "Name the files, or another folder."
    )


def _check_one_kind(folder: str, files: Sequence[str]) -> None:
    """Raises if files are of several kinds, or named for several splits."""
    kinds = Counter(kind.name for kind in map(_kind_of, files) if kind)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise SourceError(
            f"{folder}: found files of several kinds in the folder ({counts}), which may be the same "
            f"data twice. Name those that you mean with a glob, e.g. {os.path.join(folder, '*.jsonl')}."
        )
    _check_one_split(folder, files)


def _check_one_split(folder: str, files: Sequence[str]) -> None:
    """Raises if files are named for several splits, so that nobody trains on test data by accident."""
    splits: dict[str, str] = {}
    for path in files:
        for name in splits_in(os.path.relpath(path, folder)):
            splits.setdefault(name, path)
    if len(splits) > 1:
        raise SourceError(
            f"{folder}: found files of several splits ({', '.join(sorted(splits))}) in the folder, expected one. "
            f"Name the files of one split with a glob, like that of {splits.get('train', splits[min(splits)])}."
        )


def _check_each_once(paths: Sequence[str]) -> None:
    named: set[str] = set()
    for path in paths:
        if (real := os.path.realpath(path)) in named:
            raise SourceError(
                f"{path}: the file is named twice, so its rows would come twice in an epoch. Name it once; to see "
                "some data more often than other data use mps.mix with weights."
            )
        named.add(real)


def _missing(path: str) -> SourceError:
    hint = ""
    if is_shortened_url(path):
        hint = " If it is a URL: pass it as a string, as pathlib takes its second slash away."
    elif os.path.isdir(f"{path}.writing"):
        hint = " A cache of this name is being written, or its writing was interrupted: run that command again."
    elif _HUB_NAME.match(path) and not os.path.splitext(path)[1]:
        hint = (
            f" If it is the name of a data set: it is not in the local caches ({', '.join(cache_roots())}), and "
            "nothing is downloaded; load it with datasets.load_dataset and pass the data set."
        )
    return SourceError(
        f"{path}: no such file or folder{_neighbours(path)}; expected data (relative paths start at {os.getcwd()}). "
        f"Correct the path.{hint}"
    )


def _neighbours(path: str) -> str:
    """Returns, in brackets, the existing names most like a missing one, or where its path breaks off."""
    folder, name = os.path.split(path)
    while _GLOB.search(folder):
        folder, name = os.path.split(folder)
    if not os.path.isdir(folder or "."):
        return f" (there is no folder {folder!r})"
    names = sorted(entry for entry in os.listdir(folder or ".") if not entry.startswith("."))
    similar = difflib.get_close_matches(name, names, n=_SHOWN, cutoff=0.5) or [n for n in names if _kind_of(n)]
    return f" (in {folder or '.'!r} there is: {', '.join(similar[:_SHOWN])})" if similar else ""
