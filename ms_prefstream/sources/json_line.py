"""One line of JSON Lines to one raw row, or to a `RowError` that shows a person what is wrong with the line."""

from __future__ import annotations

import orjson

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.sources.base import RawRow

DEFAULT_MAX_ROW_BYTES = 64 * 1024 * 1024
_SHOWN = 60
_SKIPPED_FIRST = (b"\xef\xbb\xbf", b"\x1e")  # a byte-order mark of files joined with cat; RFC 7464 text sequences
_NOT_JSON_NUMBERS = ("NaN", "nan", "Infinity", "-Infinity", "inf", "-inf")


def reparse(raw: bytes, origin: str) -> RawRow:
    """Parse bytes that orjson refused, once more and with care: what follows the line is cut off.

    Args:
        raw: The line, perhaps with blank lines behind it.
        origin: Where it stands, as file:line.

    Returns:
        The row, or a `RowError` with reason `bad_json`.
    """
    line = raw.split(b"\n", 1)[0].rstrip(b"\r")
    for mark in _SKIPPED_FIRST:
        if line.startswith(mark):
            line = line[len(mark) :]
            break
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _explain(line, error).at(origin)


def too_large(size: int, limit: int, origin: str) -> RowError:
    """The error for a row of `size` bytes where at most `limit` are allowed."""
    problem = f"the row has {size:,} bytes; at most {limit:,} are allowed"
    return RowError(Reason.ROW_TOO_LARGE, problem, "Split or remove the row", origin)


def _explain(line: bytes, error: orjson.JSONDecodeError) -> RowError:
    begins = f"the line begins {line[: _SHOWN * 4].decode('utf-8', 'replace')[:_SHOWN]!r}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as fault:
        found = f"the line is not valid UTF-8: byte {fault.start + 1} is 0x{line[fault.start]:02x}; {begins}"
        return RowError(
            Reason.BAD_JSON, found, "Save the file as UTF-8 and check that no line was cut in mid-character"
        )
    problem = f"the line is not valid JSON: {error.msg} at column {error.colno}; {begins}"
    return RowError(Reason.BAD_JSON, problem, _remedy(text, error.pos))


def _remedy(text: str, fault: int) -> str:
    if text.startswith(_NOT_JSON_NUMBERS, fault) or text[max(0, fault - 1) :].startswith(_NOT_JSON_NUMBERS):
        return "JSON has no NaN or Infinity: write null or a number"
    if fault >= len(text.rstrip()) or text.strip() in ("{", "[", "[{"):
        return (
            "Each line must hold one whole JSON object: write pretty-printed objects on one line each, "
            "save one big array as .json, and write a line again that was cut off"
        )
    return "Each line must hold one JSON object: correct or remove the line"


def check_max_row_bytes(value: int) -> int:
    """The option `max_row_bytes`, proven to be a positive whole number.

    Raises:
        OptionError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"max_row_bytes: got {value!r}, expected a whole number of bytes above 0, e.g. 67108864.")
    return value
