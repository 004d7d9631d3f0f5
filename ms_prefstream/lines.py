"""Text for people: lines that fit a terminal, and no more of them than somebody reads."""

from __future__ import annotations

import bisect
import itertools
import unicodedata
from collections.abc import Iterable, Sequence

COLUMNS = 98
_FEW = 3


def columns_of(text: str) -> int:
    """Returns the columns of a terminal that a text takes; Chinese characters take two."""
    return sum(map(_columns, text))


def cut(text: str, columns: int) -> str:
    """Returns a text that fits into so many columns of a terminal."""
    used = list(itertools.accumulate(map(_columns, text)))
    return text if not used or used[-1] <= columns else f"{text[: bisect.bisect_right(used, columns - 1)]}…"


def joined(parts: Iterable[str], indent: str = "") -> list[str]:
    """Returns lines with parts that are joined by dots; a part that does not fit begins a new line."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else ""
        if longer and columns_of(longer) <= COLUMNS:
            lines[-1] = longer
        else:
            lines.append(f"{indent * bool(lines)}{part}")
    return lines


def at_most(sections: Iterable[Sequence[str]], most: int) -> list[str]:
    """Returns the lines of some sections, which are shortened until there are so few.

    [["a"], ["b", "c", "d"]], 3  ->  ["a", "b", "c · and 1 more"]

    Later sections are shortened first, to three lines, then whichever is longest. Each keeps its first line.
    """
    kept = [[*lines] for lines in sections if lines]
    left = [0] * len(kept)
    while sum(map(len, kept)) > most:
        long = [number for number, lines in enumerate(kept) if len(lines) > _FEW]
        place = long[-1] if long else max(range(len(kept)), key=lambda number: (len(kept[number]), number))
        if len(kept[place]) == 1:
            break
        kept[place].pop()
        left[place] += 1
    for lines, more in zip(kept, left, strict=True):
        if more:
            lines[-1] += f" · and {more} more"
    return [line for lines in kept for line in lines]


def counted(count: int, what: str = "row") -> str:
    """Returns a count with its noun: ``1 row``, ``2,000 rows``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def share(count: int, total: int) -> str:
    """Returns a count with its share of a total: ``1,836 (91.8 %)``."""
    percent = 100 * count / max(1, total)
    return f"{count:,} ({percent:.2f} %)" if percent < 1 else f"{count:,} ({percent:.1f} %)"


def _columns(character: str) -> int:
    return 1 + (unicodedata.east_asian_width(character) in "WF")
