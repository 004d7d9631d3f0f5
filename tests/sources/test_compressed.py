"""JSON Lines from the front: compressed, mixed with plain files, and from standard input."""

from __future__ import annotations

import gzip
import io
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import Reason, RowError, SourceError
from ms_prefstream.sources import compressed
from ms_prefstream.sources import lines as line_reading
from ms_prefstream.sources.base import OnePass
from ms_prefstream.sources.compressed import StandardInput, StreamedJsonLines, read_blocks
from ms_prefstream.sources.jsonl import JsonLines
from ms_prefstream.sources.lines import LineStream
from ms_prefstream.sources.open import open_source

TEXT = b'\xef\xbb\xbf{"n":0}\n\n \t\r\n{"n":1}\r\n{"n":2\n\n' + '{"n":3,"文":"日本語"}'.encode() + b'\n{"n":4}'
ORIGINS = [1, 4, 5, 7, 8]


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "x.jsonl.gz": gzip.compress,
    "x.jsonl.zst": zst,
    "members.jsonl.gz": lambda data: b"".join(gzip.compress(data[k : k + 7]) for k in range(0, len(data), 7)),
    "frames.jsonl.zst": lambda data: b"".join(zst(data[k : k + 7]) for k in range(0, len(data), 7)),
    "padded.jsonl.gz": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + b"\0" * 512,
    "skippable.jsonl.zst": lambda data: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zst(data[:20]) + zst(b"") + zst(data[20:]),
    "UPPER.JSONL.GZ": gzip.compress,
}


@pytest.mark.parametrize("name", PACK)
def test_rows_origins_and_every_skip(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACK[name](TEXT))
    source = open_source(path)
    assert isinstance(source, StreamedJsonLines)
    assert isinstance(source, OnePass)
    found = list(source.start())
    assert [origin for origin, _ in found] == [f"{path}:{line}" for line in ORIGINS]
    bad = found[2][1]
    assert isinstance(bad, RowError)
    assert bad.reason is Reason.BAD_JSON
    assert bad.origin == f"{path}:5"
    assert [row["n"] for _, row in found if isinstance(row, dict)] == [0, 1, 3, 4]
    for skip in range(1, 6):
        rest = list(source.start(skip))
        assert [origin for origin, _ in rest] == [origin for origin, _ in found][skip:]
        assert [row for _, row in rest if isinstance(row, dict)] == [r for _, r in found[skip:] if isinstance(r, dict)]
    with pytest.raises(SourceError, match="6 rows were to be skipped, but there are only 5"):
        source.start(6)


LINES = st.lists(
    st.sampled_from([b"{}", b"[1]", b" null", b"x", b"", b" ", b"\t" * 70, b'"' + b"y" * 30 + b'"', b'"\xff"']),
    max_size=12,
)


@settings(settings.get_profile("cheap"))
@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(1, 60))
def test_blocks_of_any_size_read_as_random_access_does(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    end: bytes,
    block: int,
    bom: bool,
    last: bool,
    limit: int,
) -> None:
    """Two readers that share only the parser must agree on rows, lines, errors and sizes, whatever is skipped."""
    text = end.join([*lines, b"[2]"]) + (end if last else b"")
    path = tmp_path_factory.mktemp("same") / "x.jsonl"
    text = b"\xef\xbb\xbf" * bom + text
    path.write_bytes(text)
    whole = JsonLines([str(path)], max_row_bytes=limit)
    expected = [(whole.origin(k), show(row)) for k, row in enumerate(whole.read(range(len(whole))))]
    for skip in range(len(expected) + 1):
        blocks = (text[k : k + block] for k in range(0, len(text), block))
        stream = LineStream(str(path), blocks, limit)
        assert stream.skip(skip) == skip
        assert [(origin, show(row)) for origin, row in stream.rows()] == expected[skip:]


def show(row: Any) -> Any:
    return str(row) if isinstance(row, RowError) else row


def test_skipped_rows_are_not_parsed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"n":%d}\n' % n for n in range(1000))))
    parsed: list[str] = []
    monkeypatch.setattr(line_reading.orjson, "loads", lambda text: parsed.append(text))
    assert len(list(open_source(path).start(990))) == 10
    assert len(parsed) == 10


def test_a_line_above_the_limit_is_not_kept_in_memory() -> None:
    given: list[int] = []

    def blocks() -> Iterator[bytes]:
        yield b'{"n":1}\n"'
        for _ in range(5000):
            given.append(0)
            yield b"x" * 10_000
            assert sum(map(len, stream_pieces())) < 100_000
        yield b'"\n{"n":2}\n'

    def stream_pieces() -> list[bytes]:
        frame = lines.gi_frame
        return frame.f_locals["pieces"] if frame else []

    stream = LineStream("x", blocks(), 1000)
    lines = stream._lines()
    stream._lines = lambda: lines  # type: ignore[method-assign]
    first, large, last = stream.rows()
    assert (first, last) == (("x:1", {"n": 1}), ("x:3", {"n": 2}))
    assert large[1].reason is Reason.ROW_TOO_LARGE
    assert "50,000,002 bytes" in str(large[1])
    assert len(given) == 5000


def test_many_files_are_one_pass_and_plain_ones_may_be_among_them(tmp_path: pathlib.Path) -> None:
    contents = {"a.jsonl.gz": [0, 1], "b.jsonl": [2, 3, 4], "c.jsonl.zst": [], "d.jsonl.zst": [5]}
    for name, rows in contents.items():
        text = b"".join(b'{"n":%d}\n' % n for n in rows)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text) if ".gz" in name else zst(text) if ".zst" in name else text)
    source = open_source([tmp_path / name for name in contents])
    assert isinstance(source, StreamedJsonLines)
    for skip in range(7):
        assert [row["n"] for _, row in source.start(skip)] == list(range(skip, 6))
    assert [origin.rpartition("/")[2] for origin, _ in source.start(1)] == [
        "a.jsonl.gz:2", "b.jsonl:1", "b.jsonl:2", "b.jsonl:3", "d.jsonl.zst:1",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_a_file_that_was_cut_off(tmp_path: pathlib.Path, name: str) -> None:
    data = PACK[name](b"".join(orjson.dumps({"n": n, "text": hex(n**9)}) + b"\n" for n in range(3000)))
    for size in (len(data) // 2, len(data) - 1):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(SourceError, match=f"ends in the middle, at byte {size:,}"):
            list(open_source(tmp_path / name).start())


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_damaged_data(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"n": 1}\n')
    with pytest.raises(SourceError, match="damaged, or not what the suffix says"):
        list(open_source(tmp_path / name).start())
    flipped = bytearray(gzip.compress(b'{"n": 1}\n' * 50, mtime=0))
    flipped[-6] ^= 1  # the stored checksum
    (tmp_path / "y.jsonl.gz").write_bytes(flipped)
    with pytest.raises(SourceError, match="damaged"):
        list(open_source(tmp_path / "y.jsonl.gz").start())


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_no_rows(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SourceError, match="found no rows"):
        list(open_source(tmp_path / "x.jsonl.gz").start())


def test_fingerprint_follows_the_contents(tmp_path: pathlib.Path) -> None:
    one, two, three = (tmp_path / f"{k}.jsonl.zst" for k in range(3))
    for path, content in ((one, b"{}"), (two, b"{}"), (three, b"[]")):
        path.write_bytes(zst(content))
    found = [open_source(path).fingerprint() for path in (one, two, three)]
    assert found[0] == found[1] != found[2]


class Pipe(io.RawIOBase):
    """Gives what was written piece by piece, and notes how far it was asked."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("spelt", ["-", "object", "buffer"])
def test_standard_input_once(monkeypatch: pytest.MonkeyPatch, spelt: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe([TEXT[:40], TEXT[40:]]))))
    source = open_source({"-": "-", "object": sys.stdin, "buffer": sys.stdin.buffer}[spelt])
    assert isinstance(source, StandardInput)
    assert isinstance(source, OnePass)
    assert [origin for origin, _ in source.start(1)] == ["stdin:4", "stdin:5", "stdin:7", "stdin:8"]
    with pytest.raises(SourceError, match=r"cannot be read again.*pass the path"):
        source.start()


def test_a_slow_writer_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe([b'{"n": %d}\n' % n for n in range(5)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(pipe)))
    rows = open_source("-").start()
    assert next(rows) == ("stdin:1", {"n": 0})
    assert len(pipe.pieces) >= 3


def _longest_block(path: pathlib.Path) -> int:
    return max(map(len, read_blocks(str(path))))


def _bombs() -> dict[str, bytes]:
    """300 MB of text in a few kilobytes: one line, empty lines, and many frames."""
    line, lines = (zstandard.ZstdCompressor(level=1).compressobj() for _ in range(2))
    frames = zst(b"x" * 3_000_000)
    packed, blank = line.compress(b'{"n": 1}\n"'), b""
    for _ in range(100):
        packed, blank = packed + line.compress(b"x" * 3_000_000), blank + lines.compress(b"\n" * 3_000_000)
    end = b'"\n{"n": 2}\n'
    return {
        "line.jsonl.zst": packed + line.compress(end) + line.flush(),
        "blank.jsonl.zst": blank + lines.compress(b'{"n": 1}\n"z"\n{"n": 2}') + lines.flush(),
        "frames.jsonl.zst": zst(b'{"n": 1}\n"') + frames * 100 + zst(end),
        "line.jsonl.gz": gzip.compress(b'{"n": 1}\n"' + b"x" * 300_000_000 + end, 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line.jsonl.zst", "blank.jsonl.zst", "frames.jsonl.zst", "line.jsonl.gz"])
def test_memory_does_not_follow_the_ratio_of_compression(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_bombs()[name])
    assert path.stat().st_size < 2_000_000
    assert _longest_block(path) <= 1 << 20
    rows = f"import sys; from ms_prefstream.sources.open import open_source as o; r = o(sys.argv[1]); {_AS}"
    found = subprocess.run([sys.executable, "-c", rows, str(path)], capture_output=True, text=True, check=True).stdout
    peak, *kinds = found.split()
    assert kinds == ["dict", "RowError" if "blank" not in name else "str", "dict"]
    assert int(peak) < 200_000  # KiB more than before; the limit of a row alone is 64 MiB, held twice for a moment


_AS = """
import resource as u
peak = lambda: u.getrusage(u.RUSAGE_SELF).ru_maxrss
before = peak()
kinds = [type(row).__name__ for _, row in r.start()]
print(peak() - before, *kinds)
"""


def test_a_window_is_allowed_in_proportion_to_the_file(tmp_path: pathlib.Path) -> None:
    """A small file may not make the decompressor hold 2 GiB; one written with `zstd --long=31` may if it is large."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(packer.compress(b'{"n": 1}\n') + packer.flush())
    with pytest.raises(SourceError, match="too much memory"):
        list(open_source(path).start())


@pytest.mark.parametrize("name", PACK)
def test_every_cut_and_random_damage(tmp_path: pathlib.Path, name: str) -> None:
    path, data = tmp_path / name, PACK[name](TEXT * 3)
    path.write_bytes(data)
    whole = b"".join(read_blocks(str(path)))
    draw = random.Random(5)
    damaged = [data[:cut] for cut in range(len(data))]
    for _ in range(50):
        wrong = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            wrong[draw.randrange(len(wrong))] = draw.randrange(256)
        damaged.append(bytes(wrong))
    for content in damaged:
        path.write_bytes(content)
        try:
            found = b"".join(read_blocks(str(path)))
        except SourceError as error:
            assert "damaged" in str(error) or "ends in the middle" in str(error)  # noqa: PT017
        else:
            # A cut between members, or a damage that no checksum covers: never a part of a member.
            assert found == whole[: len(found)] or len(content) == len(data)


@pytest.mark.parametrize("pack", [gzip.compress, zst])
@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}, {"a": 2}]', '\ufeff \n[ {"a": 1},\n{"a": 2}]\n\n', '[\n  {"a": 1},\n  {"a": 2}\n]\n', "[\n{}\n]"],
)
def test_a_compressed_array_of_rows_is_no_json_lines(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / ("x.jsonl.gz" if pack is gzip.compress else "x.jsonl.zst")
    path.write_bytes(pack(text.encode()))
    for block in (1, 3, 1 << 20):
        monkeypatch.setattr(compressed, "_PLAIN_BLOCK", block)
        with pytest.raises(SourceError, match=r"begins with '\[': a JSON array; name it \.json"):
            list(StreamedJsonLines([str(path)]).start())


@pytest.mark.parametrize("text", ["[1, 2]\n[3]\n", '[{"a": 1}]\n\n[{"a": 2}]\n', '["a", "b"]', "[]\n"])
def test_compressed_lines_that_are_arrays_are_rows(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode()))
    for block in (1, 3, 1 << 20):
        monkeypatch.setattr(compressed, "_PLAIN_BLOCK", block)
        found = [row for _, row in StreamedJsonLines([str(path)]).start()]
        assert found == [orjson.loads(line) for line in text.splitlines() if line]
