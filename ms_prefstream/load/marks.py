"""What a length index notes of rows besides their lengths: duplicates, contaminated rows, and what `order_by` needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError, Reason, RowError, SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.fields import as_number, names
from ms_prefstream.formats.identity import equal_groups, hash_array, pair_hash, prompt_hash, question_hash, row_hash
from ms_prefstream.formats.paths import is_path, path_of, value_at
from ms_prefstream.formats.reader import reader
from ms_prefstream.formats.spelling import is_missing
from ms_prefstream.lengths.index import Measured, measure, measure_rows
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.one_pass import RecordWithOrigin, records_of
from ms_prefstream.load.records import formats_of
from ms_prefstream.sources.cached import caches_in
from ms_prefstream.sources.concat import begin_pass
from ms_prefstream.sources.copies import LOCAL, Remote
from ms_prefstream.sources.mix import open_rows, parts_of

LENGTH, MARGIN, FIELD = "length", "margin", "field:"
DEDUPS = ("row", "pair", "prompt")
LEFT_OUT = {
    Reason.DUPLICATE: RowError(Reason.DUPLICATE, "the length index says that an earlier row is the same"),
    Reason.CONTAMINATED: RowError(Reason.CONTAMINATED, "the length index says that its prompt is excluded"),
}
"""The errors of good rows that an index leaves out."""

_BY_SOURCE_ROW = ("row", "prompt")  # the records of one row of the source have these in common
_HASHES: Mapping[str, Callable[[Any], bytes]] = {"pair": pair_hash, "prompt": prompt_hash}


def order_key(order_by: str | None) -> str | None:
    """Returns what an index must hold for the option `order_by`; None where it holds that anyway.

    Raises:
        OptionError: The option cannot be used.
    """
    key = order_by.removeprefix("-") if isinstance(order_by, str) else order_by
    if key not in (None, LENGTH, MARGIN) and not is_field(key):
        raise OptionError(
            f"order_by is {order_by!r}; expected 'margin', 'length' or 'field:NAME', with a '-' before it for "
            "descending order."
        )
    return None if key == LENGTH else key


def is_field(key: Any) -> bool:
    """Returns whether an option names a field of raw rows: ``field:NAME``, or a dotted path after the colon."""
    return isinstance(key, str) and key.startswith(FIELD) and is_path(key.removeprefix(FIELD))


@dataclass(frozen=True, kw_only=True)
class Noted:
    """What is computed of each row beside its lengths. It is small: every task of a worker carries it.

    Attributes:
        dedup: ``row``, ``pair``, ``prompt`` or None: by what rows are duplicates.
        excludes: Whether the question of each row is needed.
        order_by: What the index holds for `order_by`, see `order_key`; None for nothing.
    """

    dedup: str | None = None
    excludes: bool = False
    order_by: str | None = None

    def __post_init__(self) -> None:
        if self.dedup is not None and self.dedup not in DEDUPS:
            raise OptionError(f"dedup is {self.dedup!r}; expected 'row', 'pair', 'prompt' or None.")

    def measure(self, loader: SampleLoader, rows: Sequence[int]) -> Measured:
        """Returns lengths, verdicts and what is noted of these rows."""
        if self == NOTHING:
            return measure_rows(loader, rows)
        access: Any = loader.records
        records = access.read(rows)
        block = loader.samples(records, lambda at: access.origin(rows[at]))
        path = (self.order_by or "").removeprefix(FIELD)
        raws = access.raws(rows) if self.dedup == "row" or path != (self.order_by or "") else records
        order = None
        if self.order_by is not None:
            order = np.zeros(len(rows))
            for at in np.flatnonzero(block.good).tolist():
                try:
                    order[at] = _margin(records[at]) if self.order_by == MARGIN else _number(raws[at], path)
                except RowError as error:
                    block.refuse(at, error)
        hashes = questions = None
        if self.dedup is not None:
            hashes = hash_array(map(row_hash, raws) if self.dedup == "row" else map(_HASHES[self.dedup], records))
        if self.excludes:
            questions = hash_array(map(question_hash, records))
        return measure(block)._replace(hashes=hashes, questions=questions, order=order)


NOTHING = Noted()


def _margin(record: Any) -> float:
    margin = getattr(record, "margin", None)
    if margin is None:
        raise RowError(
            Reason.MISSING_FIELD,
            "the row has no margin of a pair; order_by orders rows by it",
            "Add the field to pairs, choose a format that gives them a margin, or order by a field of other rows, such "
            'as "field:margin"',
        )
    return as_number(margin, "margin")


def _number(row: Any, path: str) -> float:
    """Returns the number at a dotted path of a raw row; true and false are 1 and 0."""
    try:
        value = value_at(row, path_of(path))
    except LookupError as error:
        raise RowError(
            Reason.MISSING_FIELD,
            f"order_by takes {path!r}, but {error.args[0]}; found fields: {names(row)}",
            "Correct the path in order_by, or the row",
        ) from None
    if is_missing(value):
        raise RowError(Reason.MISSING_FIELD, f"order_by takes {path!r}, which is empty", "Correct the row")
    return float(value) if isinstance(value, (bool, np.bool_)) else as_number(value, path)


@dataclass
class RowMarks:
    """The marks of the rows of one index file.

    Attributes:
        noted: What is computed of each row.
        excluded: The questions that no row may have.
        row_of_each: The row of the source that each record comes from; None where every row has one.
        earlier: Hashes of the kept rows of earlier parts of a mix; those of this part are added at its end.
    """

    noted: Noted
    excluded: frozenset[bytes] = frozenset()
    row_of_each: NDArray[np.int64] | None = None
    earlier: list[NDArray[np.uint64]] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """The arrays that an interrupted pass keeps."""
        found = {"hashes": self.noted.dedup, "order": self.noted.order_by}
        return tuple(name for name, wanted in found.items() if wanted is not None)

    @property
    def measure(self) -> Callable[[Any, Sequence[int]], Measured]:
        """Measures rows; runs in a worker."""
        return self.noted.measure

    def checked(self, measured: Measured) -> Measured:
        """Returns the next rows, of which those with an excluded question are contaminated."""
        if measured.questions is None:
            return measured
        found = [question.tobytes() in self.excluded for question in measured.questions]
        return measured.without(np.array(found, bool), Reason.CONTAMINATED)

    def finished(self, measured: Measured) -> Measured:
        """Returns all rows, of which those that equal an earlier good one are duplicates."""
        if measured.hashes is None:
            return measured
        good = np.flatnonzero(measured.verdict == 0)
        owner = None if self.noted.dedup not in _BY_SOURCE_ROW or self.row_of_each is None else self.row_of_each[good]
        repeated = np.zeros(len(measured.verdict), bool)
        repeated[good] = _repeated(np.concatenate([*self.earlier, measured.hashes[good]]), len(good), owner)
        self.earlier.append(measured.hashes[good][~repeated[good]])
        return measured.without(repeated, Reason.DUPLICATE)


def _repeated(hashes: NDArray[np.uint64], count: int, owner: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """Returns which of the last `count` rows have the hash of an earlier row, (count,).

    Args:
        hashes: (n, 2) the hashes of all rows.
        count: Rows that are asked about.
        owner: (count,) a number for each of these; rows of one number do not repeat each other.
    """
    groups, before = equal_groups(hashes), len(hashes) - count
    first = np.empty(int(groups.max(initial=-1)) + 1, np.int64)
    first[groups[::-1]] = np.arange(len(groups))[::-1]  # the last assignment wins: the first row
    found = first[groups[before:]]
    repeated: NDArray[np.bool_] = found != np.arange(before, len(hashes))
    if owner is not None:
        repeated &= (found < before) | (owner[np.maximum(found - before, 0)] != owner)
    return repeated


def excluded_questions(
    exclude: Any, format: Any, fields: Mapping[str, str] | None, warn: Callable[[str], None], remote: Remote = LOCAL
) -> frozenset[bytes]:
    """Returns the hashes of the questions in other data.

    Args:
        exclude: What `ms_prefstream.stream` takes as a source; None or an empty list for none.
        format: The format of the data that the index is of; rows that it does not read are read by ``auto``.
        fields: Likewise.
        warn: Called with a sentence if rows have no prompt that can be read.
        remote: How stores are opened.

    Raises:
        SourceError: The data are a cache.
        PrefStreamError: The data cannot be opened, or none of their rows can be read.
    """
    if exclude is None or (isinstance(exclude, (list, tuple)) and not exclude):
        return frozenset()
    auto = reader(resolve_format("auto"))
    source = open_rows(exclude, remote)
    if caches := caches_in(source):
        raise SourceError(f"exclude: {caches[0].name} is a cache, which has no prompts. Name the rows it was made of.")
    found, unread, first = set(), 0, ""
    for origin, raw, record in _records(source, formats_of(source, format, fields)):
        if isinstance(record, RowError) and raw is not None:
            with contextlib.suppress(RowError):
                record = auto(raw)  # type: ignore[assignment]  # one record
        if isinstance(record, RowError):
            unread, first = unread + 1, first or str(record.at(origin))
        else:
            found.add(question_hash(record))
    if not found:
        raise SourceError(f"exclude: {source.name} has no row with a prompt that can be read. {first}")
    if unread:
        warn(f"exclude: {unread:,} rows of {source.name} have no prompt that can be read. {first}")
    return frozenset(found)


def excluded_text(questions: frozenset[bytes]) -> str:
    """Returns what the fingerprint of an index says of the questions that it excludes."""
    return f"{len(questions)} prompts, {hash_of(sorted(questions))}"


def _records(source: Any, formats: Sequence[Any]) -> Iterator[RecordWithOrigin]:
    for part, fmt in zip(parts_of(source), formats, strict=True):
        yield from records_of(begin_pass(part, 0)[1], fmt)
