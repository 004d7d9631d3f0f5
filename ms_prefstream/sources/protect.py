"""Keeps what we write from overwriting what we read, or anything else that is not ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ms_prefstream.errors import OptionError

INDEX_BEGINS = b"\x93NUMPY"
QUARANTINE_BEGINS = b'{"origin":'


def check_target(option: str, path: str | os.PathLike[str], source: Any, begins: bytes) -> None:
    """Refuse to write to a file that belongs to the data, or holds something else than we would write there.

    Args:
        option: What the user gave the path as.
        path: The file to be written; it may not exist.
        source: The rows: an opened source or a mix.
        begins: The first bytes of files of this kind.

    Raises:
        OptionError: Names the file and what it is.
    """
    if not os.path.isfile(path):
        return
    shown = os.fspath(path)
    for file in files_of(source):
        if os.path.isfile(file) and os.path.samefile(file, path):
            raise OptionError(
                f"{option} is {shown!r}, which is a file of the data itself. Name another file; nothing was changed."
            )
    with open(path, "rb") as opened:
        found = opened.read(len(begins))
    if found and found != begins:
        raise OptionError(
            f"{option} is {shown!r}, which exists and holds something else. Name a new file; nothing was changed."
        )


def files_of(source: Any) -> Iterator[str]:
    """The files that a source or a mix reads, as far as it knows them."""
    for part in getattr(source, "parts", None) or getattr(source, "_parts", None) or ():
        yield from files_of(getattr(part, "source", part))
    paths = getattr(source, "paths", None) or getattr(source, "_paths", None) or [getattr(source, "name", "")]
    yield from (str(path) for path in paths)
