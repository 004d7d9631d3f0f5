"""Padding to the smallest of a few lengths: little padding, and a closed set of shapes to compile."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any, ClassVar

from numpy.typing import NDArray

from ms_prefstream.batch.best_widths import best_widths, round_up
from ms_prefstream.batch.layouts.arrays import internal_error
from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.batch.rule import StepFactory, padded_layout
from ms_prefstream.checks import LONGEST, checked_call, whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks.base import Task

_DEFAULT_MULTIPLE = 64
_DEFAULT_ROUND_TO = 16


@checked_call
@dataclass(frozen=True)
class Pad:
    """Every batch has one width.

    `Pad(batch_size=8)` with a task of at most 1024 tokens gives (8, 1024) arrays, whatever the rows.

    Attributes:
        batch_size: Samples of one step on one rank (a pair counts once).
        length: Columns of the arrays; None takes the length of the task. May be larger than that, never smaller.
    """

    batch_size: int
    _: KW_ONLY
    length: int | None = None

    unit: ClassVar[str] = "rows"
    chooses_widths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", whole_number("Pad: batch_size", self.batch_size, 1, LONGEST))
        if self.length is not None:
            object.__setattr__(self, "length", whole_number("Pad: length", self.length, 1, LONGEST))

    def layout(self, task: Task, with_ref_logps: bool = False) -> Layout:
        """See `BatchingRule`."""
        return padded_layout(task, with_ref_logps, self.batch_size)

    def widths(self, max_length: int, lengths: NDArray[Any] | None = None) -> tuple[int, ...]:
        """See `BatchingRule`: a single width.

        Raises:
            OptionError: The task's sequences can be longer than `length`.
        """
        if self.length is None:
            return (max_length,)
        if self.length < max_length:
            raise OptionError(
                f"Pad: length is {self.length}, but the task lets sequences of up to {max_length} tokens through. "
                f"Give length={max_length} or more, leave length out, or lower the task's own length to {self.length}."
            )
        return (self.length,)

    def width_for(self, longest: int, widths: tuple[int, ...]) -> int:
        """See `BatchingRule`."""
        return widths[0]

    def steps(self, factory: StepFactory, widths: tuple[int, ...]) -> Any:
        """See `BatchingRule`."""
        return factory.by_rows(self.batch_size, sort=False)


@checked_call
@dataclass(frozen=True)
class Bucket:
    """A batch is padded to the smallest allowed length that holds it, plus `extra` columns.

    With `multiple_of=64` a batch whose longest sequence has 64 tokens stays at 64 columns, one of 65 gets 128.

    Either `batch_size` or `max_tokens` says how many samples a step has. With ``max_tokens=4096`` a step of pairs has
    16 pairs when it is 128 columns wide, and 2 when it is 1024 wide. That needs a length index and shuffled rows.

    Exactly one of `multiple_of`, `boundaries` and `max_shapes` says which lengths are allowed; `multiple_of=64` when
    none does.

    Attributes:
        batch_size: Samples of one step on one rank (a pair counts once).
        max_tokens: The most tokens of one step on one rank, padding included and both sides of a pair counted (of
            RLHF: of `pretrain_ids`); as many samples as fit, a fixed number for each width.
        multiple_of: Every multiple of this, up to the first that holds the task's longest sequence.
        boundaries: The allowed lengths themselves, ascending; the last must hold the task's longest sequence.
        max_shapes: At most this many lengths, chosen so that the data at hand is padded least.
        extra: Columns added to every length: 1 for models that slice one column off.
        round_to: Only with `max_shapes`: lengths are chosen among the multiples of this.
    """

    batch_size: int | None = None
    _: KW_ONLY
    max_tokens: int | None = None
    multiple_of: int | None = None
    boundaries: tuple[int, ...] | None = None
    max_shapes: int | None = None
    extra: int = 0
    round_to: int = _DEFAULT_ROUND_TO

    def __post_init__(self) -> None:
        given = [name for name in ("multiple_of", "boundaries", "max_shapes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(
                f"Bucket: {' and '.join(given)} are both given; each of them decides the allowed lengths by itself. "
                "Keep one of multiple_of, boundaries and max_shapes."
            )
        if (self.batch_size is None) == (self.max_tokens is None):
            raise OptionError(
                f"Bucket: batch_size is {self.batch_size!r} and max_tokens is {self.max_tokens!r}; expected one of the "
                "two. Say how many samples a step has, such as Bucket(batch_size=8), or how many tokens, such as "
                "Bucket(max_tokens=16384)."
            )
        if not given:
            object.__setattr__(self, "multiple_of", _DEFAULT_MULTIPLE)
        for option in ("batch_size", "max_tokens", "multiple_of", "max_shapes", "extra", "round_to"):
            value = getattr(self, option)
            if value is not None or option in ("extra", "round_to"):
                bounds = () if option == "max_tokens" else (LONGEST,)
                number = whole_number(f"Bucket: {option}", value, 0 if option == "extra" else 1, *bounds)
                object.__setattr__(self, option, number)
        if self.max_shapes is None and self.round_to != _DEFAULT_ROUND_TO:
            raise OptionError(
                f"Bucket: round_to is {self.round_to}, but it only rounds the lengths that max_shapes chooses. "
                "Give max_shapes as well, or use multiple_of."
            )
        if self.boundaries is not None:
            object.__setattr__(self, "boundaries", _checked_boundaries(self.boundaries))

    @property
    def unit(self) -> str:
        """See `BatchingRule`."""
        return "rows" if self.max_tokens is None else "tokens"

    @property
    def chooses_widths(self) -> bool:
        """See `BatchingRule`."""
        return self.max_shapes is not None

    def layout(self, task: Task, with_ref_logps: bool = False) -> Layout:
        """See `BatchingRule`."""
        return padded_layout(task, with_ref_logps, self.batch_size)

    def widths(self, max_length: int, lengths: NDArray[Any] | None = None) -> tuple[int, ...]:
        """See `BatchingRule`. `extra` is included, and boundaries beyond `max_length` stay in the set.

        Raises:
            OptionError: The boundaries end before `max_length`, or `max_shapes` has no lengths to choose from.
        """
        return tuple(length + self.extra for length in self._allowed(max_length, lengths))

    def _allowed(self, max_length: int, lengths: NDArray[Any] | None) -> tuple[int, ...]:
        if self.multiple_of is not None:
            step = self.multiple_of
            return tuple(range(step, round_up(max_length, step) + 1, step))
        if self.boundaries is not None:
            if self.boundaries[-1] < max_length:
                raise OptionError(
                    f"Bucket: the last of boundaries is {self.boundaries[-1]}, but the task lets sequences of up to "
                    f"{max_length} tokens through. Add a boundary of {max_length} or more, or lower the task's own "
                    f"length to {self.boundaries[-1]}."
                )
            return self.boundaries
        assert self.max_shapes is not None  # one of the three is always set
        if lengths is None or len(lengths) == 0:
            raise OptionError(
                f"Bucket: max_shapes={self.max_shapes} chooses the allowed lengths from the lengths of the rows, and "
                "none are known. Build a length index, or give multiple_of or boundaries instead."
            )
        return best_widths(lengths, max_length, self.max_shapes, self.round_to)

    def width_for(self, longest: int, widths: tuple[int, ...]) -> int:
        """See `BatchingRule`: the first width that has `longest` + `extra` columns."""
        place = bisect_left(widths, longest + self.extra)
        if place == len(widths):
            raise internal_error(
                f"a sequence has {longest} tokens, but the largest width holds {widths[-1] - self.extra}"
            )
        return widths[place]

    def steps(self, factory: StepFactory, widths: tuple[int, ...]) -> Any:
        """See `BatchingRule`."""
        if self.max_tokens is not None:
            return factory.by_tokens(self.max_tokens, self.extra)
        return factory.by_rows(int(self.batch_size or 0), sort=len(widths) > 1)


def _checked_boundaries(given: object) -> tuple[int, ...]:
    """Returns the boundaries as a tuple of ints, ascending and not empty."""
    lengths = enumerate(given) if isinstance(given, Iterable) else ()
    boundaries = tuple(whole_number(f"Bucket: boundaries[{at}]", value, 1, LONGEST) for at, value in lengths)
    if not boundaries or any(left >= right for left, right in pairwise(boundaries)):
        raise OptionError(
            f"Bucket: boundaries is {given!r}; expected whole numbers in ascending order, none of them twice. Give "
            f"boundaries={tuple(sorted(set(boundaries))) or (128, 256, 1024)}, for example."
        )
    return boundaries
