"""Opens a source for stepping: random access where it has it, one pass after another where it has not."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.bucket import Bucket
from ms_prefstream.batch.pack import Pack
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.errors import NoUsableRowsError, OptionError, SourceError
from ms_prefstream.formats.base import Format
from ms_prefstream.lengths import LengthIndex, progress_on, raise_malformed_of
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
from ms_prefstream.plan.packed import row_sizes
from ms_prefstream.plan.packed_windows import steps_for
from ms_prefstream.report.part import PartReport
from ms_prefstream.report.quarantine import Quarantine
from ms_prefstream.report.report import Report
from ms_prefstream.runtime.ahead import Ahead
from ms_prefstream.runtime.budget import check_budget
from ms_prefstream.runtime.front import MixedFront, SingleFront, open_front
from ms_prefstream.runtime.indexed import IndexedSteps
from ms_prefstream.runtime.indexes import Part, build_indexes, find_index
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.loader import Loaded, SampleLoader
from ms_prefstream.runtime.material import Material
from ms_prefstream.runtime.mixed import MixedRecords, fingerprint_of, open_records
from ms_prefstream.runtime.onepass import OnePassSteps, PassRecords
from ms_prefstream.runtime.packed import PackedSteps, sample_tokens
from ms_prefstream.runtime.packed_indexed import IndexedPackedSteps
from ms_prefstream.runtime.pool import LoaderPool
from ms_prefstream.runtime.recipe import Recipe
from ms_prefstream.runtime.steps import Batch, Load, WindowedSteps
from ms_prefstream.sources.protect import QUARANTINE_BEGINS, check_target
from ms_prefstream.tasks.sample import Sample

LENGTHS_PROBED = 2048  # rows whose lengths choose the shapes when there is no length index

Steps: TypeAlias = WindowedSteps | IndexedSteps | PackedSteps | IndexedPackedSteps | OnePassSteps


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order rows are seen; the options of `PlanOptions` that a user gives."""

    shuffle: Literal["window"] | bool
    seed: int
    window: int
    drop_remainder: bool
    longest_first: bool


class Rows:
    """The rows of a stream on this rank: the source, its format, and what becomes of each row.

    Args:
        source: An opened source, or a mix.
        formats: The format of each part of a mix; one for any other source.
        recipe: What rows become; its records are filled in here.
        encoding: What decides about tokens, by name, as plain values: what a length index must have been built with.
        report: Counts.
        raise_malformed: Whether a malformed row is an error.
        quarantine: Where dropped rows are written, or None.
        steps_per_epoch: For one-pass sources, the steps of an epoch; None counts the rows. For packs without a length
            index, required.
        workers: Processes that load samples; 0 loads them here.
        index: ``auto``, the path of a length index, or None.
        packs: Whether samples are packed, so that steps follow from lengths instead of rows.
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
        steps_per_epoch: int | None,
        workers: int,
        index: str | os.PathLike[str] | None,
        packs: bool = False,
    ) -> None:
        if index is not None and not isinstance(index, (str, os.PathLike)):
            raise OptionError(f"index is {index!r}; expected 'auto', the path of a length index, or None.")
        self.source, self.formats, self._encoding = source, formats, encoding
        self.records = open_records(source, formats)
        self._recipe = dataclasses.replace(recipe, records=self.records)
        self._local = self._recipe.loader()
        self._pool = LoaderPool(self._recipe, workers, self._local) if workers != 0 else None
        if quarantine is not None:
            check_target("quarantine", quarantine.path, source, QUARANTINE_BEGINS)
        self._report, self._raise, self._quarantine = report, raise_malformed, quarantine
        self._make_ledger = functools.partial(
            Ledger, report=report, raise_malformed=raise_malformed, quarantine=quarantine
        )
        self._steps_per_epoch, self._packs = steps_per_epoch, packs
        self._counted: int | None = None
        self.index: LengthIndex | None = None
        if self.records is None:
            if isinstance(index, (str, os.PathLike)) and index != "auto":
                raise OptionError(f"index is {str(index)!r}, but {source.name} can only be read from the front.")
            return
        if steps_per_epoch is not None and not packs:
            raise OptionError(
                f"steps_per_epoch is {steps_per_epoch}, but {source.name} knows its rows, so its steps follow from "
                "them. Leave it out."
            )
        report.filtered, report.rows = self.records.filtered, len(self.records)
        self._cached = bool(getattr(source, "ready", False))
        if self._cached and index is not None and index != "auto":
            raise OptionError(f"index is {str(index)!r}, but {source.name} has an index of its own. Leave it out.")
        if index is not None:
            self._use(find_index(self._index_parts(), index))
        if self.index is not None and steps_per_epoch is not None:
            raise OptionError(
                f"steps_per_epoch is {steps_per_epoch}, but there is a length index ({self.index.path}), and packs "
                "follow from the lengths in it. Leave steps_per_epoch out, or pass index=None."
            )

    def steps(
        self,
        order: Order,
        sort: bool,
        ranks: Ranks,
        batch_size: int,
        collate: Callable[[list[Sample], int], Batch],
        columns: Sequence[str],
    ) -> Steps:
        """The batches of this rank.

        Args:
            order: In which order rows are seen.
            sort: Whether windows are sorted by length.
            ranks: Whose share.
            batch_size: Rows of a step on this rank.
            collate: Samples, and the tokens of the longest sequence to pad for, to a batch.
            columns: The names of the arrays.
        """
        options = self._plan_options(order, sort, ranks, batch_size)
        records = self.records
        if records is None:
            front = self._front
            return OnePassSteps(
                WindowedPlan(options),
                ranks,
                functools.partial(PassRecords, front, order.window * options.global_batch),
                front.continues,
                self._passing_loader,
                self._passing_ledger,
                lambda samples: collate(samples, max(sample.length for sample in samples)),
                columns,
            )
        ledger = self._make_ledger(origin=records.origin, raw=records.raw, part=self._part())
        if self.index is not None:
            plan = IndexedPlan(options, self.index.keys)
            return IndexedSteps(plan, ranks, self.index.keys, self._loader(), ledger, records.origin, collate, columns)
        return WindowedSteps(
            WindowedPlan(options),
            ranks,
            self._loader(),
            ledger,
            lambda samples: collate(samples, max(sample.length for sample in samples)),
            columns,
        )

    def budget_steps(
        self,
        order: Order,
        ranks: Ranks,
        bucket: Bucket,
        widths: tuple[int, ...],
        collate: Callable[[list[Sample], int], Batch],
        columns: Sequence[str],
    ) -> Steps:
        """The batches of this rank by a token budget; see `steps`.

        Args:
            order: In which order rows are seen.
            ranks: Whose share.
            bucket: Its `max_tokens` and `extra`.
            widths: What batches are padded to, `extra` included.
            collate: As for `steps`.
            columns: As for `steps`.

        Raises:
            OptionError: There is no length index, or the rows are to keep their order.
        """
        records, index = self.records, self.index
        check_budget(
            bucket,
            self.source.name,
            order.shuffle,
            mixed=isinstance(records, MixedRecords),
            one_pass=records is None,
            indexed=index is not None,
        )
        assert bucket.max_tokens is not None  # these three were checked
        assert records is not None
        assert index is not None
        given = {name: value for name, value in vars(order).items() if name != "shuffle"}
        options = BudgetOptions(
            rows=len(records),
            tokens=bucket.max_tokens * ranks.world,
            sequences=2 if self._recipe.task.pairs else 1,
            widths=widths,
            extra=bucket.extra,
            logical_shards=ranks.logical_shards,
            **given,
        )
        ledger = self._make_ledger(origin=records.origin, raw=records.raw)
        plan = BudgetPlan(options, index.keys)
        return IndexedSteps(plan, ranks, index.keys, self._loader(), ledger, records.origin, collate, columns)

    def packed_steps(
        self,
        order: Order,
        ranks: Ranks,
        pack: Pack,
        collate: Callable[[list[list[Sample]]], Batch],
        columns: Sequence[str],
    ) -> Steps:
        """The batches of packed rows of this rank; see `steps`.

        Raises:
            OptionError: Without a length index: steps_per_epoch is missing; names what the first rows suggest.
        """
        options = self._plan_options(order, True, ranks, pack.batch_size)
        most = pack.samples_per_row(self._recipe.task)
        records = self.records
        if records is None:
            front = self._front
            return OnePassSteps(
                self._packed_windows(options, pack.tokens, most),
                ranks,
                functools.partial(PassRecords, front, 1),  # its windows differ in size
                front.continues,
                self._passing_loader,
                self._passing_ledger,
                collate,
                columns,
                PackedSteps,
            )
        ledger = self._make_ledger(origin=records.origin, raw=records.raw, part=self._part())
        if self.index is None:
            windows = self._packed_windows(options, pack.tokens, most)
            return PackedSteps(windows, ranks, self._loader(), ledger, collate, columns)
        pairs, lengths, keys = self._recipe.task.pairs, self.index.lengths, self.index.keys
        return IndexedPackedSteps(
            PackedPlan(options, row_sizes(lengths, keys, pairs), pack.tokens, most),
            ranks,
            lambda rows: row_sizes(lengths[rows], keys[rows], pairs),
            self._loader(),
            ledger,
            records.origin,
            collate,
            columns,
        )

    def _packed_windows(self, options: PlanOptions, tokens: int, most: int) -> PackedWindows:
        """The plan of packs without a length index."""
        if self._steps_per_epoch is None:
            about = steps_for(self._sizes(options.seed), options, tokens, most)
            about = max(1, min(about, options.rows // options.global_batch))
            indexed = self.records is not None
            raise OptionError(
                "Pack: how many packed rows the data fill is only known once all lengths are. Pass steps_per_epoch; by "
                f"the lengths of some rows steps_per_epoch={about} holds all of them"
                + (". Or build a length index, which finds the exact number." if indexed else ".")
            )
        return PackedWindows(options, self._steps_per_epoch, tokens, most)

    @property
    def encoder(self) -> ConversationEncoder | None:
        """What encodes text records in this process; None when rows are already tokenized."""
        return self._local.encoder

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
                self._index_parts(),
                self._local if self._pool is None else self._pool,
                path,
                origin=self.records.origin,
                raise_malformed=self._raise,
                progress=progress_on(sys.stderr) if progress else None,
            )
        )
        assert self.index is not None
        return self.index

    def key_lengths(self, seed: int) -> NDArray[np.integer[Any]]:
        """Key lengths from which shapes are chosen: all of the index, else of some rows, the same on every rank.

        Raises:
            OptionError: If the source can be read only once, so that nothing can be looked at beforehand.
            NoUsableRowsError: If none of these rows can be used.
        """
        if self.index is not None:
            return self.index.keys[self.index.good()]
        return np.array([one.sample.length for one in self._probe(seed) if one.sample is not None], np.int64)

    def _sizes(self, seed: int) -> NDArray[np.int64]:
        """Tokens that some rows take of a packed row, 0 where one is unusable."""
        return np.array([0 if one.sample is None else sample_tokens(one.sample) for one in self._probe(seed)], np.int64)

    def _probe(self, seed: int) -> list[Loaded]:
        """Some rows, the same ones on every rank; one of them is good."""
        if self.records is not None:
            if isinstance(self.records, MixedRecords):
                rows = self.records.probe(LENGTHS_PROBED, seed)
            else:
                order = KeyedPermutation(len(self.records), np.random.SeedSequence([seed]))
                rows = order.row_of(np.arange(min(LENGTHS_PROBED, len(self.records))))
            loaded = self._local.load(np.sort(rows).tolist())
        else:
            if self._front.once or self._front.continues:
                raise OptionError(
                    f"{self.source.name} can be read only once, so its lengths cannot be looked at to choose shapes. "
                    "Give boundaries or multiple_of."
                )
            found = itertools.islice(self._front.start(0), LENGTHS_PROBED)
            loaded = self._local.samples([record for _, _, record in found])
        if not any(one.sample is not None for one in loaded):
            problem = next((str(one.error) for one in loaded if one.error is not None), "there are no rows")
            raise NoUsableRowsError(
                f"none of the first {len(loaded)} rows of {self.source.name} can be used: {problem}"
            )
        return loaded

    def material(self) -> Material:
        """What a cache of these rows is made from."""
        return Material(
            source=self.source,
            records=self.records,
            front=self._front if self.records is None else None,
            recipe=self._recipe,
            loader=self._local,
            fingerprint=self._index_fingerprint(),
            report=self._report,
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
        if self.records is None and isinstance(self._front, MixedFront):
            return {"weights": list(self._front.weights), "stop": self._front.stop}
        return None

    def index_id(self) -> str | None:
        """What a state says of the index in use."""
        return None if self.index is None else self.index.checksum

    def go_on(self) -> None:
        """The run goes on from a saved state: the quarantine file keeps what it holds."""
        if self._quarantine is not None:
            self._quarantine.keep()

    def _plan_options(self, order: Order, sort: bool, ranks: Ranks, batch_size: int) -> PlanOptions:
        if self.records is None and self._front.ends_by_time and ranks.world > 1:
            raise OptionError(
                f"{self.source.name} ends after a time without data, and {ranks.world} ranks would not agree on the "
                "last row. Give it until=<file or number of rows> instead of a timeout."
            )
        batch = batch_size * ranks.world if self.index is not None else ranks.global_batch(batch_size)
        mixture = self.records.mixture if isinstance(self.records, MixedRecords) else None
        rows = self._one_pass_rows(batch) if self.records is None else len(self.records)
        if mixture is not None:
            rows = mixture.rows
        if rows == 0:
            filtered = self.records is not None and self.records.filtered
            raise SourceError(
                f"{self.source.name} has no rows{' that pass the filter of its format' if filtered else ''}; expected "
                "at least one step of them. Check the path and the options of the format."
            )
        options = PlanOptions(
            rows=rows,
            global_batch=batch,
            logical_shards=1 if self.index is not None else ranks.logical_shards,
            sort=sort,
            one_pass=self.records is None,
            mixture=mixture,
            **vars(order),
        )
        if mixture is not None and self.index is not None:
            rows = mixture.over(self.index.good()).rows
        steps = rows // batch if order.drop_remainder else -(-rows // batch)
        positions = rows if self._packs else batch * steps
        if isinstance(self.records, MixedRecords):
            self._report.parts = self.records.reports(positions, self.index)
        elif self.records is None and isinstance(self._front, MixedFront):
            self._report.parts = self._front.reports(positions)
        return options

    def _part(self) -> Callable[[int], PartReport] | None:
        """Row to the report of its part, for a mix."""
        if not isinstance(self.records, MixedRecords):
            return None
        part_of, reports = self.records.part_of, list(self._report.parts.values())
        return lambda row: reports[part_of(row)]

    def _loader(self) -> Load:
        return self._local if self._pool is None else Ahead(self._pool)

    def _passing_loader(self, records: PassRecords) -> Load:
        if self._pool is not None:
            return Ahead(self._pool, records)
        return SampleLoader(records, self._recipe.task, self._local.sampler, self._local.encoder)

    def _passing_ledger(self, records: PassRecords) -> Ledger:
        front, part = self._front, None
        if isinstance(front, MixedFront):
            reports = list(self._report.parts.values())
            part = lambda number: reports[front.part_of(number)]  # noqa: E731 - the ledger counts over all epochs
        return self._make_ledger(origin=records.origin, raw=records.raw, part=part, first=records.before)

    @functools.cached_property
    def _front(self) -> SingleFront | MixedFront:
        """The records of a source that is read from the front."""
        return open_front(self.source, self.formats)

    def _use(self, index: LengthIndex | None) -> None:
        """Take an index into use: what it knows to be bad is reported, and raised if it must be."""
        self.index = index
        if index is None or self.records is None:
            return
        if self._raise and not self._cached:
            raise_malformed_of(index, self._local, self.records.origin)
        self._report.known(
            [(str(one.reason), one.rows, [self.records.origin(row) for row in one.first]) for one in index.counts]
        )
        if self._quarantine is not None:
            self._put_aside(np.flatnonzero(index.verdict)[self._quarantine.rank :: self._quarantine.world].tolist())

    def _put_aside(self, bad: list[int]) -> None:
        """Write rows that an index knows to be bad to the quarantine file; each rank has a share of them."""
        assert self.records is not None
        assert self._quarantine is not None
        for begin in range(0, len(bad), LENGTHS_PROBED):
            rows = bad[begin : begin + LENGTHS_PROBED]
            for row, one in zip(rows, self._local.load(rows), strict=True):
                if one.error is not None:
                    self._quarantine.add(one.error.at(self.records.origin(row)), self.records.raw(row))

    def _index_fingerprint(self) -> dict[str, Any]:
        """What decides about the lengths and verdicts of all rows."""
        return {"data": self.fingerprint(), **self._encoding}

    def _index_parts(self) -> list[Part]:
        """What each index file covers: everything, or a part of the mix."""
        if isinstance(self.records, MixedRecords):
            parts = [(part.source, *found) for part, found in zip(self.source.parts, self.records.parts(), strict=True)]
        else:
            assert self.records is not None  # a source that is read from the front has no index
            parts = [(self.source, self.records, 0)]

        def fingerprint(records: Any, fmt: Format) -> dict[str, Any]:
            return {"data": fingerprint_of(records), **self._encoding, "format": repr(fmt)}

        return [
            Part(
                source=source,
                first=first,
                rows=len(records),
                fingerprint=functools.partial(fingerprint, records, fmt),
            )
            for (source, records, first), fmt in zip(parts, self.formats, strict=True)
        ]

    def _one_pass_rows(self, batch: int) -> int:
        given = None if self._packs else self._steps_per_epoch
        if self._packs and (self._front.once or self._front.continues):
            raise OptionError(
                f"Pack: {self._front.name} can be read only once, but packs are dealt out in proportion to the number "
                "of its rows, which must be counted first. Pass a file, a list or a function that returns a new "
                "iterator each time, or use Pad or Bucket."
            )
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise OptionError(f"steps_per_epoch is {given!r}; expected a whole number of steps, 1 or more.")
            return given * batch
        if self._counted is None:
            self._counted = self._front.count()
        return self._counted
