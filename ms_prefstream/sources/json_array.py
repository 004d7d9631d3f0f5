"""A `.json` file that holds one array of rows, as many published demo data sets do."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import orjson

from ms_prefstream.errors import SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawRow, as_row_ids, no_rows
from ms_prefstream.sources.files import Handle, check_unchanged, read_at, reading, stamp
from ms_prefstream.sources.json_text import BOM, DEFAULT_MAX_ROW_BYTES, too_large

MAX_ARRAY_BYTES = 1 << 30
"""Largest `.json` array that is read: it is parsed as a whole, which takes several times its size in memory."""

_HEAD = 1 << 16


def holds_array(path: str) -> bool:
    """Returns whether the first byte of a file that is not blank is ``[``; other `.json` files hold JSON Lines."""
    stamp(path)
    with reading(path), open(path, "rb") as file:
        head = file.read(_HEAD).removeprefix(BOM).lstrip()
        while not head and (more := file.read(_HEAD)):
            head = more.lstrip()
    return head.startswith(b"[")


class JsonArray:
    """Rows of a file that is one JSON array of at most 1 GiB.

    The file is parsed when the length is first requested. Rows are kept as JSON text, not as objects: this takes less
    memory, is cheap to pickle, and every `read` returns new objects that a caller may change. In the place of a row
    above `max_row_bytes` there is a `RowError`.
    """

    exact = True  # the fingerprint covers every byte

    def __init__(self, path: str, *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self.name, self.paths = str(path), (path,)
        self._limit = max_row_bytes

    def __len__(self) -> int:
        return len(self._loaded[0])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order."""
        texts, _ = self._loaded
        ids = as_row_ids(rows, len(texts), self.name).tolist()
        return [
            orjson.loads(texts[row])
            if len(texts[row]) <= self._limit
            else too_large(len(texts[row]), self._limit, self.origin(row))
            for row in ids
        ]

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"demo.json[16]"``, the index in the array, counted from 0."""
        return f"{self.name}[{row}]"

    def fingerprint(self) -> str:
        """Returns a hash of the whole contents."""
        return self._loaded[1]

    @functools.cached_property
    def _loaded(self) -> tuple[list[bytes], str]:
        return _load(self.paths[0])


def _load(path: str) -> tuple[list[bytes], str]:
    """Returns the rows of an array, each as JSON text, and the hash of the file."""
    before = stamp(path)
    if before.size > MAX_ARRAY_BYTES:
        raise SourceError(
            f"{path}: found a JSON array of {before.size:,} bytes; arrays are read up to {MAX_ARRAY_BYTES:,} bytes, "
            "since they must be parsed whole. Convert it to JSON Lines (jq -c '.[]' in.json > out.jsonl)."
        )
    handle = Handle(path)
    content = read_at(handle, path, 0, before.size)
    check_unchanged(path, before, handle.fd)
    digest, content = hash_of([content]), content.removeprefix(BOM)
    try:
        content.decode("utf-8")  # for its error, which names the byte
        rows: list[RawRow] = orjson.loads(content)  # a list, because the text begins with a bracket
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path}:{line}: byte {error.start + 1:,} of the file (0x{content[error.start]:02x}) is not valid UTF-8. "
            "Save the file as UTF-8."
        ) from error
    except orjson.JSONDecodeError as error:
        raise SourceError(
            f"{path}:{error.lineno}: the JSON array is not valid: {error.msg} at column {error.colno}. Correct the "
            "file, or save it as JSON Lines, where a broken line costs one row only."
        ) from error
    if not rows:
        raise no_rows(path)
    return [orjson.dumps(row) for row in rows], digest
