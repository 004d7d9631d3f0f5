"""Hashes of what files and rows hold: of samples for fingerprints, of everything where interrupted work resumes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RandomAccess, RawRow, rows_in_order
from ms_prefstream.sources.files import Handles, read_at, reading, stamp
from ms_prefstream.sources.jsonl import shallow_repr

_SAMPLE_BYTES = 16 * 1024
_SAMPLES = 256
_SAMPLED_ROWS = 64
_BLOCK = 1 << 20  # bytes
_ADDRESS = re.compile(rb" at 0x[0-9A-Fa-f]+")


def whole_hash(source: Any) -> str | None:
    """Returns a hash of every byte of a source's files, or of every row that is in memory.

    Fingerprints look at samples of large files and data sets, because every stream and every rank computes them.

    Returns:
        None if the fingerprint covers everything already (the source's `exact`), or if the rows cannot be read twice.
    """
    if getattr(source, "exact", False):
        return None
    if parts := getattr(source, "parts", ()):
        found = [whole_hash(part) for part in parts]
        return hash_of([(one or "").encode() for one in found]) if any(found) else None
    if paths := getattr(source, "paths", ()) or getattr(source, "_paths", ()):
        return hash_of(map(_hash_file, paths))
    return hash_of(map(row_bytes, rows_in_order(source))) if isinstance(source, RandomAccess) else None


def _hash_file(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with reading(path), open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def sampled_files_hash(paths: Sequence[str]) -> str:
    """Returns a short hash of the sizes and of evenly spread samples of files, with the first and the last bytes.

    Names and times do not count: a copy of the data on another node has the same hash. Up to 4 MB are read, shared
    among the files; files that are smaller in total are covered completely.
    """
    digest = hashlib.blake2b(digest_size=8)
    samples = max(2, _SAMPLES // max(1, len(paths)))
    handles = Handles()
    for path in paths:
        size = stamp(path).size
        digest.update(size.to_bytes(8, "little"))
        begins, length = [0], size
        if size > samples * _SAMPLE_BYTES:
            begins, length = [(size - _SAMPLE_BYTES) * k // (samples - 1) for k in range(samples)], _SAMPLE_BYTES
        for begin in begins:
            digest.update(read_at(handles.get(path), path, begin, length))
    return digest.hexdigest()


def sampled_rows_hash(kind: type, source: RandomAccess, complete_up_to: int = _SAMPLED_ROWS) -> str:
    """Returns a short hash of a type's name, a number of rows, and 64 evenly spread rows, the first and last included.

    Up to `complete_up_to` rows, all of them are hashed.
    """
    count = len(source)
    sample = sorted({(count - 1) * k // (_SAMPLED_ROWS - 1) for k in range(_SAMPLED_ROWS)})
    if count <= complete_up_to:
        sample = list(range(count))
    head = f"{kind.__module__}.{kind.__qualname__}:{count}".encode()
    return hash_of([head, *map(row_bytes, source.read(sample))])


def rows_hash(rows: Iterable[RawRow]) -> str:
    """Returns a short hash of rows, the same in every process."""
    return hash_of(map(row_bytes, rows))


def row_bytes(row: RawRow) -> bytes:
    """Returns a row as bytes that are the same in every process: keys sorted, no addresses of objects."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    try:
        text = orjson.dumps(row, default=repr, option=options)
    except TypeError:
        text = shallow_repr(row).encode("utf-8", "backslashreplace")
    return _ADDRESS.sub(b"", text)
