"""Size of a part in MB, converted to rows by the first rows of a source."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile

from ms_prefstream.cache.compatibility import can_resume
from ms_prefstream.cache.layouts import ROWS_PER_PART, Job
from ms_prefstream.cache.parts import PartTask, write_part
from ms_prefstream.checks import is_positive
from ms_prefstream.errors import OptionError
from ms_prefstream.steps.data import StreamData

_MEASURED = 1000  # rows
_MOST_ROWS = 2**31 - 1


def check_size(rows_per_part: object, mb_per_part: object, data: StreamData) -> None:
    """Checks the options for the size of a part.

    Raises:
        OptionError: They cannot be used.
    """
    if mb_per_part is None:
        return
    if rows_per_part is not None:
        raise OptionError("rows_per_part and mb_per_part both give the size of a file. Give only one of them.")
    if not is_positive(mb_per_part):
        raise OptionError(f"mb_per_part is {mb_per_part!r}; expected a number above 0.")
    if not can_resume(data):
        raise OptionError(
            f"mb_per_part looks at the first rows, and {data.source.name} can be read only once. Give rows_per_part "
            "instead."
        )


def rows_of_size(megabytes: float, job: Job, data: StreamData) -> int:
    """Returns how many rows fill a part of a size, by the files that the first rows make."""
    count, read = _MEASURED, None
    if data.records is None:
        read = list(itertools.islice(data.one_pass.start(0), _MEASURED))
        count = len(read)
    else:
        count = min(count, len(data.records))
    left_out = data.left_out()
    with tempfile.TemporaryDirectory() as folder:
        some = dataclasses.replace(job, rows_per_part=max(1, count))
        verdict = None if left_out is None else left_out[:count]
        done = write_part(data.local, PartTask(some, 0, 0, count, folder, verdict, read))
    size = sum(note.bytes for note in done.files.values())
    return max(1, min(int(megabytes * 1e6 * count / size), _MOST_ROWS)) if size else ROWS_PER_PART
