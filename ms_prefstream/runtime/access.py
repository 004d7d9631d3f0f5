"""Opens a source for stepping: random access where it has it, one pass after another where it has not."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.errors import NoUsableRowsError, OptionError, SourceError
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.expand import Expanded
from ms_prefstream.plan import KeyedPermutation, PlanOptions, Ranks, WindowedPlan
from ms_prefstream.report.quarantine import Quarantine
from ms_prefstream.report.report import Report
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.loader import SampleLoader
from ms_prefstream.runtime.onepass import OnePassSteps, PassRecords, records_of
from ms_prefstream.runtime.records import FormattedRows
from ms_prefstream.runtime.steps import Batch, WindowedSteps
from ms_prefstream.sources.base import OnePass, RandomAccess
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import Sampler
from ms_prefstream.tasks.sample import Sample

LENGTHS_PROBED = 2048  # rows whose lengths choose the shapes when there is no length index


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order rows are seen; the options of `PlanOptions` that a user gives."""

    shuffle: Any
    seed: int
    window: int
    drop_remainder: bool
    longest_first: bool


class Rows:
    """The rows of a stream on this rank: the source, its format, and what becomes of each row.

    Args:
        source: Raw rows.
        fmt: Raw row to records.
        task: What records become.
        sampler: The task's function, bound to the tokenizer.
        encoder: Encodes text records, or None.
        report: Counts.
        raise_malformed: Whether a malformed row is an error.
        quarantine: Where dropped rows are written, or None.
        steps_per_epoch: For one-pass sources, the steps of an epoch; None counts the rows.
    """

    def __init__(
        self,
        *,
        source: RandomAccess | OnePass,
        fmt: Format,
        task: Task,
        sampler: Sampler,
        encoder: ConversationEncoder | None,
        report: Report,
        raise_malformed: bool,
        quarantine: Quarantine | None,
        steps_per_epoch: int | None,
    ) -> None:
        self.source, self.format = source, fmt
        self._loader = functools.partial(SampleLoader, task=task, sampler=sampler, encoder=encoder)
        self._ledger = functools.partial(Ledger, report=report, raise_malformed=raise_malformed, quarantine=quarantine)
        self._quarantine = quarantine
        self._steps_per_epoch = steps_per_epoch
        self._counted: int | None = None
        self.records: Expanded | FormattedRows | None = None
        if isinstance(source, RandomAccess):
            if steps_per_epoch is not None:
                raise OptionError(
                    f"steps_per_epoch is {steps_per_epoch}, but {source.name} knows its rows, so its steps follow "
                    "from them. Leave it out."
                )
            self.records = Expanded(source, fmt) if hasattr(fmt, "count") else FormattedRows(source, fmt)
            report.filtered, report.rows = self.records.filtered, len(self.records)

    def steps(
        self,
        order: Order,
        sort: bool,
        ranks: Ranks,
        batch_size: int,
        collate: Callable[[list[Sample]], Batch],
        columns: Sequence[str],
    ) -> WindowedSteps | OnePassSteps:
        """The batches of this rank."""
        batch = ranks.global_batch(batch_size)
        records = self.records
        rows = len(records) if records is not None else self._one_pass_rows(batch)
        if rows == 0:
            filtered = records is not None and records.filtered
            raise SourceError(
                f"{self.source.name} has no rows{' that pass the filter of its format' if filtered else ''}; expected "
                "at least one step of them. Check the path and the options of the format."
            )
        plan = WindowedPlan(
            PlanOptions(
                rows=rows,
                global_batch=batch,
                logical_shards=ranks.logical_shards,
                window=order.window,
                seed=order.seed,
                shuffle=order.shuffle,
                one_pass=records is None,
                drop_remainder=order.drop_remainder,
                sort=sort,
                longest_first=order.longest_first,
            )
        )
        if records is not None:
            ledger = self._ledger(origin=records.origin, raw=records.raw)
            return WindowedSteps(plan, ranks, self._loader(records), ledger, collate, columns)
        assert not isinstance(self.source, RandomAccess)  # it would have records
        return OnePassSteps(
            plan,
            ranks,
            functools.partial(PassRecords, self.source, self.format, order.window * batch),
            self._loader,
            lambda passed: self._ledger(origin=passed.origin, raw=passed.raw),
            collate,
            columns,
        )

    def probe_lengths(self, seed: int) -> NDArray[np.int64]:
        """Key lengths of some rows, the same ones on every rank, from which shapes are chosen.

        Raises:
            OptionError: If the source can be read only once, so that nothing can be looked at beforehand.
            NoUsableRowsError: If none of these rows can be used.
        """
        if self.records is not None:
            count = min(LENGTHS_PROBED, len(self.records))
            rows = KeyedPermutation(len(self.records), np.random.SeedSequence([seed])).row_of(np.arange(count))
            loaded = self._loader(self.records).load(np.sort(rows).tolist())
        else:
            self._refuse_single_pass("its lengths cannot be looked at to choose shapes. Give boundaries or multiple_of")
            assert not isinstance(self.source, RandomAccess)
            found = itertools.islice(records_of(self.source.start(), self.format), LENGTHS_PROBED)
            loaded = self._loader(None).samples([record for _, _, record in found])
        lengths = [one.sample.length for one in loaded if one.sample is not None]
        if not lengths:
            problem = next((str(one.error) for one in loaded if one.error is not None), "there are no rows")
            raise NoUsableRowsError(
                f"none of the first {len(loaded)} rows of {self.source.name} can be used: {problem}"
            )
        return np.array(lengths, np.int64)

    def go_on(self) -> None:
        """The run goes on from a saved state: the quarantine file keeps what it holds."""
        if self._quarantine is not None:
            self._quarantine.keep()

    def fingerprint(self) -> str:
        """A hash that changes when the data change."""
        if isinstance(self.records, Expanded):
            return self.records.fingerprint()
        return self.source.fingerprint()

    def _one_pass_rows(self, batch: int) -> int:
        given = self._steps_per_epoch
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise OptionError(f"steps_per_epoch is {given!r}; expected a whole number of steps, 1 or more.")
            return given * batch
        if self._counted is None:
            self._refuse_single_pass(
                "its rows cannot be counted first. Pass steps_per_epoch=<n>, a list, or a function that returns a new "
                "iterator each time"
            )
            assert not isinstance(self.source, RandomAccess)
            if hasattr(self.format, "count"):
                self._counted = sum(1 for _ in records_of(self.source.start(), self.format))
            else:
                begin = getattr(self.source, "begin", None)  # skips without parsing
                self._counted = sum(1 for _ in self.source.start()) if begin is None else begin(sys.maxsize)[0]
        return self._counted

    def _refuse_single_pass(self, so: str) -> None:
        if getattr(self.source, "once", False):
            raise OptionError(f"{self.source.name} can be read only once, so {so}.")
