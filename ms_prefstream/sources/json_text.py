"""One row of JSON text: its size limit, and errors that say what is wrong with it."""

from __future__ import annotations

import orjson

from ms_prefstream.checks import whole_number
from ms_prefstream.errors import Reason, RowError, SourceError
from ms_prefstream.sources.base import RawRow

BOM = b"\xef\xbb\xbf"
DEFAULT_MAX_ROW_BYTES = 64 * 1024 * 1024
_SHOWN = 60
_RECORD_MARK = b"\x1e"  # before each row of an RFC 7464 text sequence
_NOT_JSON_NUMBERS = ("NaN", "nan", "Infinity", "-Infinity", "inf", "-inf")
_FOREIGN = {
    b"\x1f\x8b": ("gzip data", "Name the file .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "Name the file .jsonl.zst"),
    b"PAR1": ("Parquet data", "Name the file .parquet"),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
}


def check_max_row_bytes(value: int) -> int:
    """Returns the option `max_row_bytes` if it is a whole number above 0; raises `OptionError` if not."""
    return whole_number("max_row_bytes", value, 1)


def refuse_foreign(path: str, head: bytes) -> None:
    """Raises `SourceError` for a file that begins like a compressed file, a Parquet file or UTF-16 text."""
    for magic, (found, remedy) in _FOREIGN.items():
        if head.startswith(magic):
            raise SourceError(f"{path}: found {found}, expected JSON Lines text in UTF-8. {remedy}.")


def one_array(path: str) -> SourceError:
    """Returns the error for a file of JSON Lines that is one JSON array of rows."""
    return SourceError(f"{path}: begins with '[': a JSON array; name it .json. JSON Lines has one object a line.")


def too_large(size: int, limit: int, origin: str) -> RowError:
    """Returns the error for a row of `size` bytes where at most `limit` are allowed."""
    problem = f"the row has {size:,} bytes; at most {limit:,} are allowed"
    return RowError(Reason.ROW_TOO_LARGE, problem, "Split or remove the row", origin)


def reparse(raw: bytes, origin: str) -> RawRow:
    """Parses a line that orjson refused, without what may legally surround a row; else returns a `RowError`.

    Args:
        raw: The line, perhaps followed by blank lines.
        origin: The line's place, as file:line.
    """
    line = raw.split(b"\n", 1)[0].rstrip(b"\r").removeprefix(BOM).removeprefix(_RECORD_MARK)
    try:
        text = line.decode("utf-8")
        return orjson.loads(line)
    except UnicodeDecodeError as error:
        problem = f"the line is not valid UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
        remedy = "Save the file as UTF-8 and check that no line was cut in mid-character"
    except orjson.JSONDecodeError as error:
        problem = f"the line is not valid JSON: {error.msg} at column {error.colno}"
        remedy = _remedy(text, error.pos)
    begins = line[: _SHOWN * 4].decode("utf-8", "replace")[:_SHOWN]
    return RowError(Reason.BAD_JSON, f"{problem}; the line begins {begins!r}", remedy, origin)


def _remedy(text: str, fault: int) -> str:
    if text.startswith(_NOT_JSON_NUMBERS, fault) or text[max(0, fault - 1) :].startswith(_NOT_JSON_NUMBERS):
        return "JSON has no NaN or Infinity: write null or a number"
    if fault >= len(text.rstrip()) or text.strip() in ("{", "[", "[{"):
        return (
            "Each line must hold one whole JSON object: write pretty-printed objects on one line each, "
            "save one big array as .json, and write a line again that was cut off"
        )
    return "Each line must hold one JSON object: correct or remove the line"
