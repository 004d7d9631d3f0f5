"""Random access to records: raw rows through a format, with the `RowError` of a bad row in its place."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError, SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.formats import Expanded, resolve_format
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.carry import Carry
from ms_prefstream.formats.reader import RowReader, UnpairedReader, reader
from ms_prefstream.formats.record import Pair, Record, TokenPair
from ms_prefstream.lengths import LengthIndex
from ms_prefstream.lengths.index import count_verdicts
from ms_prefstream.plan.mixture import MixedOrder, Mixture, whole_weights
from ms_prefstream.report.report import PartReport
from ms_prefstream.sample import Block, Ready
from ms_prefstream.sources.base import RandomAccess, fills_nulls, read_blocks, read_parts
from ms_prefstream.sources.mix import Mix


class RecordAccess(Protocol):
    """Records by row id."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Sequence[Record | Ready | RowError]:
        """The records with these ids; a row that cannot become one gives its `RowError`."""

    def origin(self, row: int) -> str:
        """Where a record comes from, for people."""


class FormattedRows:
    """The records of a source whose format makes one record of each row."""

    filtered = 0

    def none_passed(self) -> str:
        """Returns an empty string: no row is filtered out."""
        return ""

    def __init__(self, source: RandomAccess, fmt: Format) -> None:
        self.source = source
        self.format = fmt

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Sequence[int]) -> list[Record | Ready | RowError]:
        fmt, found = self.format, list[Record | Ready | RowError]()
        for raw in self.source.read(rows):
            if isinstance(raw, (RowError, Ready)):
                found.append(raw)
                continue
            try:
                found.append(fmt(raw))  # type: ignore[arg-type]  # one record: the format has no count
            except RowError as error:
                found.append(error.as_value())
        return found

    def read_block(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order, of a source that consists of caches."""
        source: Any = self.source
        block: Block = source.read_block(rows)
        return block

    def raws(self, rows: Sequence[int]) -> list[Any]:
        """Returns the raw rows of records, in this order; None for a row that cannot be parsed."""
        return [None if isinstance(found, RowError) else found for found in self.source.read(rows)]

    def raw(self, row: int) -> Any:
        """Returns the raw row, for the quarantine file; None if it cannot be parsed."""
        return self.raws([row])[0]

    def origin(self, row: int) -> str:
        return self.source.origin(row)


_PartRecords: TypeAlias = Expanded | FormattedRows


class MixedRecords:
    """The records of a mix by row id: those of the first part, then those of the second, and so on.

    Args:
        mix: The parts; all of them with random access.
        formats: The format of each part.

    Attributes:
        name: The mix's name.
        filtered: Rows that the parts' formats filtered out.
        mixture: Sizes and weights, for the plan.

    Raises:
        SourceError: A part has no records.
    """

    def __init__(self, mix: Mix, formats: Sequence[Format]) -> None:
        self.name = mix.name
        self._parts = [_records(part.source, fmt) for part, fmt in zip(mix.parts, formats, strict=True)]
        self._names = [part.name for part in mix.parts]
        self.filtered = sum(records.filtered for records in self._parts)
        sizes = [len(records) for records in self._parts]
        for name, size, records in zip(self._names, sizes, self._parts, strict=True):
            if size == 0:
                why = records.none_passed()
                raise SourceError(f"{name}, a part of the mix, has no rows{why}. Leave it out, or check its path.")
        self.mixture = Mixture(sizes=tuple(sizes), weights=whole_weights(mix.weights(sizes)), stop=mix.stop)

    def __len__(self) -> int:
        """The number of records of all parts."""
        return self.mixture.firsts[-1]

    def read(self, rows: Sequence[int]) -> list[Record | Ready | RowError]:
        """Returns the records with these ids, in this order; each part is read once."""
        found: list[Any] = read_parts(rows, np.array(self.mixture.firsts), self.name, self._read_part)
        return found

    def read_block(self, rows: Sequence[int]) -> Block:
        """Returns the samples with these ids, in this order, of a mix of caches."""
        parts: list[Any] = self._parts
        bounds = np.array(self.mixture.firsts)
        return read_blocks(rows, bounds, self.name, lambda part, local: parts[part].read_block(local))

    def _read_part(self, part: int, rows: NDArray[np.int64]) -> list[Any]:
        return list(self._parts[part].read(rows.tolist()))

    def origin(self, row: int) -> str:
        """Returns where a record comes from, as its part says."""
        part = self.part_of(row)
        return self._parts[part].origin(row - self.mixture.firsts[part])

    def raws(self, rows: Sequence[int]) -> list[Any]:
        """Returns the raw rows of records, in this order; None for a row that cannot be parsed."""
        parts, bounds = self._parts, np.array(self.mixture.firsts)
        return read_parts(rows, bounds, self.name, lambda part, local: parts[part].raws(local.tolist()))

    def raw(self, row: int) -> Any:
        """Returns the raw row of a record, for the quarantine file; None if it cannot be parsed."""
        part = self.part_of(row)
        return self._parts[part].raw(row - self.mixture.firsts[part])

    def part_of(self, row: int) -> int:
        """Returns the number of the part that a row id belongs to."""
        return bisect.bisect_right(self.mixture.firsts, row) - 1

    def probe(self, count: int, seed: int) -> NDArray[np.int64]:
        """Returns up to `count` row ids, each part with its share; the same ones on every rank."""
        order = MixedOrder(self.mixture, seed=seed, shuffle=True, global_batch=1, window_rows=1)
        return order.rows_at(0, np.arange(min(count, self.mixture.rows)))

    def fingerprint(self) -> str:
        """Returns a hash of the parts' fingerprints in their order."""
        return hash_of([fingerprint_of(records).encode() for records in self._parts])

    def reports(self, positions: int, index: LengthIndex | None = None) -> dict[str, PartReport]:
        """Returns a fresh report of each part.

        Args:
            positions: Rows that an epoch delivers over all ranks.
            index: The length index of all rows, or None.
        """
        sizes, mixture = self.mixture.sizes, self.mixture if index is None else self.mixture.over(index.good())
        reports = part_reports(self._names, sizes, self.mixture.weights, positions, mixture)
        if index is not None:
            verdict = index.verdict
            for report, (begin, end) in zip(reports.values(), pairwise(self.mixture.firsts), strict=True):
                report.known((str(one.reason), one.rows) for one in count_verdicts(verdict[begin:end]))
        return reports

    def parts(self) -> list[tuple[_PartRecords, int]]:
        """Returns the records of each part and the row id of its first record."""
        return list(zip(self._parts, self.mixture.firsts[:-1], strict=True))


Records: TypeAlias = _PartRecords | MixedRecords


def formats_of(
    source: Any,
    format: Any,
    fields: Mapping[str, str] | None = None,
    carry: Carry | None = None,
    unpairs: bool = False,
) -> list[Format]:
    """Returns the format of each part of a mix, or the one format of any other source.

    Args:
        source: A mix or an opened source.
        format: The stream's option, for parts without a format of their own.
        fields: The stream's option, for parts without one of their own.
        carry: The fields that are carried.
        unpairs: Whether a pair becomes two records, see `_reader_of`.

    Raises:
        OptionError: One of the two options cannot be used.
    """
    if not isinstance(source, Mix):
        return [_reader_of(source, format, fields, carry, unpairs)]
    return [
        _reader_of(
            part.source,
            format if part.format is None else part.format,
            fields if part.fields is None else part.fields,
            carry,
            unpairs,
        )
        for part in source.parts
    ]


_LOOKED_AT = 64  # first rows of a source
_SPREAD = 16  # rows all over it


def _reader_of(
    source: Any, format: Any, fields: Mapping[str, str] | None, carry: Carry | None, unpairs: bool
) -> RowReader:
    """Returns the reader of a source.

    To number the records of pairs, all rows must be counted, which takes a pass over them. So it is done only for a
    source that has a pair among its first rows or some rows all over it.
    """
    inner, filled = resolve_format(format), fills_nulls(source)
    plain = reader(inner, fields, filled, carry)
    if not unpairs or getattr(source, "ready", False):
        return plain
    if isinstance(source, RandomAccess) and len(source):
        spread = np.linspace(0, len(source) - 1, _SPREAD).astype(np.int64).tolist()
        rows = sorted({*range(min(_LOOKED_AT, len(source))), *spread})
        if not any(_has_pair(plain, raw) for raw in source.read(rows)):
            return plain
    return UnpairedReader(inner, fields, filled, carry)


def _has_pair(read: RowReader, raw: Any) -> bool:
    if isinstance(raw, RowError):
        return False
    try:
        made = read(raw)
    except RowError:  # whoever reads the row for a sample reports it
        return False
    return any(isinstance(one, (Pair, TokenPair)) for one in (made if isinstance(made, tuple) else (made,)))


def open_records(source: Any, formats: Sequence[Format]) -> Records | None:
    """Returns random access to the records of a mix or of any other source; None for a one-pass source."""
    if isinstance(source, Mix):
        return MixedRecords(source, formats) if source.random_access else None
    return _records(source, formats[0]) if isinstance(source, RandomAccess) else None


def fingerprint_of(records: Records) -> str:
    """Returns a hash that changes when the data change, or the number of records that a row gives."""
    return records.source.fingerprint() if isinstance(records, FormattedRows) else records.fingerprint()


def part_reports(
    names: Sequence[str], sizes: Sequence[int | None], weights: Sequence[int], positions: int, mixture: Mixture | None
) -> dict[str, PartReport]:
    """Returns a fresh report of each part; it counts repeated and left out rows if the sizes are known."""
    total = sum(weights)
    reports = {name: PartReport(weight / total, size) for name, size, weight in zip(names, sizes, weights, strict=True)}
    if mixture is not None:
        # Positions after the last row of the epoch start again at its first row.
        counts = mixture.schedule.counts(min(positions, mixture.rows))
        for report, size, count in zip(reports.values(), mixture.sizes, counts, strict=True):
            report.repeats_per_epoch = max(0, count - size)
            report.left_out_per_epoch = max(0, size - count)
    return reports


def _records(source: Any, fmt: Format) -> _PartRecords:
    assert isinstance(source, RandomAccess)
    many = hasattr(fmt, "count") and not getattr(source, "ready", False)  # samples need no format
    return Expanded(source, fmt) if many else FormattedRows(source, fmt)
