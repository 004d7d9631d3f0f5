"""Pieces of text for a terminal: aligned cells, shares, bars. Chinese characters count as two columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from ms_prefstream.errors import printable
from ms_prefstream.stats.parts import Histogram, Lengths

COLUMNS = 98
LABEL = 20  # columns of what stands on the left
Line: TypeAlias = list[tuple[str, str]]
"""A line as (style, text): ``chosen``, ``rejected``, ``prompt``, ``attention``, or ``""`` for plain text."""

_BARS = "▁▂▃▄▅▆▇█"
_DRAWN = 36  # columns of a drawn histogram
_ORIGIN = re.compile(r"(.*?)((?::|\[|row )\d.*)?", re.DOTALL)  # train.jsonl:17, train.json[17], list row 17
_PLACES = 3  # that are named
_NUMBERS = ("count", "max", "mean", "p50", "p90", "p99")


def width(text: str) -> int:
    """Returns the columns that a text takes in a terminal."""
    from rich.cells import cell_len

    return cell_len(text)


def shortened(text: str, columns: int = COLUMNS) -> str:
    """Returns a text that takes at most so many columns."""
    if width(text) <= columns:
        return text
    while width(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def fitted(text: str, columns: int) -> str:
    """Returns a text in exactly so many columns: shortened, or with spaces after it."""
    text = shortened(text, columns)
    return text + " " * (columns - width(text))


def safe(text: str) -> str:
    """Returns a name from the data as it may be printed, in one line."""
    return printable(text.replace("\n", " "))


def labelled(label: str, text: str, style: str = "") -> Line:
    """Returns a line with a label on the left."""
    return [(style, fitted(label, LABEL)), ("", shortened(text, COLUMNS - LABEL))]


def table_head() -> Line:
    """Returns the names of the columns of `lengths_row`."""
    return [("", " " * LABEL + _cells(_NUMBERS))]


def lengths_row(label: str, lengths: Lengths, note: str, style: str = "") -> Line:
    """Returns a line of a table of lengths, with a note such as their unit on the right."""
    whole = (f"{round(value):,}" for value in (lengths.p50, lengths.p90, lengths.p99))
    cells = [f"{lengths.count:,}", f"{lengths.max:,}", f"{lengths.mean:,.1f}", *whole]
    return [(style, fitted(label, LABEL)), ("", f"{_cells(cells)}   {note}")]


def _cells(cells: Sequence[str]) -> str:
    first, *others = cells
    return f"{first:>12}" + "".join(f"{cell:>10}" for cell in others)


def percent(share: float) -> str:
    """Returns a share, 0 to 1, in per cent; one that is not 0 is not shown as 0."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %" if share else "0 %"


def bars(histogram: Histogram, unit: str) -> str:
    """Returns a histogram on its side, a character for each bin, and where it begins and ends."""
    most = max(histogram.counts, default=0)
    drawn = "".join(" " if not count else _BARS[(count * len(_BARS) - 1) // most] for count in histogram.counts)
    return f"{fitted(drawn, _DRAWN)}{histogram.edges[0]:,} … {histogram.edges[-1]:,} {unit}" if most else ""


def listed(parts: Iterable[str], columns: int = COLUMNS - LABEL) -> str:
    """Returns parts side by side, as many as fit, and how many are left."""
    parts = list(parts)
    shown: Sequence[str] = parts
    while len(shown) > 1 and width(_joined(shown, parts)) > columns:
        shown = shown[:-1]
    return _joined(shown, parts)


def _joined(shown: Sequence[str], parts: Sequence[str]) -> str:
    more = [f"and {len(parts) - len(shown)} more"] if len(shown) < len(parts) else []
    return "   ".join([*shown, *more])


def places(origins: Sequence[str], count: int) -> str:
    """Returns where rows come from: ``train.jsonl:812, :914 …``."""
    shown: list[str] = []
    before = ""
    for origin in map(safe, origins[:_PLACES]):
        name, row = _ORIGIN.fullmatch(origin.rpartition("/")[2]).groups()  # type: ignore[union-attr]  # fits all
        shown.append(row if name == before and row else f"{name}{row}")
        before = name
    return ", ".join(shown) + (" …" if count > len(shown) else "")
