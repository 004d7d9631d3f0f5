"""The options of plans: frozen numbers that check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from ms_prefstream.checks import WORD, divisors_near, whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.plan.mixture import Mixture

PLAN_VERSION = 1
"""Increased whenever the same options give another order of rows; states of another version are refused."""


_MOST = 2**31 - 1
"""The largest window, batch and number of shards, so that the rows of a window fit into 64 bits."""

Shuffle: TypeAlias = Literal["window"] | bool
MASK: Literal["mask"] = "mask"
Remainder: TypeAlias = Literal["mask"] | bool


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options that determine which rows form which step, in every epoch and on every number of ranks.

    Attributes:
        rows: The number of rows of the source.
        global_batch: Rows of one step, all ranks together.
        logical_shards: How many shards are planned; a rank owns an equal share of them. With more shards the run can
            resume on more numbers of ranks, but padding grows, since every shard sorts a separate window (one rank of
            32 rows and 64 batches a window: 3.6 % with 1 shard, 8.1 % with 8, 16.1 % with 32). Unused with a length
            index.
        window: Global batches in a window: the range of rows that is sorted by length together.
        seed: 0..2**32 - 1.
        shuffle: True: a new permutation of all rows for each epoch. False: source order; then nothing is sorted
            either, and step s holds the rows from s * global_batch on. "window": rows stay within their window of the
            source (for disks that read best in order); the windows are visited in a new order each epoch.
        drop_remainder: Rows beyond a multiple of the global batch: True leaves them out of the epoch (different ones
            each epoch, when shuffling), False fills the last step with rows from the epoch's beginning, and "mask"
            also says which slots these are.
        sort: Whether the rows of a window are sorted by length. Useless where every batch has one length.
        one_pass: Whether rows can only be read in order. Each window then holds the rows of its range of the source,
            shuffled within it, and slots after the last row repeat rows of the last window.
        longest_first: Whether the very first step holds the longest rows of its window, so that a device with too
            little memory fails at once.
        order_noise: Share of the rows by which a row may move, at most, from its place in the order of
            ``shuffle=False``; see `shuffle.moved`.
        mixture: The parts of a mixed epoch; `rows` is then the mixture's `rows`. None for a single part.
    """

    rows: int
    global_batch: int
    logical_shards: int = 1
    window: int = 64
    seed: int = 0
    shuffle: Shuffle = True
    drop_remainder: Remainder = True
    sort: bool = True
    longest_first: bool = False
    one_pass: bool = False
    order_noise: float = 0.0
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        counts = ("rows", "global_batch", "logical_shards", "window")
        _check(self, counts, ("sort", "longest_first", "one_pass"))
        if not (isinstance(self.shuffle, bool) or self.shuffle == "window"):
            raise OptionError(f"shuffle={self.shuffle!r} is not allowed; expected True, False or 'window'.")
        if self.mixture is not None and (self.one_pass or self.rows != self.mixture.rows):
            raise ValueError(f"a mixture has {self.mixture.rows} rows in any order, not {self.rows} in one pass")
        self._check_sizes()
        if self.longest_first and not self.sorts:
            raise OptionError(
                "longest_first=True needs windows sorted by length; shuffle=False and batches of one width have none. "
                "Leave longest_first out, or shuffle and use Bucket with several widths."
            )

    def _check_sizes(self) -> None:
        if self.global_batch % self.logical_shards:
            shards = divisors_near(self.global_batch, self.logical_shards)
            nearest = -(-self.global_batch // self.logical_shards) * self.logical_shards
            raise OptionError(
                f"global_batch={self.global_batch} is not a multiple of logical_shards={self.logical_shards}, so "
                f"shards would differ in size. Use logical_shards={shards}, or a global batch of {nearest} rows."
            )
        if self.drop_remainder is True and self.rows < self.global_batch:
            raise OptionError(
                f"rows={self.rows} is less than one global batch (global_batch={self.global_batch}), so an epoch would "
                f"have no step. Use a batch of at most {self.rows} rows over all ranks, or drop_remainder=False, "
                "which repeats rows to fill the step."
            )

    def rows_at(self, width: int) -> int:
        """Rows of a step, all ranks together; the same for each width."""
        return self.global_batch

    @property
    def sorts(self) -> bool:
        """True if windows are sorted by length: `sort`, unless the rows are kept in source order."""
        return self.sort and self.shuffle is not False

    @property
    def shard_batch(self) -> int:
        """Rows of one step that come from one logical shard."""
        return self.global_batch // self.logical_shards


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """The options of a plan by a token budget.

        tokens = 4096, sequences = 2, logical_shards = 2      width   128   256   1024
                                                              rows     16     8      2   of a step, all ranks together

    Attributes:
        rows: The number of rows of the source.
        tokens: Columns times sequences that a step may have, all ranks together: `max_tokens` times the ranks.
        sequences: Sequences of a row that are padded to the width: 2 for pairs, the copies of prompts, 1 otherwise.
        widths: Every width that a step may be padded to, ascending; the last holds any row.
        extra: Columns of each width that do not hold tokens.
        logical_shards: The rows of a step are a multiple of this, so that any number of ranks that divides it gets
            equal shares.
        window: Unused: rows are sorted by width over the whole epoch. States contain it.
        seed: 0..2**32 - 1.
        drop_remainder: Rows that do not fill a last step: True leaves them out of the epoch (different ones each
            epoch), False fills the step with repeated rows, and "mask" also says which these are.
        longest_first: Whether the very first step has the largest width.
    """

    rows: int
    tokens: int
    sequences: int
    widths: tuple[int, ...]
    extra: int = 0
    logical_shards: int = 1
    window: int = 64
    seed: int = 0
    drop_remainder: Remainder = True
    longest_first: bool = False

    shuffle: ClassVar[Literal[True]] = True
    sorts: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        counts = ("rows", "tokens", "sequences", "logical_shards", "window")
        _check(self, counts, ("longest_first",))
        if not self.rows_at(self.widths[-1]):
            widest = self.sequences * self.widths[-1]
            sides = f" in each of its {self.sequences} sequences" if self.sequences > 1 else ""
            raise OptionError(
                f"Bucket: max_tokens times the number of ranks is {self.tokens}, shared by logical_shards="
                f"{self.logical_shards}, but a row takes {widest} tokens when it is padded to the largest width of "
                f"{self.widths[-1]} columns{sides}. Raise max_tokens until "
                f"that product is {widest * self.logical_shards} or more, or lower the task's length."
            )

    @property
    def global_batch(self) -> int:
        """The global batch in states: the tokens, because the number of rows differs between steps."""
        return self.tokens

    def rows_at(self, width: int) -> int:
        """Returns the rows of a step that is padded to this width, all ranks together."""
        return self.logical_shards * (self.tokens // (self.logical_shards * self.sequences * width))


def _check(options: PlanOptions | BudgetOptions, counts: tuple[str, ...], switches: tuple[str, ...]) -> None:
    """Checks numbers (stored as plain ints), the seed, the remainder and booleans."""
    for name in counts:
        number = whole_number(name, getattr(options, name), 1)
        object.__setattr__(options, name, number if name == "rows" else whole_number(name, number, 1, _MOST))
    object.__setattr__(options, "seed", whole_number("seed", options.seed, 0, WORD))
    if not (isinstance(options.drop_remainder, bool) or options.drop_remainder == MASK):
        raise OptionError(f"drop_remainder={options.drop_remainder!r} is not allowed; expected True, False or 'mask'.")
    for name in switches:
        if not isinstance(getattr(options, name), bool):
            raise OptionError(f"{name}={getattr(options, name)!r} is not allowed; expected True or False.")
