"""`mps.split`: the rows of a source on two sides, to train on one and to evaluate on the other."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ms_prefstream.checks import WORD, checked_call, is_positive, whole_number
from ms_prefstream.errors import OptionError, RowError, SourceError
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.identity import NONE, question_hash, row_hash
from ms_prefstream.formats.paths import path_of, value_at
from ms_prefstream.formats.spelling import is_missing
from ms_prefstream.load.marks import FIELD, is_field
from ms_prefstream.load.records import formats_of
from ms_prefstream.plan.indexed import UsableRows
from ms_prefstream.sources.base import RandomAccess, RawRow, Source, rows_in_order
from ms_prefstream.sources.cached import caches_in
from ms_prefstream.sources.copies import LOCAL, Remote
from ms_prefstream.sources.mix import Mix, open_rows, parts_of
from ms_prefstream.sources.selected import SelectedPass, SelectedRows

_SIDES = ("train", "test")


@checked_call
def split(
    source: Any,
    test: float = 0.02,
    seed: int = 0,
    by: str = "prompt",
    format: Any = "auto",
    fields: Mapping[str, str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Any, Any]:
    """Returns the rows of a source as two sources, train and test, by a hash of each row's prompt.

        train, test = mps.split("train.jsonl", test=0.02)

    The side of a row depends on its prompt and the seed alone: it stays when rows are added, in any order, and rows
    with one prompt are on one side. Prompts are compared as records, so that the names of fields do not count: roles
    and contents of all turns but system messages, in Unicode's NFKC form, without case, with one blank for each run of
    white space. The test side has about the share `test` of the prompts, not exactly that share of the rows.

    A side can be split again, also with the same seed: its rows are drawn again.

    A row without a prompt that can be read is on the train side, where streams report it. If no row has one, that is
    an error.

    Where rows can be read in any order, all of them are read once here, and the parts take at most 4 bytes of memory a
    row. Rows that can only be read from the front are split while they are read.

    Args:
        source: What `ms_prefstream.stream` takes, except a cache. A mix gives two mixes of the same weights.
        test: Share of the test side, above 0 and below 1.
        seed: Another seed gives another split, 0 to 2**32 - 1. Rows of a side that were written to a file need one.
        by: ``prompt``, or ``field:NAME`` for the value of a row's field, such as an id of the conversation; a dotted
            path leads into objects. Rows without it are on the train side.
        format: A preset's name, a preset, or a function row -> row; finds the prompt. Streams of the parts get a
            format of their own.
        fields: Standard name -> the row's field, likewise.
        storage_options: Credentials and addresses of the stores of URLs, as for `ms_prefstream.stream`.
        cache_dir: Folder of the local copies of remote files, likewise.

    Returns:
        Two sources. Where rows can be read in any order they have a length and an index.

    Raises:
        OptionError: An option cannot be used.
        SourceError: The source cannot be opened, is a cache, can be read only once, or no row can be split.
    """
    opened = open_rows(source, Remote(storage_options=storage_options, cache_dir=cache_dir))
    for one in parts_of(opened):
        if getattr(one, "once", False):
            raise SourceError(
                f"{one.name} can be read only once, so that it cannot have two parts. Pass a list, a file, or a "
                "function that returns a new iterator each time."
            )
    return _sides(opened, Sides(test=_share(test), seed=seed, by=by), format, fields)


def side_of(
    source: Any, text: str, format: Any = "auto", fields: Mapping[str, str] | None = None, remote: Remote = LOCAL
) -> Any:
    """Returns the one side of a split that the command line or a YAML file names: ``test:0.02`` or ``train:0.98``.

    Raises:
        OptionError: The text is something else.
    """
    side, _, share = str(text).partition(":")
    try:
        found = Fraction(share)
        if side not in _SIDES:
            raise ValueError
        float(found)
    except (ValueError, ArithmeticError):
        raise OptionError(f"split is {text!r}; expected a side with its share, as test:0.02 or train:0.98.") from None
    test = found if side == "test" else 1 - found
    return _sides(open_rows(source, remote), Sides(test=_share(test, text)), format, fields)[_SIDES.index(side)]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The rule that gives each row its side.

    Attributes:
        test: Share of the test side.
        seed: Of the hash.
        by: ``prompt`` or ``field:NAME``.
        again: How often the rows were split before; each time is drawn on its own.
    """

    test: Fraction
    seed: int = 0
    by: str = "prompt"
    again: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0, WORD))
        if self.by != "prompt" and not is_field(self.by):
            raise OptionError(f"by is {self.by!r}; expected 'prompt', or 'field:NAME' for the value of a row's field.")

    def drawn(self, row: RawRow, read: Format) -> int:
        """Returns the side of a raw row: 1 test, 0 train, -1 train because nothing can be drawn for it."""
        key = self._key(row, read)
        if key == NONE:
            return -1
        salt = self.seed.to_bytes(8, "little") + self.again.to_bytes(8, "little")
        drawn = hashlib.blake2b(key, digest_size=8, salt=salt).digest()
        return int(int.from_bytes(drawn, "little") * self.test.denominator < self.test.numerator << 64)

    def _key(self, row: RawRow, read: Format) -> bytes:
        """Returns the hash of what a row is split by; `NONE` where it has none."""
        if isinstance(row, RowError):
            return NONE
        try:
            if self.by == "prompt":
                made = read(row)
                return question_hash((made or (None,))[0] if isinstance(made, tuple) else made)
            value = value_at(row, path_of(self.by.removeprefix(FIELD)))
            return NONE if is_missing(value) else row_hash(value)
        except (RowError, LookupError, TypeError):
            return NONE

    def selection(self, side: str, read: Format) -> str:
        """Returns what the fingerprint of a side says of the split."""
        how = f" {read!r}" if self.by == "prompt" else ""
        return f"split {side} test={self.test} seed={self.seed} by={self.by}{how}"


@dataclass(frozen=True)
class _Keeps:
    """Predicate of the rows on one side; can be pickled."""

    sides: Sides
    read: Format
    is_test: bool

    def __call__(self, row: RawRow) -> bool:
        return (self.sides.drawn(row, self.read) > 0) is self.is_test


def _sides(source: Any, sides: Sides, format: Any, fields: Mapping[str, str] | None) -> tuple[Any, Any]:
    """Returns the two sides of an opened source or of a mix."""
    if caches := caches_in(source):
        raise SourceError(
            f"{caches[0].name} is a cache, whose samples have no prompt to split by. Split the source that it was "
            "written from, and write a cache of each part."
        )
    formats = formats_of(source, format, fields)
    sides = dataclasses.replace(sides, again=_splits(source))
    if not isinstance(source, Mix):
        return _parts(source, sides, formats[0])
    parts = [_parts(part.source, sides, fmt) for part, fmt in zip(source.parts, formats, strict=True)]
    for name, number in (("train", 0), ("test", 1)):
        for part, both in zip(source.parts, parts, strict=True):
            if isinstance(both[number], SelectedRows) and not len(both[number]):
                raise SourceError(
                    f"{part.name}, a part of the mix, has no row on the {name} side. Give another share than "
                    f"test={float(sides.test)}, or split the parts that are large enough and mix their sides."
                )
    train, test = (
        dataclasses.replace(
            source,
            parts=tuple(part._replace(source=both[number]) for part, both in zip(source.parts, parts, strict=True)),
        )
        for number in (0, 1)
    )
    return train, test


def _parts(source: Source, sides: Sides, read: Format) -> tuple[Any, Any]:
    """Returns the two sides of one source."""
    named = [(f"{source.name} ({side} side)", sides.selection(side, read)) for side in _SIDES]
    if not isinstance(source, RandomAccess):
        train, test = (
            SelectedPass(source, _Keeps(sides, read, bool(number)), *named[number]) for number in range(len(_SIDES))
        )
        return train, test
    drawn = np.fromiter((sides.drawn(row, read) for row in rows_in_order(source)), np.int8, len(source))
    if drawn.size and drawn.max() < 0:
        what = "a prompt that can be read" if sides.by == "prompt" else f"the field {sides.by.removeprefix(FIELD)!r}"
        raise SourceError(
            f"{source.name} has no row with {what}, so that all rows would be on the train side. Correct format, "
            "fields or by."
        )
    is_test = drawn > 0
    return SelectedRows(source, UsableRows(~is_test), *named[0]), SelectedRows(source, UsableRows(is_test), *named[1])


def _splits(source: Any) -> int:
    """Returns how often the rows of a source were split before; of several sources the most."""
    parts = [part.source for part in source.parts] if isinstance(source, Mix) else getattr(source, "parts", ())
    return isinstance(source, (SelectedRows, SelectedPass)) + max(map(_splits, parts), default=0)


def _share(test: Any, given: Any = None) -> Fraction:
    """Returns the share of the test side, exactly as it is written."""
    if is_positive(test) and test < 1:
        return Fraction(str(test))
    if given is not None:
        raise OptionError(f"split is {given!r}; expected a share above 0 and below 1, as test:0.02 or train:0.98.")
    raise OptionError(f"test is {test!r}; expected the share of the test side, above 0 and below 1.")
