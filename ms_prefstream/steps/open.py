"""Opens the steps of one rank: which kind of plan an epoch gets, by batching rule, source and length index."""

from __future__ import annotations

import functools
import itertools
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import BatchingRule, Layout, PackedLayout
from ms_prefstream.batch.best_widths import batch_maxima
from ms_prefstream.disk import shown
from ms_prefstream.errors import NoUsableRowsError, OptionError, SourceError
from ms_prefstream.lengths import LengthIndex
from ms_prefstream.load.cached import has_reference
from ms_prefstream.load.marks import order_key
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
from ms_prefstream.plan.options import MASK, Remainder
from ms_prefstream.plan.packed import row_sizes, steps_for
from ms_prefstream.sample import Batch, Block
from ms_prefstream.steps.collate import Collate, CollatePacks
from ms_prefstream.steps.data import StreamData
from ms_prefstream.steps.one_pass import OnePassSteps
from ms_prefstream.steps.planned import (
    ROW_MASK,
    IndexedPackedSteps,
    IndexedSteps,
    PackedSteps,
    PlannedSteps,
    WindowedSteps,
)
from ms_prefstream.tasks import Task

_ROWS_PROBED = 2048

AnySteps: TypeAlias = PlannedSteps | OnePassSteps


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order rows are seen; options of `ms_prefstream.stream`, documented there."""

    shuffle: Literal["window"] | bool = True
    seed: int = 0
    window: int = 64
    drop_remainder: Remainder = True
    longest_first: bool = False
    order_by: str | None = None
    order_noise: float = 0.0

    def __post_init__(self) -> None:
        order_key(self.order_by)
        noise = self.order_noise
        if isinstance(noise, bool) or not isinstance(noise, numbers.Real) or not 0 <= noise <= 1:
            raise OptionError(f"order_noise is {noise!r}; expected the share by which a row may move, 0 to 1.")
        object.__setattr__(self, "order_noise", float(noise))
        if self.order_by is None:
            if noise:
                raise OptionError(f"order_noise is {noise} without an order. Give order_by, or leave order_noise out.")
            return
        for name, given in (("shuffle", self.shuffle == "window"), ("longest_first", self.longest_first)):
            if given:
                raise OptionError(
                    f"order_by is {self.order_by!r}, which fixes the order of the rows, but {name} is "
                    f"{getattr(self, name)!r}. Leave one of the two out."
                )

    @property
    def sorts(self) -> bool:
        """Whether the windows of buckets are sorted by length."""
        return self.shuffle is not False and self.order_by is None

    @property
    def planned(self) -> dict[str, Any]:
        """The options of `PlanOptions` that follow; rows in an order are not shuffled."""
        found = {name: value for name, value in vars(self).items() if name != "order_by"}
        return found if self.order_by is None else {**found, "shuffle": False}

    def values(self, index: LengthIndex) -> NDArray[Any] | None:
        """Returns what orders the rows of an index, (N,), ascending; None without `order_by`.

        Raises:
            OptionError: The index does not hold it.
        """
        if self.order_by is None:
            return None
        values: NDArray[Any] | None = index.keys if order_key(self.order_by) is None else index.order
        if values is None:
            raise OptionError(
                f"order_by is {self.order_by!r}, but the length index {shown(index.path)} does not hold what it orders "
                "rows by, as that of a cache. Build an index of the rows with this order_by, or order by 'length'."
            )
        return -values if self.order_by.startswith("-") else values


@dataclass(frozen=True, kw_only=True)
class StepOpener:
    """Everything that decides which rows form which step of a rank; `open` returns the steps.

    Attributes:
        data: The rows.
        batching: How many samples a step has. It calls one of `by_rows`, `by_tokens` and `by_packs`.
        layout: The arrays of a batch.
        widths: The widths that a batch may have.
        order: In which order rows are seen.
        ranks: Which share of each step is loaded here.
        steps_per_epoch: As given, for one-pass sources and for packs without a length index; else None.
    """

    data: StreamData
    batching: BatchingRule
    layout: Layout | PackedLayout
    widths: tuple[int, ...]
    order: Order
    ranks: Ranks
    steps_per_epoch: int | None

    @property
    def task(self) -> Task:
        """What rows become."""
        return self.data.task

    def open(self) -> AnySteps:
        """Returns the steps, and reports what each epoch repeats and leaves out.

        Raises:
            OptionError: The batching rule, the order and the source cannot be combined.
        """
        self._check_steps_per_epoch()
        self._check_order()
        steps: AnySteps = self.batching.steps(self, self.widths)
        self.data.report.repeats_per_epoch = steps.plan.repeats_per_epoch
        self.data.report.remainder_per_epoch = steps.plan.remainder_per_epoch
        return steps

    def by_rows(self, batch_size: int, sort: bool) -> AnySteps:
        """Steps of a fixed number of rows.

        Args:
            batch_size: Rows of a step on this rank.
            sort: Whether windows are sorted by length.
        """
        data, options, collate = self.data, self._options(sort, batch_size), self._collate()
        if data.records is None:
            held = self.order.window * options.global_batch
            return self._one_pass(WindowedSteps, WindowedPlan(options), held, collate)
        if data.index is not None:
            keys = data.index.keys_of()
            plan = IndexedPlan(options, keys, self.order.values(data.index))
            return self._indexed(IndexedSteps, plan, keys.__getitem__, collate)
        return self._windowed(WindowedSteps, WindowedPlan(options), collate)

    def by_tokens(self, max_tokens: int, extra: int) -> PlannedSteps:
        """Steps by a token budget.

        Args:
            max_tokens: Tokens of a step on this rank.
            extra: Columns of each width that are not meant for tokens.

        Raises:
            OptionError: There is no length index, or the rows are to keep their order.
        """
        self._check_token_budget(max_tokens)
        index = self.data.index
        assert index is not None  # checked
        order = {name: value for name, value in self.order.planned.items() if name not in ("shuffle", "order_noise")}
        options = BudgetOptions(
            rows=index.rows,
            tokens=max_tokens * self.ranks.world,
            sequences=(2 if self.task.pairs else 1) * self.layout.repeat,
            widths=self.widths,
            extra=extra,
            logical_shards=self.ranks.logical_shards,
            **order,
        )
        plan = BudgetPlan(options, index.keys_of())  # which keeps an order of the keys, not the keys
        return self._indexed(IndexedSteps, plan, index.keys_of, self._collate())

    def by_packs(self, rows: int, tokens: int, max_samples: int) -> AnySteps:
        """Steps of packed rows.

        Args:
            rows: Packed rows of a step on this rank.
            tokens: Columns of a packed row.
            max_samples: Samples of a packed row, at most.

        Raises:
            OptionError: Without a length index: steps_per_epoch is missing; suggests a number.
        """
        data, options, pairs = self.data, self._options(True, rows), self.task.pairs
        assert isinstance(self.layout, PackedLayout)  # the rule packs
        collate = CollatePacks(
            layout=self.layout,
            max_samples=max_samples,
            pad_id=self.data.pad_token_id,
            task=self.task,
            report=data.report,
        )
        if data.index is not None:
            sides = data.index.sides
            order = self.order.values(data.index)
            plan = PackedPlan(options, row_sizes(sides, pairs), tokens, max_samples, order)
            sizes = lambda some: row_sizes(sides[some], pairs)  # noqa: E731
            return self._indexed(IndexedPackedSteps, plan, sizes, collate)
        windows = self._packed_windows(options, tokens, max_samples)
        if data.records is None:
            return self._one_pass(PackedSteps, windows, 1, collate)  # windows differ in size
        return self._windowed(PackedSteps, windows, collate)

    def _collate(self) -> Collate:
        assert isinstance(self.layout, Layout)  # the rule pads
        return Collate(
            layout=self.layout,
            batching=self.batching,
            widths=self.widths,
            pad_id=self.data.pad_token_id,
            task=self.task,
            report=self.data.report,
        )

    def _windowed(self, kind: type[WindowedSteps], plan: Any, collate: Callable[..., Batch]) -> WindowedSteps:
        data = self.data
        return kind(plan, self.ranks, data.loader(), data.bad_rows(), collate, self.layout.columns)

    def _indexed(
        self,
        kind: type[IndexedSteps],
        plan: Any,
        sizes: Callable[[list[int]], NDArray[np.int32]],
        collate: Callable[..., Batch],
    ) -> IndexedSteps:
        data, columns = self.data, self.layout.columns
        assert data.records is not None  # an index belongs to random access
        origin, longest = data.records.origin, None
        most = self.layout.joins_up_to if isinstance(self.layout, Layout) else None
        if data.index is not None and most is not None and self.ranks.world > 1:
            longest = functools.partial(_longest_joined, data.index, most)
        return kind(plan, self.ranks, sizes, data.loader(), data.bad_rows(), origin, collate, columns, longest)

    def _one_pass(
        self, kind: type[WindowedSteps], plan: Any, rows_held: int, collate: Callable[..., Batch]
    ) -> OnePassSteps:
        """Returns steps over a one-pass source, with `rows_held` rows in memory at a time."""
        data = self.data
        return OnePassSteps(
            plan,
            self.ranks,
            functools.partial(PassWindow, data.one_pass, rows_held),
            data.one_pass.continues,
            data.pass_loader,
            data.pass_bad_rows,
            collate,
            self.layout.columns,
            kind,
        )

    def _packed_windows(self, options: PlanOptions, tokens: int, max_samples: int) -> PackedWindows:
        """The plan of packs without a length index."""
        if self.steps_per_epoch is None:
            about = steps_for(probe(self.data, options.seed).totals, options, tokens, max_samples)
            about = max(1, min(about, options.rows // options.global_batch))
            indexed = self.data.records is not None
            raise OptionError(
                "Pack: how many packed rows the data fill is only known once all lengths are. Pass steps_per_epoch; by "
                f"the lengths of some rows steps_per_epoch={about} holds all of them"
                + (". Or build a length index (index='build'), which finds the exact number." if indexed else ".")
            )
        return PackedWindows(options, self.steps_per_epoch, tokens, max_samples)

    def _options(self, sort: bool, batch_size: int) -> PlanOptions:
        """The options of a plan over the rows of the data; reports the parts of a mix."""
        data, ranks = self.data, self.ranks
        if data.records is None and data.one_pass.ends_by_time and ranks.world > 1:
            raise OptionError(
                f"{data.source.name} ends after a time without data, and {ranks.world} ranks would not agree on the "
                "last row. Give it until=<file or number of rows> instead of a timeout."
            )
        batch = batch_size * ranks.world if data.index is not None else ranks.global_batch(batch_size)
        options = PlanOptions(
            rows=self._rows_per_epoch(batch),
            global_batch=batch,
            logical_shards=1 if data.index is not None else ranks.logical_shards,
            sort=sort,
            one_pass=data.records is None,
            mixture=data.records.mixture if isinstance(data.records, MixedRecords) else None,
            **self.order.planned,
        )
        self._report_parts(options)
        return options

    def _rows_per_epoch(self, batch: int) -> int:
        data = self.data
        if isinstance(data.records, MixedRecords):
            count = data.records.mixture.rows
        elif data.records is not None:
            count = len(data.records)
        else:
            count = self._one_pass_rows(batch)
        if count == 0:
            why = "" if data.records is None or isinstance(data.records, MixedRecords) else data.records.none_passed()
            raise SourceError(
                f"{data.source.name} has no rows{why}; expected "
                "at least one step of them. Check the path and the options of the format."
            )
        return count

    def _one_pass_rows(self, batch: int) -> int:
        """Rows of an epoch of a one-pass source: by `steps_per_epoch`, else counted once.

        Args:
            batch: Rows of a step over all ranks.
        """
        records, given = self.data.one_pass, self.steps_per_epoch
        if self.batching.unit == "packed rows":
            if records.once or records.continues:
                raise OptionError(
                    f"Pack: {records.name} can be read only once, but packs are dealt out in proportion to the number "
                    "of its rows, which must be counted first. Pass a file, a list or a function that returns a new "
                    "iterator each time, or use Pad or Bucket."
                )
            return self.data.counted
        if given is None:
            return self.data.counted
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise OptionError(f"steps_per_epoch is {given!r}; expected a whole number of steps, 1 or more.")
        return given * batch

    def _report_parts(self, options: PlanOptions) -> None:
        """Report how many rows of an epoch each part of a mix gives."""
        data, count, batch = self.data, options.rows, options.global_batch
        if options.mixture is not None and data.index is not None:
            count = options.mixture.over(data.index.good()).rows
        steps = count // batch if self.order.drop_remainder is True else -(-count // batch)
        positions = count if self.batching.unit == "packed rows" else batch * steps
        if isinstance(data.records, MixedRecords):
            data.report.parts = data.records.reports(positions, data.index)
        elif data.records is None and isinstance(data.one_pass, MixedOnePassRecords):
            data.report.parts = data.one_pass.reports(positions)

    def _check_steps_per_epoch(self) -> None:
        """Refuse `steps_per_epoch` where it follows from the rows, or for packs from their lengths."""
        given, data = self.steps_per_epoch, self.data
        if given is None or data.records is None:
            return
        if self.batching.unit != "packed rows":
            raise OptionError(
                f"steps_per_epoch is {given}, but {data.source.name} has a known number of rows, so its steps "
                "follow from it. Leave it out."
            )
        if data.index is not None:
            raise OptionError(
                f"steps_per_epoch is {given}, but there is a length index ({data.index.path}), and packs follow from "
                "the lengths in it. Leave steps_per_epoch out, or pass index=None."
            )

    def _check_order(self) -> None:
        """Check that what `order_by` orders rows by is known."""
        name, given = self.data.source.name, f"order_by is {self.order.order_by!r}"
        if self.order.order_by is None or self.data.index is not None:
            return
        if self.data.records is None:
            raise OptionError(
                f"{given}, but {name} can only be read from the front. Unpack it to plain JSON Lines, or leave "
                "order_by out."
            )
        raise OptionError(
            f'{given}, but {name} has no length index that holds what rows are ordered by. Pass index="build", or '
            "build one with mps.build_index(…, order_by=…) or `ms-prefstream index --order-by …`."
        )

    def _check_token_budget(self, max_tokens: int) -> None:
        """Check that a token budget can be planned: random access, a length index, shuffled rows, no mix."""
        given, name = f"Bucket: max_tokens={max_tokens}", self.data.source.name
        if isinstance(self.data.records, MixedRecords):
            raise OptionError(
                f"{given} plans the same rows for every epoch, and a mix takes other ones in each. Give batch_size."
            )
        if self.data.records is None:
            raise OptionError(
                f"{given} needs a length index, but {name} can only be read from the front and has none. Give "
                "batch_size, or unpack it to plain JSON Lines."
            )
        if self.data.index is None:
            raise OptionError(
                f'{given} needs the lengths of all rows, and {name} has no length index. Pass index="build", build one '
                "with mps.build_index or `ms-prefstream index`, or give batch_size."
            )
        name = "shuffle" if self.order.order_by is None else "order_by"
        if self.order.shuffle is not True or self.order.order_by is not None:
            raise OptionError(
                f"{given} brings rows of like length together from the whole source, which "
                f"{name}={getattr(self.order, name)!r} rules out. Leave {name} out, or give batch_size."
            )


def step_opener(
    data: StreamData, batching: BatchingRule, order: Order, ranks: Ranks, steps_per_epoch: int | None = None
) -> StepOpener:
    """Returns what opens the steps, once the layout and the widths are known; see `StepOpener`.

    Raises:
        OptionError: Samples of this task, or reference log-probabilities, cannot be batched like this.
    """
    packs = batching.unit == "packed rows"
    if packs and order.drop_remainder == MASK:
        raise OptionError(
            "drop_remainder is 'mask', but a packed row has no row mask: its rows are repeated only where an epoch "
            "needs more packs than the data fill. Use Pad or Bucket."
        )
    reference = has_reference(data.source, data.task, packs=packs)
    return StepOpener(
        data=data,
        batching=batching,
        layout=_with_further(batching.layout(data.task, reference), data, order),
        widths=choose_widths(data, batching, order, ranks.world),
        order=order,
        ranks=ranks,
        steps_per_epoch=steps_per_epoch,
    )


def _longest_joined(index: LengthIndex, most: int, rows: NDArray[np.int64]) -> int:
    """Returns the tokens of any row's prompt with any row's response, at most: no rank needs a wider batch."""
    prompts, wholes = index.sides[rows].astype(np.int64).T
    return int(max(wholes.max(), min(most, prompts.max() + (wholes - prompts).max())))


def _with_further(layout: Layout | PackedLayout, data: StreamData, order: Order) -> Layout | PackedLayout:
    """Returns the layout with the columns that rows carry, and the row mask if the last step is masked."""
    known = {*layout.columns, ROW_MASK, *({"margin"} if data.task.pairs else ())}
    for name in data.carried:
        if name in known:
            remedy = "Pass margin=True to the task instead." if name == "margin" else "Leave it out of carry=."
            of = "drop_remainder='mask'" if name == ROW_MASK else repr(data.task)
            raise OptionError(f"carry makes a column {name!r}, which is one of {of} already. {remedy}")
    mask = {ROW_MASK: "int32"} if order.drop_remainder == MASK else {}
    return layout.with_columns(data.carried | mask)


def choose_widths(data: StreamData, batching: BatchingRule, order: Order, world: int) -> tuple[int, ...]:
    """Returns the widths that a batch may have, chosen from the lengths of the data where the rule asks for it.

    The lengths are those of the index, else of some rows, the same ones on every rank.

    Raises:
        OptionError: The source can be read only once, so no row can be probed.
        NoUsableRowsError: None of the probed rows can be used.
    """
    if not batching.chooses_widths:
        return batching.widths(data.task.length)
    lengths: NDArray[Any]
    if data.index is not None:
        lengths = data.index.keys
        lengths = lengths[lengths >= 0]
    else:
        probed = probe(data, order.seed)
        lengths = probed.longest[probed.good]
    if batching.batch_size is not None:  # a step by a token budget has rows of one width only
        rows = batching.batch_size * world
        lengths = batch_maxima(lengths, rows, order.window, order.seed, order.sorts)
    widths = batching.widths(data.task.length, lengths)
    data.report.chosen_widths = widths
    return widths


def probe(data: StreamData, seed: int) -> Block:
    """Loads some rows before the run, the same ones on every rank; at least one of them is good.

    Raises:
        OptionError: The source can be read only once.
        NoUsableRowsError: None of these rows can be used.
    """
    records = data.records
    if records is not None:
        if isinstance(records, MixedRecords):
            some = records.probe(_ROWS_PROBED, seed)
        else:
            order = KeyedPermutation(len(records), np.random.SeedSequence([seed]))
            some = order.row_of(np.arange(min(_ROWS_PROBED, len(records))))
        loaded = data.local.load(np.sort(some).tolist())
    else:
        if data.one_pass.once or data.one_pass.continues:
            raise OptionError(
                f"{data.source.name} can be read only once, so its lengths cannot be looked at to choose shapes. "
                "Give boundaries or multiple_of."
            )
        found = list(itertools.islice(data.one_pass.start(0), _ROWS_PROBED))
        loaded = data.local.samples([record for _, _, record in found], lambda at: found[at][0])
    if not loaded.good.any():
        problem = next(map(str, loaded.errors.values()), "there are no rows")
        raise NoUsableRowsError(f"none of the first {len(loaded)} rows of {data.source.name} can be used: {problem}")
    return loaded
