"""Target: files of rows, changed as rows, as text and as compressed bytes."""

from __future__ import annotations

import gzip
import io
import pathlib
import random
import zlib
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import zstandard

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import RowError
from ms_prefstream.sources.base import rows_in_order
from ms_prefstream.sources.open import open_source
from tests.files_on_disk import ZSTD
from tests.fuzz.mutations import TEXTS, as_json, json_value, raw
from tests.helpers import pairs

KINDS = ("rows.jsonl", "rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet")
WORDS = [b"\r", b"\n\n", b"\xff", b"\x1e", b"[" * 3000, b"\\u", *(as_json(one)[1:-1] for one in TEXTS)]


class FilesTarget:
    """A file: its rows are those that a plain parser finds, and none is lost on the way to batches."""

    place = r"rows\.|rows"

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._tokenizer = load_tokenizer("bytes")

    def start(self, draw: random.Random) -> Any:
        """A name with rows; further on, the text in the place of the rows, or the bytes in the place of the text."""
        return draw.choice(KINDS), pairs(4), None, None

    def mutate(self, value: Any, draw: random.Random) -> Any:
        name, rows, text, packed = value
        deeper = draw.random()
        if packed is not None or deeper < 0.1:
            return name, rows, text, raw(packed if packed is not None else self._packed(name, rows, text), draw)
        if text is not None or (deeper < 0.4 and not name.endswith("parquet")):
            return name, rows, changed_text(self._text(name, rows) if text is None else text, draw), None
        at = draw.randrange(len(rows))
        changed = [json_value(row, draw) if number == at else row for number, row in enumerate(rows)]
        if name.endswith("parquet") and table_of(changed) is None:
            return value
        return name, changed, None, None

    def run(self, value: Any) -> bool:
        name, rows, text, packed = value
        path = self._folder / name
        data = self._packed(name, rows, text) if packed is None else packed
        path.write_bytes(data)
        source = open_source(path)
        found = rows_of(source)
        expected = expected_rows(name, data)
        if expected is not None:  # what parsers of other projects make of damaged bytes is theirs to say
            assert [None if isinstance(row, RowError) else row for row in found] == expected, "other rows"
        stream = mps.stream(
            source, task=mps.DPO(128), tokenizer=self._tokenizer, batching=mps.Pad(1), template=None, on_bad_row="drop",
            verbose=False, shuffle=False, drop_remainder=False, window=8,
        )  # fmt: skip
        batches = list(stream.batches())
        ledger = stream.report.ledger()
        came = ledger["delivered"] + ledger["dropped"] + ledger["remainder"] - ledger["repeats"]
        assert len(found) == came == (stream.report.rows or came), f"rows are lost: {ledger}"
        assert len(batches) == ledger["delivered"]
        return True

    def is_parsed(self, value: Any) -> bool:
        """Whether the bytes can be unpacked and one row is JSON."""
        name, _, text, packed = value
        if packed is not None:
            return False
        if name.endswith(".json"):
            return text is None
        return text is None or any(row is not None for row in lines_of(text))

    def _text(self, name: str, rows: Any) -> bytes:
        if name.endswith(".json"):
            return as_json(rows)
        return b"".join(as_json(row) + b"\n" for row in rows)

    def _packed(self, name: str, rows: Any, text: bytes | None) -> bytes:
        if name.endswith("parquet"):
            file = io.BytesIO()
            pyarrow.parquet.write_table(table_of(rows), file, row_group_size=3)
            return file.getvalue()
        text = self._text(name, rows) if text is None else text
        return {"gz": gzip.compress, "zst": ZSTD.compress}.get(name.rpartition(".")[2], bytes)(text)


def changed_text(text: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return raw(text, draw)
    begin = draw.randrange(len(text) + 1)
    end = begin + draw.choice([0, 0, 1, 5])
    return text[:begin] + draw.choice(WORDS) + text[end:]


def table_of(rows: Any) -> Any:
    """Rows as a table of Arrow; None where it takes no such values."""
    try:
        return pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        return None


def rows_of(source: Any) -> list[Any]:
    if hasattr(source, "start"):
        return [row for _, row in source.start()]
    return list(rows_in_order(source))


def lines_of(text: bytes) -> list[Any]:
    """The rows of JSON Lines; None in the place of a line that is none."""
    return [parsed(line) for line in text.split(b"\n") if line.strip()]


def parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\x1e"))
    except ValueError:
        return None


def expected_rows(name: str, data: bytes) -> list[Any] | None:
    """The rows by a plain reader; None where there is none."""
    if name.endswith("parquet"):
        return None
    if name.endswith(".gz"):
        data = b"".join(gzip_members(data))
    elif name.endswith(".zst"):
        data = b"".join(zstd_frames(data))
    if name.endswith(".json") and data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return list(orjson.loads(data.removeprefix(b"\xef\xbb\xbf")))
    return lines_of(data)


def gzip_members(data: bytes) -> Iterator[bytes]:
    while data := data.lstrip(b"\0"):
        member = zlib.decompressobj(31)
        yield member.decompress(data)
        assert member.eof, "a file that was cut off is read"
        data = member.unused_data


def zstd_frames(data: bytes) -> Iterator[bytes]:
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(data)
        assert frame.eof, "a file that was cut off is read"
        data = frame.unused_data
