"""The bytes of plain, gzip and Zstandard files, decompressed in blocks."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import zstandard

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.files import FileStamp, check_unchanged, unreadable
from ms_prefstream.sources.line_index import BOM, refuse_foreign

_PLAIN_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
_LARGEST_WINDOW = 1 << 31  # files written with `zstd --long=31`
_GZIP = 16 + zlib.MAX_WBITS


class _Member(Protocol):
    """The decompressor of one gzip member or one Zstandard frame; a file may hold many."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def open_blocks(path: str) -> Iterator[bytes]:
    """The contents of a file in blocks (never empty), a byte-order mark left out.

    The suffix decides: ``.gz`` and ``.zst`` / ``.zstd`` (several members or frames too) are decompressed.

    Raises:
        SourceError: From `next`: the file cannot be read, is cut off or damaged, or changed meanwhile.
    """
    return without_bom(_read(path))


def without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks, without a UTF-8 byte-order mark at the very start."""
    head = b""
    while len(head) < len(BOM) and (block := next(blocks, b"")):
        head += block
    head = head.removeprefix(BOM)
    return itertools.chain([head], blocks) if head else blocks


def _read(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            before = FileStamp.of(os.fstat(file.fileno()))
            suffix = os.path.splitext(path)[1].lower()
            if suffix == ".gz":
                yield from _members(file, path, lambda: zlib.decompressobj(_GZIP))
            elif suffix in (".zst", ".zstd"):
                unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
                yield from _members(file, path, lambda: unpacker.decompressobj())
            else:
                first = file.read(_PLAIN_BLOCK)
                refuse_foreign(path, first[:4])
                yield from itertools.chain([first] if first else [], iter(lambda: file.read(_PLAIN_BLOCK), b""))
            check_unchanged(path, before, os.fstat(file.fileno()))
    except OSError as error:
        raise unreadable(path, error) from error


def _members(file: IO[bytes], path: str, new: Callable[[], _Member]) -> Iterator[bytes]:
    """Decompress member after member; the end of the file inside one means that the file was cut off."""
    member: _Member | None = None
    while packed := file.read(_PACKED_BLOCK):
        while packed:
            if member is None:
                packed = packed.lstrip(b"\0")  # gzip files may be padded with zeros; no frame begins with one
                if not packed:
                    break
                member = new()
            try:
                block = member.decompress(packed)
            except (zlib.error, zstandard.ZstdError) as error:
                raise SourceError(
                    f"{path}: the compressed data is damaged, or not what the suffix says ({error}; near byte "
                    f"{file.tell():,}). Copy the file again, or give it the suffix of its true compression."
                ) from error
            if block:
                yield block
            packed = member.unused_data if member.eof else b""
            if member.eof:
                member = None
    if member is not None:
        raise SourceError(
            f"{path}: the compressed data ends in the middle, at byte {file.tell():,}: the file was cut off. "
            "Copy or write it again."
        )
