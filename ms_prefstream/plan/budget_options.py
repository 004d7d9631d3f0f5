"""What a plan with a token budget is made from: a few numbers that check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ms_prefstream.errors import OptionError
from ms_prefstream.plan.check import WORD, whole_number


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """The numbers that fix which rows form which step, in every epoch and on every number of ranks.

        tokens = 4096, sequences = 2, logical_shards = 2      width   128   256   1024
                                                              rows     16     8      2   of a step, all ranks together

    Attributes:
        rows: The number of rows of the source.
        tokens: Columns times sequences that a step may have, all ranks together: `max_tokens` times the ranks.
        sequences: Sequences of a row that are padded to the width: 2 for pairs, 1 otherwise.
        widths: Every width that a step may be padded to, ascending; the last holds any row.
        extra: Columns of each width that are not meant for tokens.
        logical_shards: The rows of a step are a multiple of this, so that any number of ranks that divides it shares
            them out evenly.
        window: Of no use here: rows are sorted by width over the whole epoch. Kept, because states name it.
        seed: 0..2**32 - 1.
        drop_remainder: Rows that do not fill a last step: True leaves them out of the epoch (other ones each epoch),
            False fills the step with rows that come again.
        longest_first: Whether the first step of all has the largest width.
    """

    rows: int
    tokens: int
    sequences: int
    widths: tuple[int, ...]
    extra: int = 0
    logical_shards: int = 1
    window: int = 64
    seed: int = 0
    drop_remainder: bool = True
    longest_first: bool = False

    shuffle: ClassVar[Literal[True]] = True
    sorts: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "sequences", "logical_shards", "window"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0, WORD))
        for name in ("drop_remainder", "longest_first"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is not allowed; expected True or False.")
        if not self.rows_at(self.widths[-1]):
            widest = self.sequences * self.widths[-1]
            raise OptionError(
                f"Bucket: max_tokens times the number of ranks is {self.tokens}, shared by logical_shards="
                f"{self.logical_shards}, but a row takes {widest} tokens when it is padded to the largest width of "
                f"{self.widths[-1]} columns{' on both sides' if self.sequences == 2 else ''}. Raise max_tokens until "
                f"that product is {widest * self.logical_shards} or more, or lower the task's length."
            )

    @property
    def global_batch(self) -> int:
        """What states call the global batch: the tokens, as the number of rows differs from step to step."""
        return self.tokens

    def rows_at(self, width: int) -> int:
        """Rows of a step that is padded to this width, all ranks together."""
        return self.logical_shards * (self.tokens // (self.logical_shards * self.sequences * width))
