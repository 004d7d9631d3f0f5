"""The rows of a stream on this rank: the source, its formats, and what becomes of each row."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.errors import OptionError
from ms_prefstream.formats.base import Format
from ms_prefstream.lengths import LengthIndex, raise_malformed_of
from ms_prefstream.load.index_files import Part, build_indexes, find_index, index_parts
from ms_prefstream.load.loader import Load, Recipe, SampleLoader
from ms_prefstream.load.one_pass import MixedOnePassRecords, PassWindow, SingleOnePassRecords, open_one_pass
from ms_prefstream.load.records import MixedRecords, Records, fingerprint_of, open_records
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.prefetch import Prefetch
from ms_prefstream.progress import progress_on
from ms_prefstream.report.bad_rows import BadRows, Quarantine
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sources.files import QUARANTINE_BEGINS, check_target
from ms_prefstream.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Material:
    """Rows and what they become.

    Attributes:
        source: The opened source, or a mix.
        records: Random access to its records; None if they are read from the front.
        one_pass: Its records from the front; None if there is random access.
        recipe: What records become; can be sent to other processes.
        loader: Follows the recipe in this process.
        fingerprint: What decides about samples, by name: data, task, format, tokenizer, template, boundary, ….
        report: The stream's.
        raise_malformed: Whether a malformed row is an error.
        quarantine: Where dropped rows are written, or None.
        workers: The stream's number of processes.
    """

    source: Any
    records: Records | None
    one_pass: SingleOnePassRecords | MixedOnePassRecords | None
    recipe: Recipe
    loader: SampleLoader
    fingerprint: Mapping[str, Any]
    report: Report
    raise_malformed: bool
    quarantine: Quarantine | None
    workers: int


_TOGETHER = 2048  # rows that are loaded again together


def report_known_bad_rows(
    index: LengthIndex, records: Records, local: SampleLoader, report: Report, quarantine: Quarantine | None
) -> None:
    """Count the rows that an index knows to be bad, and put this rank's share of them aside.

    Args:
        index: Of all rows.
        records: Their origins and raw rows.
        local: Loads a bad row again, for its error.
        report: Where they are counted.
        quarantine: Where they are written, or None.
    """
    report.known([(str(one.reason), one.rows, [records.origin(row) for row in one.first]) for one in index.counts])
    if quarantine is None:
        return
    bad = np.flatnonzero(index.verdict)[quarantine.rank :: quarantine.world].tolist()
    for begin in range(0, len(bad), _TOGETHER):
        rows = bad[begin : begin + _TOGETHER]
        for row, one in zip(rows, local.load(rows), strict=True):
            if one.error is not None:
                quarantine.add(one.error.at(records.origin(row)), records.raw(row))


class Rows:
    """What a stream knows of its data, without order and batches; `opening` makes steps of it.

    Args:
        source: An opened source, or a mix.
        formats: The format of each part of a mix; one for any other source.
        recipe: What rows become; its records are filled in here.
        encoding: What decides about tokens, by name, as plain values: what a length index must have been built with.
        report: Counts.
        raise_malformed: Whether a malformed row is an error.
        quarantine: Where dropped rows are written, or None.
        workers: Processes that load samples; 0 loads them here.
        index: ``auto``, the path of a length index, or None.

    Attributes:
        records: Random access to the records; None if they can only be read from the front.
        index: The length index in use, or None.
        local: Loads samples in this process.
    """

    def __init__(
        self,
        *,
        source: Any,
        formats: Sequence[Format],
        recipe: Recipe,
        encoding: Mapping[str, Any],
        report: Report,
        raise_malformed: bool,
        quarantine: Quarantine | None,
        workers: int,
        index: str | os.PathLike[str] | None,
    ) -> None:
        if index is not None and not isinstance(index, (str, os.PathLike)):
            raise OptionError(f"index is {index!r}; expected 'auto', the path of a length index, or None.")
        self.source, self._formats, self._encoding = source, formats, encoding
        self.records = open_records(source, formats)
        self._recipe = dataclasses.replace(recipe, records=self.records)
        self.local = self._recipe.loader()
        self._pool = LoaderPool(self._recipe, workers, self.local) if workers != 0 else None
        if quarantine is not None:
            check_target("quarantine", quarantine.path, source, QUARANTINE_BEGINS)
        self.report, self._raise, self._quarantine = report, raise_malformed, quarantine
        self._make_ledger = functools.partial(
            BadRows, report=report, raise_malformed=raise_malformed, quarantine=quarantine
        )
        self._cached = bool(getattr(source, "ready", False))
        self.index: LengthIndex | None = None
        if self.records is not None:
            report.filtered, report.rows = self.records.filtered, len(self.records)
        self._find(index)

    @property
    def task(self) -> Task:
        """What rows become."""
        return self._recipe.task

    @property
    def encoder(self) -> ConversationEncoder | None:
        """What encodes text records in this process; None when rows are already tokenized."""
        return self.local.encoder

    @functools.cached_property
    def one_pass(self) -> SingleOnePassRecords | MixedOnePassRecords:
        """The records of a source that is read from the front."""
        return open_one_pass(self.source, self._formats)

    @functools.cached_property
    def counted(self) -> int:
        """The rows of an epoch of such a source, by reading it unless it says so beforehand."""
        return self.one_pass.count()

    def loader(self) -> Load:
        """Row ids to samples, in workers if there are any."""
        return self.local if self._pool is None else Prefetch(self._pool)

    def ledger(self) -> BadRows:
        """What counts the rows of a source with random access, raises for bad ones or puts them aside."""
        assert self.records is not None
        return self._make_ledger(origin=self.records.origin, raw=self.records.raw, part=self._part())

    def passing_loader(self, records: PassWindow) -> Load:
        """The same for the records of one pass."""
        if self._pool is not None:
            return Prefetch(self._pool, records)
        return SampleLoader(records, self.task, self.local.sampler, self.local.encoder)

    def passing_ledger(self, records: PassWindow) -> BadRows:
        """The same for the records of one pass."""
        front, part = self.one_pass, None
        if isinstance(front, MixedOnePassRecords):
            reports = list(self.report.parts.values())
            part = lambda number: reports[front.part_of(number)]  # noqa: E731 - the ledger counts over all epochs
        return self._make_ledger(origin=records.origin, raw=records.raw, part=part, first=records.before)

    def build_index(self, path: str | os.PathLike[str] | None, progress: bool) -> LengthIndex:
        """Measure every row, write the length index and use it from now on.

        Args:
            path: Where it is written, for a mix a folder; None puts it beside a single file, for a mix beside each.
            progress: Whether to show how far the pass is.
        """
        if self.records is None:
            raise OptionError(
                f"{self.source.name} can only be read from the front, so it has no length index. Unpack it to plain "
                "JSON Lines, or write it to a cache."
            )
        if self._cached:
            raise OptionError(f"{self.source.name} is a cache, which has a length index of its own already.")
        self._use(
            build_indexes(
                self._parts(),
                self.local if self._pool is None else self._pool,
                path,
                origin=self.records.origin,
                raise_malformed=self._raise,
                progress=progress_on(sys.stderr) if progress else None,
            )
        )
        assert self.index is not None
        return self.index

    def material(self) -> Material:
        """What a cache of these rows is made from."""
        return Material(
            source=self.source,
            records=self.records,
            one_pass=self.one_pass if self.records is None else None,
            recipe=self._recipe,
            loader=self.local,
            fingerprint={"data": self.fingerprint(), **self._encoding},
            report=self.report,
            raise_malformed=self._raise,
            quarantine=self._quarantine,
            workers=0 if self._pool is None else self._pool.workers,
        )

    def fingerprint(self) -> str:
        """A hash that changes when the data change."""
        found: str = self.source.fingerprint() if self.records is None else fingerprint_of(self.records)
        return found

    def mix(self) -> dict[str, Any] | None:
        """What a state says of a mix: its weights and when its epochs end."""
        if isinstance(self.records, MixedRecords):
            return {"weights": list(self.records.mixture.weights), "stop": self.records.mixture.stop}
        if self.records is None and isinstance(self.one_pass, MixedOnePassRecords):
            return {"weights": list(self.one_pass.weights), "stop": self.one_pass.stop}
        return None

    def index_id(self) -> str | None:
        """What a state says of the index in use."""
        return None if self.index is None else self.index.checksum

    def go_on(self) -> None:
        """The run goes on from a saved state: the quarantine file keeps what it holds."""
        if self._quarantine is not None:
            self._quarantine.keep()

    def _part(self) -> Callable[[int], PartReport] | None:
        """Row to the report of its part, for a mix."""
        if not isinstance(self.records, MixedRecords):
            return None
        part_of, reports = self.records.part_of, list(self.report.parts.values())
        return lambda row: reports[part_of(row)]

    def _find(self, index: str | os.PathLike[str] | None) -> None:
        """Take the index into use that was asked for, or that is there."""
        named = index is not None and index != "auto"
        if named and self.records is None:
            raise OptionError(f"index is {str(index)!r}, but {self.source.name} can only be read from the front.")
        if named and self._cached:
            raise OptionError(f"index is {str(index)!r}, but {self.source.name} has an index of its own. Leave it out.")
        if index is not None and self.records is not None:
            self._use(find_index(self._parts(), index))

    def _parts(self) -> list[Part]:
        """What each index file covers."""
        assert self.records is not None  # a source that is read from the front has no index
        return index_parts(self.source, self.records, self._formats, self._encoding)

    def _use(self, index: LengthIndex | None) -> None:
        """Take an index into use: what it knows to be bad is reported, and raised if it must be."""
        self.index = index
        if index is None or self.records is None:
            return
        if self._raise and not self._cached:
            raise_malformed_of(index, self.local, self.records.origin)
        report_known_bad_rows(index, self.records, self.local, self.report, self._quarantine)
