"""Any object that a user passes as the source, opened: the dispatch by type. Paths continue in `paths`."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import OnePass, RandomAccess, Source
from ms_prefstream.sources.compressed import StandardInput
from ms_prefstream.sources.concat import concat
from ms_prefstream.sources.copies import LOCAL, Remote
from ms_prefstream.sources.huggingface import open_huggingface
from ms_prefstream.sources.iterable import iterable_rows
from ms_prefstream.sources.json_text import DEFAULT_MAX_ROW_BYTES, check_max_row_bytes
from ms_prefstream.sources.memory import MemoryRows, OwnRows
from ms_prefstream.sources.paths import open_paths

_EXPECTED = (
    "expected a path, a glob, a list of them, a list of dicts, an object with __len__ and __getitem__, an iterable of "
    "dicts, a function that returns one, a Hugging Face Dataset, or '-' for standard input"
)

_REMEDIES: tuple[tuple[Any, str], ...] = (
    (Mapping, " For a dict of columns pass datasets.Dataset.from_dict(...), for one row a list with it."),
    ((bytes, bytearray, memoryview), " Pass a path as str, or the parsed rows as a list of dicts."),
    (Set, " A set has no fixed order: pass a list."),
    (io.IOBase, " Pass the path of the file instead of the open file."),
)


def open_source(source: Any, remote: Remote = LOCAL, *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> Source:
    """Returns the source for what a user passed. The first line that fits decides:

    1. an object that is a source already: itself;
    2. ``"-"`` or ``sys.stdin``: JSON Lines from standard input, one pass;
    3. a path, a glob or a folder (str or PathLike): its files, see below; a name that is no path: the data set of that
       name in a local cache, see `local_hub`; a URL of any of them: local copies of its files;
    4. a `Dataset` or `IterableDataset` of Hugging Face's datasets, or an `MsDataset` of ModelScope;
    5. a list or tuple: of dicts -> its rows; of paths and other sources -> all of them, in order;
    6. an object with `__len__` and `__getitem__`: its rows;
    7. an iterable, or a function without arguments that returns one: one pass.

    Files are read by suffix: plain JSON Lines, `.json` arrays, Parquet and Arrow in any order; `.gz` and `.zst` from
    the front. Plain and compressed files may be mixed: all of them are then one pass, in the order given. What a
    glob or a folder stands for is sorted by name.

    A folder that `mps.write_cache` wrote is one source, of samples.

    Args:
        source: What the user passed.
        remote: How stores are opened, and where local copies of their files lie.
        max_row_bytes: A row of JSON text above this becomes a `RowError` (`row_too_large`).

    Raises:
        SourceError: It cannot be opened, holds no rows, or is of no known kind.
    """
    check_max_row_bytes(max_row_bytes)
    if not isinstance(source, type) and isinstance(source, (RandomAccess, OnePass)):
        is_own = not type(source).__module__.startswith("ms_prefstream.")
        return OwnRows(source) if is_own and isinstance(source, RandomAccess) else source
    if _is_stdin(source):
        return StandardInput(max_row_bytes=max_row_bytes)
    if isinstance(source, (str, os.PathLike)):
        return open_paths([source], max_row_bytes, remote)
    if (opened := open_huggingface(source)) is not None:
        return opened
    if isinstance(source, (list, tuple)):
        return _open_list(source, max_row_bytes, remote)
    remedy = next((remedy for kinds, remedy in _REMEDIES if isinstance(source, kinds)), "")
    if type(source).__module__.partition(".")[0] == "pandas":
        remedy = " Pass frame.to_dict('records')."
    if not remedy and hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, type):
        return MemoryRows(source)
    if not remedy and (callable(source) or isinstance(source, Iterable)):
        return iterable_rows(source)
    raise SourceError(f"The source is of type {type(source).__name__}; {_EXPECTED}.{remedy}")


def _open_list(items: Sequence[Any], max_row_bytes: int, remote: Remote) -> Source:
    """Opens a list of rows, or a list of paths and sources."""
    kinds = set(map(type, items))  # of every item: what a list is must not depend on its first
    rows = {kind for kind in kinds if issubclass(kind, Mapping) and not kind.__module__.startswith("datasets.")}
    paths = [kind for kind in kinds if issubclass(kind, (str, os.PathLike))]
    if rows and paths:
        first = next(k for k, item in enumerate(items) if type(item) in paths)
        raise SourceError(
            f"The source is a list of {len(items)} items in which rows stand beside paths: item {first} is "
            f"{items[first]!r}. Expected rows only, or paths and sources only."
        )
    if rows or not kinds:  # an item that is no dict is then a malformed row
        return MemoryRows(items)
    parts: list[Source] = []
    for is_path, group in itertools.groupby(enumerate(items), lambda entry: _is_path(entry[1])):
        if is_path:
            parts.append(open_paths([item for _, item in group], max_row_bytes, remote))
        else:
            parts += [open_item(f"Item {number} of the list", item, remote, max_row_bytes) for number, item in group]
    return concat(parts)


def open_item(where: str, item: Any, remote: Remote = LOCAL, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> Source:
    """Opens a source that is part of something larger, which errors name first."""
    try:
        return open_source(item, remote, max_row_bytes=max_row_bytes)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error


def _is_stdin(source: Any) -> bool:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) == "-"
    return isinstance(source, io.IOBase) and source in (sys.stdin, getattr(sys.stdin, "buffer", None))


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike)) and not _is_stdin(item)
