"""Opens steps over the rows of a stream: planned over random access where they have it, else one pass after another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ms_prefstream.batch.bucket import Bucket
from ms_prefstream.batch.pack import Pack
from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.plan import (
    BudgetOptions,
    BudgetPlan,
    IndexedPlan,
    PackedPlan,
    PackedWindows,
    PlanOptions,
    Ranks,
    WindowedPlan,
)
from ms_prefstream.plan.packed import row_sizes
from ms_prefstream.plan.packed_windows import steps_for
from ms_prefstream.runtime.budget import check_budget
from ms_prefstream.runtime.counting import one_pass_rows
from ms_prefstream.runtime.front import MixedFront
from ms_prefstream.runtime.indexed import IndexedSteps
from ms_prefstream.runtime.mixed import MixedRecords
from ms_prefstream.runtime.onepass import OnePassSteps, PassRecords
from ms_prefstream.runtime.packed import PackedSteps
from ms_prefstream.runtime.packed_indexed import IndexedPackedSteps
from ms_prefstream.runtime.probe import packed_sizes
from ms_prefstream.runtime.rows import Rows
from ms_prefstream.runtime.steps import Batch, WindowedSteps
from ms_prefstream.tasks.sample import Sample

Steps: TypeAlias = WindowedSteps | IndexedSteps | PackedSteps | IndexedPackedSteps | OnePassSteps
Collate: TypeAlias = Callable[[list[Sample], int], Batch]  # samples, the tokens of the longest sequence to pad for
CollatePacks: TypeAlias = Callable[[list[list[Sample]]], Batch]


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order rows are seen; the options of `PlanOptions` that a user gives."""

    shuffle: Literal["window"] | bool
    seed: int
    window: int
    drop_remainder: bool
    longest_first: bool


@dataclass(frozen=True)
class Opening:
    """How the steps of one rank are opened; a method for each kind of batching.

    Attributes:
        rows: The data.
        order: In which order rows are seen.
        ranks: Whose share.
        columns: The names of a batch's arrays.
        steps_per_epoch: As given, for one-pass sources and for packs without a length index.
    """

    rows: Rows
    order: Order
    ranks: Ranks
    columns: Sequence[str]
    steps_per_epoch: int | None

    def fixed(self, batch_size: int, sort: bool, collate: Collate) -> Steps:
        """Steps of a fixed number of rows.

        Args:
            batch_size: Rows of a step on this rank.
            sort: Whether windows are sorted by length.
            collate: Samples to a batch.
        """
        rows, options = self.rows, self._options(sort, batch_size, packs=False)

        def collate_alone(samples: list[Sample]) -> Batch:
            return collate(samples, max([len(sequence.ids) for sample in samples for sequence in sample.sequences]))

        if rows.records is None:
            held = self.order.window * options.global_batch
            return self._one_pass(WindowedPlan(options), held, collate_alone)
        ledger, loader = rows.ledger(), rows.loader()
        if rows.index is None:
            return WindowedSteps(WindowedPlan(options), self.ranks, loader, ledger, collate_alone, self.columns)
        plan, keys = IndexedPlan(options, rows.index.keys), rows.index.keys
        return IndexedSteps(plan, self.ranks, keys, loader, ledger, rows.records.origin, collate, self.columns)

    def budget(self, bucket: Bucket, widths: tuple[int, ...], collate: Collate) -> Steps:
        """Steps by a token budget.

        Args:
            bucket: Its `max_tokens` and `extra`.
            widths: What batches are padded to, `extra` included.
            collate: Samples to a batch.

        Raises:
            OptionError: There is no length index, or the rows are to keep their order.
        """
        records, index = self.rows.records, self.rows.index
        check_budget(
            bucket,
            self.rows.source.name,
            self.order.shuffle,
            mixed=isinstance(records, MixedRecords),
            one_pass=records is None,
            indexed=index is not None,
        )
        assert bucket.max_tokens is not None  # these three were checked
        assert records is not None
        assert index is not None
        options = BudgetOptions(
            rows=len(records),
            tokens=bucket.max_tokens * self.ranks.world,
            sequences=2 if self.rows.task.pairs else 1,
            widths=widths,
            extra=bucket.extra,
            logical_shards=self.ranks.logical_shards,
            **{name: value for name, value in vars(self.order).items() if name != "shuffle"},
        )
        loader, ledger = self.rows.loader(), self.rows.ledger()
        plan = BudgetPlan(options, index.keys)
        return IndexedSteps(plan, self.ranks, index.keys, loader, ledger, records.origin, collate, self.columns)

    def packed(self, pack: Pack, collate: CollatePacks) -> Steps:
        """Steps of packed rows.

        Raises:
            OptionError: Without a length index: steps_per_epoch is missing; names what the first rows suggest.
        """
        rows, options = self.rows, self._options(True, pack.batch_size, packs=True)
        most, index = pack.samples_per_row(rows.task), rows.index
        if rows.records is None:  # windows differ in size, so one row is held at a time
            return self._one_pass(self._packed_windows(options, pack.tokens, most), 1, collate, PackedSteps)
        loader, ledger = rows.loader(), rows.ledger()
        if index is None:
            windows = self._packed_windows(options, pack.tokens, most)
            return PackedSteps(windows, self.ranks, loader, ledger, collate, self.columns)
        pairs, lengths, keys = rows.task.pairs, index.lengths, index.keys
        return IndexedPackedSteps(
            PackedPlan(options, row_sizes(lengths, keys, pairs), pack.tokens, most),
            self.ranks,
            lambda some: row_sizes(lengths[some], keys[some], pairs),
            loader,
            ledger,
            rows.records.origin,
            collate,
            self.columns,
        )

    def _one_pass(self, plan: Any, held: int, collate: Callable[[list[Any]], Batch], *kind: Any) -> OnePassSteps:
        """Steps over a source that is read from the front, `held` rows of it in memory at a time."""
        rows = self.rows
        records = functools.partial(PassRecords, rows.front, held)
        loader, ledger = rows.passing_loader, rows.passing_ledger
        return OnePassSteps(
            plan, self.ranks, records, rows.front.continues, loader, ledger, collate, self.columns, *kind
        )

    def _packed_windows(self, options: PlanOptions, tokens: int, most: int) -> PackedWindows:
        """The plan of packs without a length index."""
        if self.steps_per_epoch is None:
            about = steps_for(packed_sizes(self.rows, options.seed), options, tokens, most)
            about = max(1, min(about, options.rows // options.global_batch))
            indexed = self.rows.records is not None
            raise OptionError(
                "Pack: how many packed rows the data fill is only known once all lengths are. Pass steps_per_epoch; by "
                f"the lengths of some rows steps_per_epoch={about} holds all of them"
                + (". Or build a length index, which finds the exact number." if indexed else ".")
            )
        return PackedWindows(options, self.steps_per_epoch, tokens, most)

    def _options(self, sort: bool, batch_size: int, packs: bool) -> PlanOptions:
        """What to plan, of the rows that there are."""
        rows, ranks = self.rows, self.ranks
        if rows.records is None and rows.front.ends_by_time and ranks.world > 1:
            raise OptionError(
                f"{rows.source.name} ends after a time without data, and {ranks.world} ranks would not agree on the "
                "last row. Give it until=<file or number of rows> instead of a timeout."
            )
        batch = batch_size * ranks.world if rows.index is not None else ranks.global_batch(batch_size)
        options = PlanOptions(
            rows=self._count(batch, packs),
            global_batch=batch,
            logical_shards=1 if rows.index is not None else ranks.logical_shards,
            sort=sort,
            one_pass=rows.records is None,
            mixture=rows.records.mixture if isinstance(rows.records, MixedRecords) else None,
            **vars(self.order),
        )
        self._report_parts(options, packs)
        return options

    def _count(self, batch: int, packs: bool) -> int:
        """Rows of an epoch, at least one."""
        rows = self.rows
        if isinstance(rows.records, MixedRecords):
            count = rows.records.mixture.rows
        elif rows.records is not None:
            count = len(rows.records)
        else:
            count = one_pass_rows(rows, self.steps_per_epoch, batch, packs)
        if count == 0:
            filtered = rows.records is not None and rows.records.filtered
            raise SourceError(
                f"{rows.source.name} has no rows{' that pass the filter of its format' if filtered else ''}; expected "
                "at least one step of them. Check the path and the options of the format."
            )
        return count

    def _report_parts(self, options: PlanOptions, packs: bool) -> None:
        """Tell the report how many rows of an epoch each part of a mix gives."""
        rows, count, batch = self.rows, options.rows, options.global_batch
        if options.mixture is not None and rows.index is not None:
            count = options.mixture.over(rows.index.good()).rows
        steps = count // batch if self.order.drop_remainder else -(-count // batch)
        positions = count if packs else batch * steps
        if isinstance(rows.records, MixedRecords):
            rows.report.parts = rows.records.reports(positions, rows.index)
        elif rows.records is None and isinstance(rows.front, MixedFront):
            rows.report.parts = rows.front.reports(positions)
