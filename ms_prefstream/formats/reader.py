"""`RowReader`: what stands between a source and a format, the same for every way to read a row.

1. Fields get their standard names (the option `fields`, see `renaming`).
2. Every value gets one spelling (see `spelling`).
3. The format reads the row.
4. Fields that hold something and that nothing read are named in the record's `unread` (see `unread`).
5. The record gets the values of fields that are carried (the option `carry`, see `carry`), as the source has them.

Rows of the same names and types are read in the same way, so what a preset leaves unread is found once for each such
shape. A function of the user may read other fields of every row: it is recorded on each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import Auto
from ms_prefstream.formats.base import Format, check_row
from ms_prefstream.formats.carry import Carry
from ms_prefstream.formats.mapped import Mapped
from ms_prefstream.formats.paths import Taken
from ms_prefstream.formats.record import Completion, Pair, Record, TokenCompletion, TokenPair
from ms_prefstream.formats.registry import standard_names
from ms_prefstream.formats.renaming import Renaming
from ms_prefstream.formats.spelling import respelled, unsettled, without_filled_nulls
from ms_prefstream.formats.unread import (
    MEDIA,
    Probe,
    Recorded,
    check_media,
    holds,
    is_harmless,
    may_hold,
    repeats,
)

_Shape: TypeAlias = tuple[tuple[str, ...], tuple[type, ...]]
_Made: TypeAlias = Record | tuple[Record, ...]

_MAX_SHAPES = 1024  # bounds the memory for rows whose fields never repeat


class _Way:
    """How rows of one shape are read.

    Attributes:
        unsettled: Fields whose spelling depends on their value.
        read: The format; None until a row was to be read.
        filled: Whether a field is a numpy array: such rows come from Arrow, through pandas, and have filled nulls.
        doubtful: Fields that the format does not read and that may hold something; None until a row was read.
        straight: Whether there is nothing to do but to read, once the spelling is settled.
    """

    __slots__ = ("doubtful", "filled", "read", "straight", "unsettled")

    def __init__(self, unsettled: tuple[str, ...], filled: bool) -> None:
        self.unsettled, self.filled = unsettled, filled
        self.read: Callable[[Any], Any] | None = None
        self.doubtful: tuple[str, ...] | None = None
        self.straight = False


class RowReader:
    """A format with everything that happens before and after it.

    Args:
        inner: The format.
        fields: The option of a stream.
        fills_nulls: Whether the source fills missing keys with null, as Arrow does.
        carry: The fields that are carried, or None.
        taken: Fields that are read elsewhere.

    Raises:
        OptionError: `fields` cannot be used.
    """

    def __init__(
        self,
        inner: Format,
        fields: Mapping[str, str] | None = None,
        fills_nulls: bool = False,
        carry: Carry | None = None,
        taken: Taken | None = None,
    ) -> None:
        self._inner = inner
        self._renaming = None if fields is None else Renaming(fields, checked=not isinstance(inner, Mapped))
        self._fills_nulls = fills_nulls
        self._carry, self._taken = carry, taken if carry is None else carry.taken
        self._then = None
        if isinstance(inner, Mapped):  # it reads what the user's function returns
            self._then = RowReader(inner.then, None, fills_nulls, taken=self._taken)  # type: ignore[arg-type]  # auto
        self._ways: dict[_Shape, _Way] = {}

    @property
    def name(self) -> str:
        """The format's name."""
        return self._inner.name

    @property
    def calls_user_code(self) -> bool:
        """True if the format calls a function of the user."""
        return self._then is not None

    def preset_of(self, row: Any) -> str:
        """Returns the name of the preset that reads `row`.

        Raises:
            RowError: None does.
        """
        if not isinstance(self._inner, Auto):
            return self._inner.name
        return self._inner.decide(self._settled(self._prepared(row))[0]).preset

    def __call__(self, row: Any) -> _Made:
        """Returns what the format makes of `row`.

        Raises:
            RowError: The row cannot be read, or holds media.
        """
        if self._then is not None:
            return self._through_function(row, self._then)
        given, plain = row, type(row) is dict and self._renaming is None and not self._fills_nulls
        if plain:  # most rows, so it must be quick
            known = self._ways.get((tuple(row), tuple(map(type, row.values()))))
            if known is not None and known.straight:
                for name in known.unsettled:
                    value = row[name]
                    if type(value) is not float or value != value:
                        break
                else:
                    return known.read(row)  # type: ignore[misc,no-any-return]  # a row of this shape was read
        try:
            return self._read(given, row if plain else self._prepared(row))
        except RecursionError:
            raise _nested_too_deep() from None

    def _read(self, given: Any, row: dict[str, Any]) -> _Made:
        """Returns what the format makes of a prepared row; `given` is the row of the source."""
        row, way = self._settled(row)
        if way.doubtful is None:
            made = self._learn(way, row)
        else:
            assert way.read is not None  # a row of this shape was read
            made = way.read(row)
        if way.doubtful or self._renaming is not None:
            left = {} if self._renaming is None else self._renaming.left(given)
            made = self._with_unread(made, {name: row[name] for name in way.doubtful or ()} | left)
        return made if self._carry is None else self._carry.on(made, given)

    def _with_unread(self, made: _Made, doubtful: Mapping[str, Any]) -> _Made:
        """Returns records that name the fields nothing read; see the function of this name."""
        if self._taken is not None:
            media = {name: doubtful[name] for name in MEDIA.intersection(doubtful)}  # bad beside text in any case
            doubtful = self._taken.without(doubtful) | media
        return _with_unread(made, doubtful)

    def _prepared(self, row: Any) -> Any:
        """Returns a row as a plain dict with its standard names, without nulls that its source filled in."""
        check_row(row)
        if self._fills_nulls:
            row = without_filled_nulls(row)
        if self._renaming is not None:
            row = self._renaming(row)
            if self._fills_nulls:  # of a field that is now called tools
                row = without_filled_nulls(row)
        return row if type(row) is dict else dict(row)

    def _settled(self, row: dict[str, Any]) -> tuple[dict[str, Any], _Way]:
        """Returns a row with one spelling for every value, and how rows of its shape are read."""
        way = self._way(row)
        if way.filled and not self._fills_nulls:
            row = without_filled_nulls(row)
        if way.unsettled:
            spelled = respelled(row, way.unsettled)
            if spelled is not row:
                return spelled, self._way(spelled)
        return row, way

    def _way(self, row: dict[str, Any]) -> _Way:
        shape = tuple(row), tuple(map(type, row.values()))
        way = self._ways.get(shape)
        if way is None:
            if len(self._ways) >= _MAX_SHAPES:
                self._ways.clear()
            way = self._ways[shape] = _Way(unsettled(*shape), np.ndarray in shape[1])
        return way

    def _learn(self, way: _Way, row: dict[str, Any]) -> _Made:
        """Reads the first good row of a shape, and stores which of its fields nothing reads."""
        if way.read is None:
            way.read = self._inner.decide(row).read if isinstance(self._inner, Auto) else self._inner
        probe = Probe(row)
        made: _Made = way.read(probe)
        if self._renaming is not None:
            probe.read.update(self._renaming.fields.keys() - MEDIA)
        if made != ():  # a row that is filtered out is not read to the end
            way.doubtful = tuple(_unread(probe.read, row))
            way.straight = not way.doubtful and not way.filled and self._carry is None
        return made

    def _through_function(self, row: Any, then: RowReader) -> _Made:
        """Returns what a function of the user makes of a row; it may read other fields of every row."""
        assert isinstance(self._inner, Mapped)
        try:
            if isinstance(row, Mapping):
                made: _Made = self._through_recorded(row, self._for_function(row), then)
            else:  # the function's own kind of row
                made = self._inner.read(row, then)
            return made if self._carry is None else self._carry.on(made, row)
        except RecursionError:
            raise _nested_too_deep() from None

    def _through_recorded(self, row: Mapping[str, Any], shown: Mapping[str, Any], then: RowReader) -> _Made:
        """Returns what a function makes of the row `shown`; `row` is that of the source."""
        assert isinstance(self._inner, Mapped)
        recorded = Recorded(shown)
        left: dict[str, Any] = recorded.plain()

        def read(result: Any) -> Any:
            if result is not recorded:
                return then(result.plain() if isinstance(result, Recorded) else result)
            kept = recorded.plain()
            recorded.read.update(kept)  # `then` names its unread fields
            return then(kept)

        made = self._inner.read(recorded, read)
        if self._renaming is not None:
            recorded.read.update(self._renaming.fields)
        doubtful = {name: left[name] for name in _unread(recorded.read, left)}
        if self._renaming is not None:
            doubtful |= self._renaming.left(row)
        return self._with_unread(made, doubtful) if doubtful else made

    def _for_function(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as a user's function gets it: with the spellings of its source."""
        return self._prepared(row) if self._renaming is not None or self._fills_nulls else row

    def __repr__(self) -> str:
        return repr(self._inner) if self._renaming is None else f"{self._inner!r} with fields {self._renaming!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = None if self._renaming is None else self._renaming.fields
        given = self._inner, fields, self._fills_nulls, self._carry, self._taken
        return type(self), given  # the other process learns shapes again


class CountingReader(RowReader):
    """The same for a format that gives any number of records for a row."""

    def count(self, row: Any) -> int:
        """Returns how many records `row` gives; 0 when it is filtered out."""
        counted: Callable[[Any], int] = self._inner.count  # type: ignore[attr-defined]  # `reader` checked
        if self._then is None:
            return counted(self._settled(self._prepared(row))[0])
        return counted(self._for_function(row) if isinstance(row, Mapping) else row)

    def kind(self, row: Any) -> str | None:
        """Returns what the filter of the format decides by; None if it does not say."""
        kind = getattr(self._inner, "kind", None)
        return None if kind is None else str(kind(self._settled(self._prepared(row))[0]))


class UnpairedReader(CountingReader):
    """The same for a task of single responses with labels: a pair becomes two records, one good and one bad."""

    def __call__(self, row: Any) -> tuple[Record, ...]:
        """Returns what the format makes of `row`, without pairs."""
        made = super().__call__(row)
        return tuple([one for record in (made if isinstance(made, tuple) else (made,)) for one in unpaired(record)])

    def count(self, row: Any) -> int:
        """Returns how many records `row` gives."""
        return len(self(row))


def unpaired(record: Record) -> tuple[Record, ...]:
    """Returns the two sides of a pair, the chosen one desirable and the rejected one not; another record as it is."""
    if isinstance(record, Pair):
        about = record.tools, record.origin, record.unread, record.variables
        sides = ((record.chosen, True), (record.rejected, False))
        kept = record.carried, record.margin
        return tuple([Completion(record.prompt, side, *about, good, *kept) for side, good in sides])
    if isinstance(record, TokenPair):
        known = record.origin, record.unread, record.carried
        ids = ((record.chosen_ids, True), (record.rejected_ids, False))
        return tuple([TokenCompletion(record.prompt_ids, side, *known, good, record.margin) for side, good in ids])
    return (record,)


def reader(
    inner: Format,
    fields: Mapping[str, str] | None = None,
    fills_nulls: bool = False,
    carry: Carry | None = None,
) -> RowReader:
    """Returns the reader of a format; it has `count` if the format has it. Arguments as in `RowReader`."""
    return (CountingReader if hasattr(inner, "count") else RowReader)(inner, fields, fills_nulls, carry)


def _unread(read: Iterable[Any], row: Mapping[Any, Any]) -> list[Any]:
    """Returns the fields of a row that were not read and, by name and type, may hold something."""
    seen = frozenset(read)
    return [name for name, value in row.items() if name not in seen and not is_harmless(name) and may_hold(type(value))]


def _nested_too_deep() -> RowError:
    return RowError(
        Reason.BAD_TYPE,
        "a field holds values inside of values too deep to be read, or a value that holds itself",
        "Drop such rows, or the field",
    )


def _with_unread(made: _Made, doubtful: Mapping[str, Any]) -> _Made:
    """Returns records that name the fields nothing read; a field that only repeats messages is read.

    Raises:
        RowError: bad_type for media beside text.
    """
    if isinstance(made, tuple):
        return tuple([_with_unread(record, doubtful) for record in made])  # type: ignore[misc]  # a record for a record
    unread = []
    for name, value in doubtful.items():
        if name in MEDIA and isinstance(made, (Pair, Completion)):
            check_media(name, value)
        elif holds(value) and not (str(name).rpartition(".")[2] in standard_names() and repeats(value, made)):
            unread.append(str(name))
    return replace(made, unread=tuple(dict.fromkeys((*made.unread, *unread)))) if unread else made
