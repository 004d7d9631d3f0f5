"""Part ranges of a length index: files like ``train.mprefidx.3-of-8``, which are indexes of some rows, and their merge.

The fingerprint of such a file also has the range and the number of all rows, so no stream takes it for an index of its
source.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any

from ms_prefstream.disk import remove_leftovers, shown
from ms_prefstream.errors import StateError
from ms_prefstream.lengths.index import LengthIndex, Measured
from ms_prefstream.lengths.index_file import (
    check_replaceable,
    differences,
    listed,
    open_index,
    read_index,
    rows_of,
    unwritable,
    write_contents,
)
from ms_prefstream.part_range import NAME, PartRange, check_all

_RANGE, _ROWS = "part_range", "rows_of_all"
_OWN = re.compile(rf".*\.{NAME}", re.DOTALL)


def range_path(path: str, part_range: PartRange) -> str:
    """Returns the path of the file of a range, given that of the index."""
    return f"{path}.{part_range.name}"


def of_range(fingerprint: Mapping[str, Any], part_range: PartRange, rows: int) -> dict[str, Any]:
    """Returns the fingerprint of the file of a range; `rows` is the number of all rows."""
    return {**fingerprint, _RANGE: str(part_range), _ROWS: rows}


def range_files(path: str) -> dict[PartRange, str]:
    """Returns the paths of all files of ranges beside an index, in order.

    Raises:
        SourceError: The folder cannot be listed.
    """
    folder = os.path.dirname(path)
    try:
        names = os.listdir(folder or ".")
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise unwritable(path, error) from error
    matches = [_OWN.fullmatch(os.path.join(folder, name)) for name in names]
    named = {PartRange(int(match[1]), int(match[2])): match[0] for match in matches if match is not None}
    return {one: named[one] for one in sorted(named) if named[one] == range_path(path, one)}


def settings_begun(path: str) -> Mapping[str, Any]:
    """Returns the fingerprint of the first range that is finished; nothing if there is none that can be read."""
    for found in range_files(path).values():
        with contextlib.suppress(StateError):
            return read_index(found, rows_of(found)).fingerprint
    return {}


def _read(part_range: PartRange, file: str) -> LengthIndex:
    try:
        return read_index(file, rows_of(file))
    except StateError as error:
        raise StateError(
            f"part range {part_range}: {str(error).rstrip('.')}, with part_range={tuple(part_range)}; then merge again."
        ) from error


def merge_ranges(path: str) -> LengthIndex:
    """Writes the length index that the files of all ranges make up, and deletes these.

    The bytes are those that one process would have written.

    Raises:
        OptionError: Something that is no length index is at the path.
        SourceError: The index cannot be written.
        StateError: A range is missing, doubled, damaged or foreign; names it, and what to run.
    """
    check_replaceable(path)
    files = range_files(path)
    found = {one: _read(one, file) for one, file in files.items()}
    first, index = next(iter(found.items()))
    rows = index.fingerprint.get(_ROWS)
    settings = {name: value for name, value in index.fingerprint.items() if name not in (_RANGE, _ROWS)}
    for one, other in found.items():
        if one.total != first.total:
            raise StateError(
                f"{shown(files[first])} and {shown(files[one])} cover some of the same rows: one is of {first.total} "
                f"ranges, the other of {one.total}. Delete those of one number of ranges."
            )
        changes = differences(of_range(settings, one, rows if isinstance(rows, int) else 0), other.fingerprint)
        if changes or other.rows != len(one.of(int(other.fingerprint[_ROWS]))):
            raise StateError(
                f"part range {one} ({shown(files[one])}) does not belong to part range {first}: "
                f"{listed(changes) or f'it has {other.rows:,} rows'}. Build it again with the data and settings of the "
                f"others and part_range={tuple(one)}."
            )
    try:
        whole = open_index(path, settings, int(rows or 0))
    except StateError:
        check_all(found, f"the length index {shown(path)}")
        parts = [Measured(one.lengths, one.keys, one.verdict, [], order=one.order) for one in found.values()]
        write_contents(path, parts, settings)
        remove_leftovers(path)
        whole = open_index(path, settings, int(rows or 0))
    for file in files.values():  # some may be gone if an earlier merge was interrupted
        check_replaceable(file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    return whole
