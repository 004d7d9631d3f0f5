"""Where an index lies, and opening it: only the one that was built for these data and settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.lengths.index import LengthIndex
from ms_prefstream.lengths.layout import read_contents
from ms_prefstream.sources.base import Source

SUFFIX = ".mprefidx"


def beside(source: Source) -> str | None:
    """Where the index of a source lies if no path is given: beside its one file; None when it has not one file."""
    paths: Sequence[str] = getattr(source, "paths", ())
    if len(paths) == 1:
        return paths[0] + SUFFIX
    return source.name + SUFFIX if not paths and os.path.isfile(source.name) else None


def index_path(source: Source, given: str | os.PathLike[str] | None) -> str:
    """The path of an index that is going to be written.

    Args:
        source: The rows.
        given: What the user gave.

    Raises:
        OptionError: Nothing is given, and the source is not one file.
    """
    path = beside(source) if given is None else os.fspath(given)
    if path is None:
        raise OptionError(
            f"{source.name} is not a single file, so its length index has no place of its own. Give the index a path, "
            f'such as "train{SUFFIX}".'
        )
    return path


def open_index(path: str | os.PathLike[str], fingerprint: Mapping[str, Any], rows: int) -> LengthIndex:
    """The index in a file.

    Args:
        path: The file.
        fingerprint: What decides about lengths and verdicts now, by name.
        rows: How many rows there are now.

    Raises:
        StateError: There is none, it is damaged, or it was built for other data or settings; names what differs with
            its old and new value.
    """
    path = os.fspath(path)
    try:
        lengths, keys, verdict, known, checksum = read_contents(path)
    except FileNotFoundError:
        raise StateError(
            f"there is no length index {path}. Build it with stream.build_index() or `ms-prefstream index`."
        ) from None
    except OSError as error:
        raise StateError(f"the length index {path} cannot be read: {error.strerror}.") from error
    old, new = {"rows": len(verdict), **known}, {"rows": rows, **json.loads(json.dumps(dict(fingerprint)))}
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r} now"
        for name in dict.fromkeys([*new, *old])
        if name not in old or name not in new or old[name] != new[name]
    ]
    if changes:
        raise StateError(
            f"the length index {path} was built for other data or settings: {'; '.join(changes)}. Build it anew "
            "(stream.build_index() or `ms-prefstream index`), use the former settings, or pass index=None."
        )
    return LengthIndex(path=path, lengths=lengths, keys=keys, verdict=verdict, fingerprint=known, checksum=checksum)


def valid_index(path: str | os.PathLike[str] | None, fingerprint: Mapping[str, Any], rows: int) -> LengthIndex | None:
    """The index in a file, None when there is no such file (``index="auto"``).

    Raises:
        StateError: The file is there and is damaged or stale; using another order than last time must not go unseen.
    """
    if path is None or not os.path.exists(path):
        return None
    return open_index(path, fingerprint, rows)
