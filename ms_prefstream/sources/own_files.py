"""Files of this library beside the data, known by what they hold: they are no rows, and only they are overwritten."""

from __future__ import annotations

import json
import re
from typing import IO, Any

from ms_prefstream.disk import MOST_BYTES, open_regular
from ms_prefstream.errors import Reason, SourceError
from ms_prefstream.lengths.build import JOURNAL_BEGINS
from ms_prefstream.lengths.index_file import is_index

_HEAD = 4096
_MOST_LINE = 4 * MOST_BYTES
_MOST_LINES = 1 << 20  # bytes of a quarantine that are looked at after its first line
_QUARANTINE_FIELDS = ["origin", "reason", "problem", "row"]
_QUARANTINE_BEGINS = b'{"origin":'
_REASONS = frozenset(map(str, Reason))
_TORN = re.compile(rb'\{"origin":"(?:[^"\\]|\\.)*","reason":"(?:%s)","problem":"' % "|".join(sorted(_REASONS)).encode())
_STATE = frozenset({"version", "plan_version", "epoch", "step", "steps_per_epoch"})
_REPORT = frozenset({"steps", "read", "dropped", "origins", "boundary_differs"})


def own_kind(path: str) -> str | None:
    """Returns what a file of this library is, for people: ``"a saved state"``; None for any other file."""
    try:
        with open_regular(path, SourceError, "the file") as file:
            return _kind_of(file)
    except (OSError, SourceError):
        return None  # whoever opens it says why it cannot be read


def _kind_of(file: IO[bytes]) -> str | None:
    head = file.read(_HEAD)
    if head.startswith(_QUARANTINE_BEGINS):
        return "a quarantine file" if is_quarantine(file) else None
    if head.startswith(b"\x93NUMPY"):
        return "a length index" if is_index(file) else None
    if head.startswith(JOURNAL_BEGINS):
        return "the journal of an unfinished length index"
    if head.startswith(b"{"):
        found = _object(file) if b'"plan_version"' in head or b'"ms_prefstream ' in head or b'"steps"' in head else {}
        if found.keys() >= _STATE:
            return "a saved state"
        if found.keys() >= _REPORT:
            return "a report"
        if str(found.get("format", "")).startswith("ms_prefstream "):
            return "a description of a cache"
    return None


def is_quarantine(file: IO[bytes]) -> bool:
    """Returns whether a file is a quarantine: whether its first line, and those after it up to 1 MiB, are.

    A last line that was cut off in writing is allowed.
    """
    file.seek(0)
    line = file.readline(_MOST_LINE)
    if not line.endswith(b"\n"):
        return bool(_TORN.match(line))
    left = _MOST_LINES
    while line.endswith(b"\n"):
        if not _is_quarantined(line):
            return False
        line = file.readline(left)
        left -= len(line)
    return True


def is_state(file: IO[bytes]) -> bool:
    """Returns whether a file is a saved state, of any version."""
    return _object(file).keys() >= _STATE


def is_report(file: IO[bytes]) -> bool:
    """Returns whether a file is a report that a training wrote."""
    return _object(file).keys() >= _REPORT


def _object(file: IO[bytes]) -> dict[str, Any]:
    file.seek(0)
    found = _parsed(file.read(MOST_BYTES))
    return found if isinstance(found, dict) else {}


def _is_quarantined(line: bytes) -> bool:
    found = _parsed(line) if line.startswith(_QUARANTINE_BEGINS) else None
    if not isinstance(found, dict) or list(found) != _QUARANTINE_FIELDS:
        return False
    return isinstance(found["reason"], str) and found["reason"] in _REASONS


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)  # a row may hold lone surrogates and large numbers, which faster parsers refuse
    except (ValueError, RecursionError):
        return None
