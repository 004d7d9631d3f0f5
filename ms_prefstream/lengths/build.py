"""One pass over all rows that writes a length index."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ms_prefstream.errors import RowError
from ms_prefstream.lengths.files import open_index
from ms_prefstream.lengths.index import LengthIndex
from ms_prefstream.lengths.journal import Journal
from ms_prefstream.lengths.layout import VERSION, write_contents
from ms_prefstream.lengths.measure import Loader, measuring
from ms_prefstream.lengths.progress import Progress, Silent
from ms_prefstream.lengths.verdict import first_malformed

CHUNK = 512  # rows that are measured, sent and saved together


def build_index(
    rows: int,
    loader: Loader,
    path: str | os.PathLike[str],
    fingerprint: Mapping[str, Any],
    *,
    origin: Callable[[int], str],
    raise_malformed: bool = True,
    progress: Progress | None = None,
    on_bad: Callable[[int, RowError], None] | None = None,
) -> LengthIndex:
    """Measure every row and write the index; a pass that was interrupted goes on where it ended.

    The file is the same, byte for byte, whatever the number of workers and interruptions.

    Args:
        rows: How many rows there are.
        loader: A `SampleLoader`, or a `LoaderPool` for several processes.
        path: Where the index is written; what is measured so far stands beside it with the suffix ``.part``.
        fingerprint: What decides about lengths and verdicts, by name, as plain values for JSON.
        origin: Row id to origin.
        raise_malformed: Whether a malformed row is an error (``on_bad_row="raise"``) or gets its verdict.
        progress: Is told how far the pass is.
        on_bad: Is called with each bad row and its error, origin included, once a row over all parts of the pass.

    Raises:
        RowError: The first malformed row, if such rows are errors.
        SourceError: The file cannot be written.
        StateError: Another process is building this index.
    """
    path, shown = os.fspath(path), progress or Silent()
    with Journal(path, {"version": VERSION, "rows": rows, "fingerprint": dict(fingerprint)}) as journal:
        if raise_malformed and journal.rows:
            _raise_known(journal, loader, origin)
        chunks = (range(begin, min(begin + CHUNK, rows)) for begin in range(journal.rows, rows, CHUNK))
        shown.begin(rows, journal.rows)
        try:
            for measured in measuring(loader)(chunks):
                for position, found in measured.errors:
                    _settle(found.at(origin(journal.rows + position)), journal.rows + position, raise_malformed, on_bad)
                journal.append(measured)
                shown.advance(len(measured.verdict))
        finally:
            shown.end()
        write_contents(path, rows, journal.parts(), fingerprint)
        journal.delete()
    return open_index(path, fingerprint, rows)


def raise_malformed_of(index: LengthIndex, loader: Loader, origin: Callable[[int], str]) -> None:
    """For ``on_bad_row="raise"`` with an index that was built with ``"drop"``: raise its first malformed row.

    Raises:
        RowError: That row's own error, with its origin.
    """
    row = index.first_malformed
    if row is not None:
        _raise_row(row, loader, origin)


def _raise_known(journal: Journal, loader: Loader, origin: Callable[[int], str]) -> None:
    begin = 0
    for part in journal.parts():
        row = first_malformed(part.verdict)
        if row is not None:
            _raise_row(begin + row, loader, origin)
        begin += len(part.verdict)


def _raise_row(row: int, loader: Loader, origin: Callable[[int], str]) -> None:
    (found,) = loader.load([row])
    if found.error is not None:
        raise found.error.at(origin(row))


def _settle(error: RowError, row: int, raise_malformed: bool, on_bad: Callable[[int, RowError], None] | None) -> None:
    if raise_malformed and error.reason.malformed:
        raise error
    if on_bad is not None:
        on_bad(row, error)
