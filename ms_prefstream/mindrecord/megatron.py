"""Layout `megatron`: pairs as Megatron-LM's indexed datasets, which MindSpeed-LLM and MindSpeed-RL train on.

    pairs_packed_chosen_input_ids_document.bin    5 6 7 8 | 5 9 8
    pairs_packed_chosen_labels_document.bin       -100 -100 7 8 | -100 9 8
    and their .idx                                lengths 4 3, offsets 0 16, documents 0 1 2

The same four files hold the rejected sides. A row is a document of one sequence. Labels are not shifted. All numbers
are in little endian (`megatron/core/datasets/indexed_dataset.py` of Megatron-LM):

    .bin   int32 tokens
    .idx   MMIDIDX 0 0 | version u64 | dtype code u8 | rows N u64 | N + 1 u64
           lengths int32[N] | byte offsets int64[N] | documents int64[N + 1]: 0 to N

A part of a cache has a file of tokens for each column. `join` makes the eight files of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import exists
from ms_prefstream.errors import CacheError
from ms_prefstream.mindrecord.files import FileNote, guarded, new_file, note_of
from ms_prefstream.sample import Block, runs

MEGATRON = "megatron"
PREFIX = "pairs"
COLUMNS = tuple(f"{side}_{kind}" for side in ("chosen", "rejected") for kind in ("input_ids", "labels"))
IGNORED = -100
"""The label of a token outside of the loss."""
TOKEN = np.dtype("<i4")
PART_FILE = rf"part-\d{{5,}}\.({'|'.join(COLUMNS)})\.bin"
JOINED_FILE = rf"{PREFIX}_packed_({'|'.join(COLUMNS)})_document\.(bin|idx)"

_MAGIC, _VERSION, _INT32 = b"MMIDIDX\x00\x00", 1, 4
_HEAD = struct.Struct("<9sQBQQ")
_LARGEST_ID = 1 << 24  # no vocabulary is larger; bytes of text are larger numbers
_HEAD_BYTES = 1 << 16  # of tokens, by which a file is known
_COPIED = 1 << 22  # bytes at a time
_ROWS_TOGETHER = 1 << 20
_AGAIN = "Run again: whole parts are kept, and others are written again."


def part_files(number: int) -> list[str]:
    """Returns the names of the files of a part, in the order of `COLUMNS`."""
    return [f"part-{number:05d}.{column}.bin" for column in COLUMNS]


def joined_name(column: str, suffix: str = ".bin") -> str:
    """Returns the name of the file that holds a column of all rows."""
    return f"{PREFIX}_packed_{column}_document{suffix}"


JOINED_FILES = tuple(joined_name(column, suffix) for column in COLUMNS for suffix in (".bin", ".idx"))
"""The eight files of a cache."""


def joined_to(name: str) -> str:
    """Returns the name of the file that a part's file is joined to."""
    return joined_name(name.split(".")[1])


def is_read(name: str) -> bool:
    """Returns whether trainers would take a file of a cache for one of a column; they search for names like these."""
    return name.startswith(f"{PREFIX}_packed_") and "_document" in name


def is_order(name: str) -> bool:
    """Returns whether a file holds the order of rows that a trainer has stored beside them."""
    return name.startswith(f"{PREFIX}_") and "_indexmap_" in name


def file_bytes(lengths: NDArray[np.int32]) -> list[int]:
    """Returns the bytes of the tokens of each column; `lengths`, (n, 2), are those of the rows."""
    chosen, rejected = (TOKEN.itemsize * lengths.sum(axis=0, dtype=np.int64)).tolist()
    return [chosen, chosen, rejected, rejected]


def pair_values(block: Block) -> dict[str, NDArray[np.int32]]:
    """Returns the tokens and the labels of pairs, one row after the other, by column."""
    values = {}
    for side, name in enumerate(("chosen", "rejected")):
        lengths, spans = block.lengths[:, side], block.spans[:, side]
        firsts = np.cumsum(lengths) - lengths
        ids = block.ids[runs(block.begins[:, side], lengths)]
        more = [(row, span) for (row, at), several in block.more.items() if at == side for span in several[1:]]
        further = np.array([(firsts[row], *span) for row, span in more], np.int64).reshape(-1, 3)
        begins, spans_begin, spans_end = np.concatenate([np.column_stack([firsts, spans]), further]).T
        learned = runs(begins + spans_begin, spans_end - spans_begin)
        labels = np.full(len(ids), IGNORED, np.int32)
        labels[learned] = ids[learned]
        values[f"{name}_input_ids"], values[f"{name}_labels"] = ids, labels
    return values


class TokenFiles(contextlib.AbstractContextManager["TokenFiles"]):
    """Writer of the files of one part; no file is created before the first row.

    Args:
        paths: The files, in the order of `COLUMNS`. None may exist.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._files: list[IO[bytes]] = []

    def write(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Appends rows, given as by `pair_values`.

        Raises:
            CacheError: They cannot be written.
        """
        with guarded(self._paths[0]):
            if not self._files:
                self._files = [open(path, "xb") for path in self._paths]  # noqa: SIM115  # closed on exit
            for file, column in zip(self._files, COLUMNS, strict=True):
                file.write(values[column].astype(TOKEN, casting="no").data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with guarded(self._paths[0]):
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()


def join(folder: str, parts: Mapping[str, FileNote], lengths: NDArray[np.int32]) -> dict[str, FileNote]:
    """Joins the files of all parts to the eight files of the layout, and returns the notes on these.

    A part's file is deleted when its bytes are on disk at their place, so the disk needs room for one more of them. An
    interrupted call can be repeated.

    Args:
        folder: The folder of all files.
        parts: The files of all parts in order, with their notes.
        lengths: (N, 2), the tokens of both sides of all good rows.

    Raises:
        CacheError: A file cannot be read or written.
    """
    found = {}
    for at, column in enumerate(COLUMNS):
        tokens, index = (os.path.join(folder, joined_name(column, suffix)) for suffix in (".bin", ".idx"))
        name = os.path.basename(tokens)
        files = [(os.path.join(folder, part), note) for part, note in parts.items() if joined_to(part) == name]
        with guarded(tokens):
            digest, size = _append(tokens, files)
        found[name] = FileNote(size, digest, len(lengths))
        with new_file(index) as file:
            file.writelines(_index(lengths[:, at // 2]))
        with guarded(index):
            found[os.path.basename(index)] = note_of(index, len(lengths))
    return found


def _append(path: str, parts: Sequence[tuple[str, FileNote]]) -> tuple[str, int]:
    """Copies files, given with their notes, into one, each to its place. Returns the SHA-256 and the bytes of all.

    A file that is missing has been copied before.
    """
    digest, end, piece = hashlib.sha256(), 0, memoryview(bytearray(_COPIED))
    with open(path, "r+b", buffering=0, opener=_open_or_create) as joined:
        for part, note in parts:
            begin, end = end, end + note.bytes
            joined.seek(begin)
            if not exists(part):
                found = hashlib.sha256()
                for read in _pieces(joined, note.bytes, piece):
                    digest.update(read)
                    found.update(read)
                if found.hexdigest() != note.sha256:
                    raise CacheError(f"{part} is missing, and {path} does not hold its bytes. {_AGAIN}")
                continue
            with open(part, "rb", buffering=0) as file:
                for read in _pieces(file, note.bytes, piece):
                    digest.update(read)
                    while len(read):
                        read = read[joined.write(read) :]
            os.fsync(joined.fileno())
            os.unlink(part)
        joined.truncate(end)
        os.fsync(joined.fileno())
    return digest.hexdigest(), end


def _open_or_create(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _pieces(file: Any, size: int, piece: memoryview) -> Iterator[memoryview]:
    """Yields the next bytes of an open file in pieces that share their memory."""
    while size:
        count = file.readinto(piece[:size])
        if not count:
            raise CacheError(f"{file.name} became shorter while parts were joined. {_AGAIN}")
        size -= count
        yield piece[:count]


def _index(lengths: NDArray[np.int32]) -> Iterator[bytes]:
    """Yields the bytes of an index of sequences with these lengths, some at a time."""
    count, end = len(lengths), 0
    yield _HEAD.pack(_MAGIC, _VERSION, _INT32, count, count + 1)
    some = [lengths[begin : begin + _ROWS_TOGETHER] for begin in range(0, count, _ROWS_TOGETHER)]
    yield from (rows.astype("<i4").tobytes() for rows in some)
    for rows in some:
        sizes = TOKEN.itemsize * rows.astype(np.int64)
        ends = end + np.cumsum(sizes)
        yield (ends - sizes).astype("<i8").tobytes()
        end = int(ends[-1])
    for begin in range(0, count + 1, _ROWS_TOGETHER):
        yield np.arange(begin, min(begin + _ROWS_TOGETHER, count + 1), dtype="<i8").tobytes()


def is_index_of_tokens(file: IO[bytes]) -> bool:
    """Returns whether an open file is an .idx of int32 documents of one sequence, by its header and its size."""
    size, head = os.fstat(file.fileno()).st_size, file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return False
    magic, version, code, rows, documents = _HEAD.unpack(head)
    is_known = (magic, version, code, documents) == (_MAGIC, _VERSION, _INT32, rows + 1)
    return is_known and size == index_bytes(rows)


def is_tokens(file: IO[bytes]) -> bool:
    """Returns whether an open file holds int32 token ids or labels, by most of its first values; it has no header.

    Some values may be damaged, and the last one cut off.
    """
    head = file.read(_HEAD_BYTES)
    values = np.frombuffer(head[: len(head) // TOKEN.itemsize * TOKEN.itemsize], TOKEN)
    known = (values == IGNORED) | ((values >= 0) & (values < _LARGEST_ID))
    return 2 * int(np.count_nonzero(known)) >= len(values)


def index_bytes(rows: int) -> int:
    """Returns the size of an .idx of so many rows."""
    return _HEAD.size + 12 * rows + 8 * (rows + 1)
