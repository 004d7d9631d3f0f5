"""Opens steps over the rows of a stream: planned over random access where they have it, else one pass after another."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.pack import Pack
from ms_prefstream.batch.padding import Bucket
from ms_prefstream.errors import NoUsableRowsError, OptionError, SourceError
from ms_prefstream.load.one_pass import MixedOnePassRecords, PassWindow
from ms_prefstream.load.records import MixedRecords
from ms_prefstream.plan import (
    BudgetOptions,
    BudgetPlan,
    IndexedPlan,
    KeyedPermutation,
    PackedPlan,
    PackedWindows,
    PlanOptions,
    Ranks,
    WindowedPlan,
)
from ms_prefstream.plan.packed import row_sizes, steps_for
from ms_prefstream.sample import Batch, Loaded, Sample
from ms_prefstream.steps.data import Rows
from ms_prefstream.steps.one_pass import OnePassSteps
from ms_prefstream.steps.planned import IndexedPackedSteps, IndexedSteps, PackedSteps, WindowedSteps, sample_tokens


def check_budget(bucket: Bucket, name: str, shuffle: object, *, mixed: bool, one_pass: bool, indexed: bool) -> None:
    """Whether steps can be planned by tokens.

    Args:
        bucket: Has `max_tokens`.
        name: Of the source.
        shuffle: The option of `ms_prefstream.stream`.
        mixed: Whether the source is a mix with random access.
        one_pass: Whether it can only be read from the front.
        indexed: Whether there is a length index.

    Raises:
        OptionError: If not; says what to do.
    """
    given = f"Bucket: max_tokens={bucket.max_tokens}"
    if mixed:
        raise OptionError(
            f"{given} plans the same rows for every epoch, and a mix takes other ones in each. Give batch_size."
        )
    if one_pass:
        raise OptionError(
            f"{given} needs a length index, but {name} can only be read from the front and has none. Give "
            "batch_size, or unpack it to plain JSON Lines."
        )
    if not indexed:
        raise OptionError(
            f"{given} needs the lengths of all rows, and {name} has no length index. Build one with "
            "`ms-prefstream index`, or with mps.stream(..., batching=mps.Bucket(batch_size=1)).build_index(); or give "
            "batch_size."
        )
    if shuffle is not True:
        raise OptionError(
            f"{given} brings rows of like length together from the whole source, which shuffle={shuffle!r} rules out. "
            "Leave shuffle out, or give batch_size."
        )


def check_steps_per_epoch(given: int | None, rows: Rows, packs: bool) -> None:
    """Refuse a number of steps where they follow from the rows, or for packs from their lengths.

    Args:
        given: The option of `ms_prefstream.stream`.
        rows: The data.
        packs: Whether samples are packed.

    Raises:
        OptionError: If it was given and is not wanted.
    """
    if given is None or rows.records is None:
        return
    if not packs:
        raise OptionError(
            f"steps_per_epoch is {given}, but {rows.source.name} knows its rows, so its steps follow from them. "
            "Leave it out."
        )
    if rows.index is not None:
        raise OptionError(
            f"steps_per_epoch is {given}, but there is a length index ({rows.index.path}), and packs follow from the "
            "lengths in it. Leave steps_per_epoch out, or pass index=None."
        )


def one_pass_rows(rows: Rows, given: int | None, batch: int, packs: bool) -> int:
    """Rows of an epoch of a source that is read from the front: by the steps that are given, else counted once.

    Args:
        rows: The data.
        given: steps_per_epoch, or None.
        batch: Rows of a step over all ranks.
        packs: Whether samples are packed, so that rows must be counted whatever is given.

    Raises:
        OptionError: The number is not allowed, or rows that can be read only once would have to be counted.
    """
    if packs:
        if rows.one_pass.once or rows.one_pass.continues:
            raise OptionError(
                f"Pack: {rows.one_pass.name} can be read only once, but packs are dealt out in proportion to the "
                "number of its rows, which must be counted first. Pass a file, a list or a function that returns a new "
                "iterator each time, or use Pad or Bucket."
            )
        return rows.counted
    if given is None:
        return rows.counted
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise OptionError(f"steps_per_epoch is {given!r}; expected a whole number of steps, 1 or more.")
    return given * batch


ROWS_PROBED = 2048


def key_lengths(rows: Rows, seed: int) -> NDArray[np.integer[Any]]:
    """Key lengths from which shapes are chosen: all of the index, else of some rows, the same on every rank.

    Raises:
        OptionError: If the source can be read only once, so that nothing can be looked at beforehand.
        NoUsableRowsError: If none of these rows can be used.
    """
    if rows.index is not None:
        return rows.index.keys[rows.index.good()]
    return np.array([one.sample.length for one in probe(rows, seed) if one.sample is not None], np.int64)


def packed_sizes(rows: Rows, seed: int) -> NDArray[np.int64]:
    """Tokens that some rows take of a packed row, 0 where one is unusable; errors as for `key_lengths`."""
    return np.array([0 if one.sample is None else sample_tokens(one.sample) for one in probe(rows, seed)], np.int64)


def probe(rows: Rows, seed: int) -> list[Loaded]:
    """Some rows, the same ones on every rank; one of them is good."""
    records = rows.records
    if records is not None:
        if isinstance(records, MixedRecords):
            some = records.probe(ROWS_PROBED, seed)
        else:
            order = KeyedPermutation(len(records), np.random.SeedSequence([seed]))
            some = order.row_of(np.arange(min(ROWS_PROBED, len(records))))
        loaded = rows.local.load(np.sort(some).tolist())
    else:
        if rows.one_pass.once or rows.one_pass.continues:
            raise OptionError(
                f"{rows.source.name} can be read only once, so its lengths cannot be looked at to choose shapes. "
                "Give boundaries or multiple_of."
            )
        found = itertools.islice(rows.one_pass.start(0), ROWS_PROBED)
        loaded = rows.local.samples([record for _, _, record in found])
    if not any(one.sample is not None for one in loaded):
        problem = next((str(one.error) for one in loaded if one.error is not None), "there are no rows")
        raise NoUsableRowsError(f"none of the first {len(loaded)} rows of {rows.source.name} can be used: {problem}")
    return loaded


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
        records = functools.partial(PassWindow, rows.one_pass, held)
        loader, ledger = rows.passing_loader, rows.passing_ledger
        return OnePassSteps(
            plan, self.ranks, records, rows.one_pass.continues, loader, ledger, collate, self.columns, *kind
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
        if rows.records is None and rows.one_pass.ends_by_time and ranks.world > 1:
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
        elif rows.records is None and isinstance(rows.one_pass, MixedOnePassRecords):
            rows.report.parts = rows.one_pass.reports(positions)
