"""Part ranges: the share of a pass over all rows that one of several hosts or array jobs does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ms_prefstream.checks import whole_number
from ms_prefstream.errors import OptionError, StateError

_MOST = 10**6  # ranges
_SHOWN = 5


class PartRange(NamedTuple):
    """One of several ranges, counted from 1: the third of eight is (3, 8).

    Each range is a share of the parts of a cache, or of the rows of a length index. Together they are the whole.
    """

    number: int
    total: int

    def of(self, count: int) -> range:
        """Returns the share of `count` parts or rows, counted from 0."""
        return range(count * (self.number - 1) // self.total, count * self.number // self.total)

    @property
    def name(self) -> str:
        """How file names name it, such as ``3-of-8``."""
        return f"{self.number}-of-{self.total}"

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


NAME = r"([1-9]\d{0,6})-of-([1-9]\d{0,6})"
"""`PartRange.name` as a regular expression, with the two numbers as groups."""


def part_range_of(given: Any) -> PartRange | None:
    """Returns the checked option `part_range`; None for the whole.

    Raises:
        OptionError: It is no range.
    """
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise OptionError(f"part_range is {given!r}; expected two numbers: (3, 8) for the third of eight.")
    total = whole_number("part_range[1]", given[1], 1, _MOST)
    return PartRange(whole_number("part_range[0]", given[0], 1, total), total)


def check_all(found: Collection[PartRange], what: str) -> None:
    """Checks that there are all ranges of the number that the first one states.

    Args:
        found: The ranges, at least one.
        what: What they are ranges of, for the error: ``"the cache out"``.

    Raises:
        StateError: Names the missing ones, and what to run.
    """
    total = next(iter(found)).total
    missing = [one for one in (PartRange(number, total) for number in range(1, total + 1)) if one not in found]
    if missing:
        have, more = ("has", "") if len(missing) == 1 else ("have", " and so on")
        raise StateError(
            f"part range {listed(list(map(str, missing)))} of {what} {have} not been written. Run the command that "
            f"wrote the others with part_range={tuple(missing[0])}{more}, then merge again."
        )


def listed(names: Sequence[str]) -> str:
    """Returns the first names as part of a sentence."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
