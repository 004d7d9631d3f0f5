"""JSON Lines that can only be read from the front: gzip, Zstandard, and standard input."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import zstandard

from ms_prefstream.errors import SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawPass, begin_parts, start_pass
from ms_prefstream.sources.content_hash import sampled_files_hash
from ms_prefstream.sources.files import FileStamp, check_unchanged, name_of, reading
from ms_prefstream.sources.json_text import DEFAULT_MAX_ROW_BYTES, refuse_foreign
from ms_prefstream.sources.lines import LineStream

_PLAIN_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
_LARGEST_WINDOW = 1 << 31  # of files written with `zstd --long=31`, which the decompressor holds in memory
_USUAL_WINDOW = 1 << 27  # what any file may ask for; more than that only in proportion to the file
_WINDOW_RATIO = 64
_GZIP = 16 + zlib.MAX_WBITS


class StreamedJsonLines:
    """One pass over JSON Lines files, in order; each may be plain, ``.gz`` or ``.zst``.

    In the place of a row above `max_row_bytes` there is a `RowError`, here and in `StandardInput`.
    """

    start = start_pass

    def __init__(self, paths: Sequence[str], *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self.paths = tuple(paths)
        self.name = name_of(self.paths)
        self._limit = max_row_bytes

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows, decompressed but not parsed. Returns how many, and the pass over the rest."""
        return begin_parts((LineStream(path, read_blocks(path), self._limit).begin for path in self.paths), skip)

    def fingerprint(self) -> str:
        """Returns a hash of the files' sizes and samples of their contents; names, folders and times do not count."""
        return sampled_files_hash(self.paths)


class StandardInput:
    """JSON Lines piped into the program: one pass, once."""

    name = "stdin"
    once = True  # there is only one pass
    start = start_pass

    def __init__(self, *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self._limit = max_row_bytes
        self._started = False

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows. Returns how many, and the pass over the rest; a second call raises `SourceError`."""
        if self._started:
            raise SourceError(
                "stdin: standard input was read already and cannot be read again, as a second epoch would need. "
                "Write it to a file first and pass the path."
            )
        self._started = True
        pipe: IO[bytes] = sys.stdin.buffer
        # read1 does not wait for a full block: rows of a slow writer arrive when they are written.
        blocks = iter(lambda: pipe.read1(_PACKED_BLOCK), b"")  # type: ignore[attr-defined]
        return LineStream(self.name, blocks, self._limit).begin(skip)

    def fingerprint(self) -> str:
        """Returns the same hash for every pipe, because its data is not known yet."""
        return hash_of([b"stdin"])


def read_blocks(path: str) -> Iterator[bytes]:
    """Yields the contents of a file in blocks, decompressed if the suffix is ``.gz``, ``.zst`` or ``.zstd``."""
    with reading(path), open(path, "rb", buffering=0) as file:
        before = FileStamp.of(os.fstat(file.fileno()))
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".gz":
            yield from _gzip_members(file, path)
        elif suffix in (".zst", ".zstd"):
            yield from _zstd_frames(file, path, before.size)
        else:
            first = file.read(_PLAIN_BLOCK)
            refuse_foreign(path, first[:4])
            yield first
            yield from iter(lambda: file.read(_PLAIN_BLOCK), b"")
        check_unchanged(path, before, file.fileno())


def _gzip_members(file: IO[bytes], path: str) -> Iterator[bytes]:
    """Decompresses consecutive gzip members, at most a block at a time however well they are compressed."""
    member = None
    while packed := file.read(_PACKED_BLOCK):
        size = _PLAIN_BLOCK
        while packed or size == _PLAIN_BLOCK:  # after a full block more may follow from input that was read already
            if member is None:
                packed = packed.lstrip(b"\0")  # gzip files may be padded with zeros
                if not packed:
                    break
                member = zlib.decompressobj(_GZIP)
            try:
                block = member.decompress(packed, _PLAIN_BLOCK)
            except zlib.error as error:
                raise _damaged(file, path, error) from error
            size = len(block)
            yield block
            packed = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    if member is not None:
        raise _cut_off(file, path)


_END_TEXT = b"\xff" * 16  # never the end of JSON
_END_FRAME = b"\x28\xb5\x2f\xfd\x20\x10\x83\0\0\xff"  # a frame of one block: 16 times \xff


class _WithEnd:
    """A file with one more Zstandard frame after it, whose text appears only if the frame before it is complete."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.ended = False

    def read(self, size: int) -> bytes:
        """Returns the next bytes of the file; then the last frame, once."""
        if self.ended or (packed := self._file.read(size)):
            return b"" if self.ended else packed
        self.ended = True
        return _END_FRAME


def _zstd_frames(file: IO[bytes], path: str, size: int) -> Iterator[bytes]:
    """Decompresses consecutive Zstandard frames, at most a block at a time however well they are compressed.

    `decompressobj` of the library returns all that its input holds, which may be gigabytes for a few kilobytes;
    `stream_reader` does not, but says nothing of a file that was cut off.
    """
    window = min(_LARGEST_WINDOW, max(_USUAL_WINDOW, _WINDOW_RATIO * size))
    packed = _WithEnd(file)
    unpacker = zstandard.ZstdDecompressor(max_window_size=window)
    reader = unpacker.stream_reader(packed, read_size=_PACKED_BLOCK, read_across_frames=True)  # type: ignore[arg-type]
    held = b""
    try:
        while block := reader.read(_PLAIN_BLOCK):
            held += block
            yield held[: -len(_END_TEXT)]
            held = held[-len(_END_TEXT) :]
    except zstandard.ZstdError as error:
        raise (_cut_off(file, path) if packed.ended else _damaged(file, path, error)) from error
    if held != _END_TEXT:
        raise _cut_off(file, path)


def _damaged(file: IO[bytes], path: str, error: Exception) -> SourceError:
    return SourceError(
        f"{path}: the compressed data is damaged, or not what the suffix says ({error}; near byte {file.tell():,}). "
        "Copy the file again, or give it the suffix of its true compression."
    )


def _cut_off(file: IO[bytes], path: str) -> SourceError:
    return SourceError(
        f"{path}: the compressed data ends in the middle, at byte {file.tell():,}: the file was cut off. "
        "Copy or write it again."
    )
