"""The fields of a row that nothing reads: which were read, and which of the others hold something that is then lost."""

from __future__ import annotations

import datetime
import numbers
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.fields import short
from ms_prefstream.formats.record import Message, Pair, Record

_ABOUT_A_ROW = """
id ids uid uuid guid idx index number hash sha sha1 sha256 md5 checksum fingerprint
source sources origin dataset subset split file filename url urls link license version
model models generator author annotator
language languages lang locale
date dates day time timestamp created updated at
score scores rating ratings rank ranks reward rewards margin difficulty quality confidence
category categories tag tags domain type types label labels
"""

HARMLESS = frozenset(_ABOUT_A_ROW.split())
"""Fields about a row, which nobody misses in a sample: ids, hashes, sources, models, languages, dates, scores, labels.

The last word of a name decides, in any case: ``id``, ``prompt_id``, ``chosen-model``, ``createdAt``. Fields of these
names inside of an object are harmless, too. Names with a word of `MEDIA` are not: ``image_url``.
"""

MEDIA = frozenset(
    {
        *("image", "images", "video", "videos", "audio", "audios"),
        *("rejected_images", "rejected_videos", "rejected_audios"),
    }
)
"""Fields with pictures, films and sounds, which no text holds."""

_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])|[^\W\d_]+")
_BARE = (type(None), bool, numbers.Number, np.generic, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)
_BARE_TYPES = frozenset({type(None), bool, int, float})


def is_harmless(name: Any) -> bool:
    """Returns whether a field of this name is one of `HARMLESS`."""
    words = [word.lower() for word in _WORD.findall(str(name))]
    return bool(words) and words[-1] in HARMLESS and MEDIA.isdisjoint(words)


def may_hold(kind: type) -> bool:
    """Returns whether a value of this type can hold text, messages, tools or media."""
    return issubclass(kind, (str, bytes)) or not (issubclass(kind, _BARE) or kind.__name__ == "NAType")


def holds(value: Any) -> bool:
    """Returns whether a value holds text, messages, tools or media: anything but numbers, dates and emptiness."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(holds(item) for key, item in value.items() if not is_harmless(key))
    if isinstance(value, (list, tuple, set, frozenset)):
        return not _BARE_TYPES.issuperset(map(type, value)) and any(map(holds, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "OSU" and any(map(holds, value.flat))
    if isinstance(value, (bytes, bytearray)):
        return bool(value)
    return may_hold(type(value))


def check_media(name: str, value: Any, place: str = "") -> None:
    """Checks that a field of `MEDIA`, of a row or of the turn or block `place`, is empty.

    The sample would lack what it shows.

    Raises:
        RowError: bad_type.
    """
    empty = value.strip() in ("", "[]", "{}", "null") if isinstance(value, str) else not _is_filled(value)
    if not empty:
        raise RowError(
            Reason.BAD_TYPE,
            f"field {name!r}{' of ' if place else ''}{place} is {short(value)}; expected a row of text alone",
            "Only text is supported: drop such rows",
        )


def _is_filled(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_filled, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_filled, value))
    if isinstance(value, np.ndarray):
        return value.size > 0 and value.ndim > 0
    return holds(value)


def repeats(value: Any, record: Record) -> bool:
    """Returns whether every text in a value is the content of a message of the record."""
    contents = {message.content.strip() for message in _messages(record)}
    return contents.issuperset(map(str.strip, _texts(value)))


def _messages(record: Record) -> Iterator[Message]:
    yield from getattr(record, "prompt", ())
    sides = (record.chosen, record.rejected) if isinstance(record, Pair) else (getattr(record, "response", ()),)
    for side in sides:
        yield from side


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from _texts(item)
    elif isinstance(value, (list, tuple, np.ndarray)):
        for item in value:
            yield from _texts(item)
    elif holds(value):
        yield f"a {type(value).__name__}, which no message is"


class Probe(dict[Any, Any]):
    """A copy of a row that records which fields a preset reads: presets use ``row[name]`` and ``row.get(name)``.

    Attributes:
        read: Names of the fields that were read.
    """

    def __init__(self, row: Mapping[Any, Any]) -> None:
        super().__init__(row)
        self.read: set[Any] = set()

    def __getitem__(self, name: Any) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: Any, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


class Recorded(Probe):
    """A copy of a row that records which fields a user's function reads, however it reads them.

    To read all of a row at once (``dict(row)``, ``{**row}``, ``row.items()``, ``row.copy()``, a loop) reads every
    field. Attributes that a dict lacks are those of the row itself. Extensions that read the memory of a dict (orjson)
    are not seen.
    """

    def __init__(self, row: Mapping[Any, Any]) -> None:
        super().__init__(row)
        self._row = row

    def _read_all(self) -> None:
        self.read.update(super().keys())

    def __missing__(self, name: Any) -> Any:
        return self._row[name]

    def __contains__(self, name: Any) -> bool:
        self.read.add(name)
        return super().__contains__(name)

    def __iter__(self) -> Iterator[Any]:
        self._read_all()
        return super().__iter__()

    def __reversed__(self) -> Iterator[Any]:
        self._read_all()
        return super().__reversed__()

    def items(self) -> Any:
        self._read_all()
        return super().items()

    def values(self) -> Any:
        self._read_all()
        return super().values()

    def copy(self) -> dict[Any, Any]:
        self._read_all()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        self._read_all()
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # like a dict

    def pop(self, name: Any, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[Any, Any]:
        self._read_all()
        return super().popitem()

    def setdefault(self, name: Any, default: Any = None) -> Any:
        self.read.add(name)
        return super().setdefault(name, default)

    def __delitem__(self, name: Any) -> None:
        self.read.add(name)
        super().__delitem__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __repr__(self) -> str:
        return repr(self.copy())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_row":
            raise AttributeError(name)
        found = getattr(self._row, name)
        self._read_all()
        return found

    def plain(self) -> dict[Any, Any]:
        """Returns the row as a dict, which reads nothing."""
        return dict(super().items())
