"""What makes rows and prompts equal: 128-bit hashes of raw rows and of records, exact or after folding."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.formats.record import Message
from ms_prefstream.sources.content_hash import row_bytes

NONE = bytes(16)
"""In place of the hash of a row that has no prompt."""

_OF_PROMPT = frozenset({"prompt", "prompt_ids", "tools", "variables"})
_NOT_COMPARED = frozenset({"margin", "origin", "unread", "carried"})


def folded(text: str) -> str:
    """Returns text in Unicode's NFKC form, in lower case, with one blank in place of each run of white space.

    ``"  Why\\u3000ＮＯＴ? "`` -> ``"why not?"``
    """
    if text.isascii():
        return " ".join(text.lower().split())
    text = unicodedata.normalize("NFKC", text).casefold()
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


def row_hash(row: Any) -> bytes:
    """Returns the hash of a raw row: every field, exactly; the order of keys does not count."""
    return _hash([row_bytes(row)])


def pair_hash(record: Any) -> bytes:
    """Returns the hash of a record: its prompt with tools and template variables, and its responses, folded."""
    names = _names(record.__class__)
    return _hash(part for name in names for part in _parts(name, getattr(record, name), folded)) if names else NONE


def prompt_hash(record: Any, fold: bool = True) -> bytes:
    """Returns the hash of a record's prompt: roles and contents of all turns, tools and template variables.

    Args:
        record: A record; anything else has no prompt.
        fold: Whether contents are folded.
    """
    names = [name for name in _names(record.__class__) if name in _OF_PROMPT]
    change: Callable[[str], str] = folded if fold else str
    return _hash(part for name in names for part in _parts(name, getattr(record, name), change)) if names else NONE


def question_hash(record: Any) -> bytes:
    """Returns the hash of the text of a record's prompt, folded: its turns without a system message and tools.

    So data sets that set different system messages share a question. A prompt of token ids is hashed as it is.
    """
    prompt = getattr(record, "prompt", None)
    if prompt is None:
        return prompt_hash(record)
    turns = tuple(turn for turn in prompt if turn.role != "system") or prompt
    return _hash(part for turn in turns for part in (turn.role.encode(), _bytes(folded(turn.content))))


def hash_array(hashes: Iterable[bytes]) -> NDArray[np.uint64]:
    """Returns hashes as (n, 2) uint64."""
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64, copy=False).reshape(-1, 2)


def equal_groups(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns the number of the group of equal hashes that each row belongs to, (n,), given (n, 2) hashes.

    Groups are numbered from 0 without gaps.
    """
    order = np.lexsort(hashes.T)
    is_first = np.ones(len(hashes), np.int64)
    is_first[1:] = (np.diff(hashes[order], axis=0) != 0).any(axis=1)
    groups = np.empty(len(hashes), np.int64)
    groups[order] = np.cumsum(is_first) - 1
    return groups


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """Returns the fields of a class of records that are compared; none if it has no prompt."""
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    has_prompt = not _OF_PROMPT.isdisjoint(names)
    return tuple(name for name in names if name not in _NOT_COMPARED) if has_prompt else ()


def _parts(name: str, value: Any, change: Callable[[str], str]) -> Iterable[bytes]:
    """Yields a field of a record as bytes: messages turn by turn, steps, anything else as JSON; nothing for None."""
    if value is None:
        return
    yield name.encode()
    if isinstance(value, tuple) and value and isinstance(value[0], Message):
        for role, content, extra in value:
            yield role.encode()
            yield _bytes(change(content))
            if extra:
                yield row_bytes(extra)
    elif isinstance(value, tuple) and value and isinstance(value[0], str):
        for step in value:
            yield _bytes(change(step))
    else:
        yield row_bytes(value)


def _hash(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
