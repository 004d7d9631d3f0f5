"""A hash of everything in a source: what a fingerprint is too quick for, and work that goes on later depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.files import unreadable
from ms_prefstream.sources.memory import row_bytes

_AT_ONCE = 512  # rows
_BLOCK = 1 << 20  # bytes


def whole_hash(source: Any) -> str | None:
    """A hash of every byte of a source's files, or of every row that is in memory.

    Fingerprints of large files and data sets look at samples, since every stream and every rank asks for them.

    Args:
        source: An opened source.

    Returns:
        None if the fingerprint says as much already (the source's `exact`), or if rows come from somewhere that cannot
        be read twice.

    Raises:
        SourceError: A file or a row cannot be read.
    """
    if getattr(source, "exact", False):
        return None
    if parts := getattr(source, "_parts", None):
        found = [whole_hash(part) for part in parts]
        return hash_of([(one or "").encode() for one in found]) if any(found) else None
    if paths := getattr(source, "paths", None) or getattr(source, "_paths", None):
        return _hash_files(paths)
    return _hash_rows(source) if isinstance(source, RandomAccess) else None


def _hash_files(paths: Sequence[str]) -> str:
    """Names and times do not count."""
    digests = []
    for path in paths:
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise unreadable(path, error) from error
        digests.append(digest.digest())
    return hash_of(digests)


def _hash_rows(source: RandomAccess) -> str:
    digest, count = hashlib.blake2b(digest_size=8), len(source)
    for begin in range(0, count, _AT_ONCE):
        for row in source.read(range(begin, min(begin + _AT_ONCE, count))):
            data = row_bytes(row)
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
