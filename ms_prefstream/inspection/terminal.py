"""Rows and steps on a terminal, in colours or as plain text of the same content; imported by commands that run.

Prompts are grey, chosen green, rejected red; what was cut off is struck, yellow is for what needs attention.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ms_prefstream.errors import printable
from ms_prefstream.inspection.encoded import EncodedRow, Kind, Part, Section, shortened
from ms_prefstream.inspection.rows import FoundRow
from ms_prefstream.inspection.steps import Step, Strip
from ms_prefstream.lines import counted

COLUMNS = 98
_LABEL = 12  # columns before a text
_SHOWN = 360  # characters of a text that are shown, without --full
_SHOWN_CUT = 120

GREY, DIM, ATTENTION = "grey62", "grey46", "yellow"
COLOURS = {"chosen": "green", "rejected": "red", "response": "green", "kl": "green", "prompt": GREY}  # by side


class _Console(Console):
    """A console that leaves a closed pipe to the caller."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(file: IO[str] | None = None, columns: int = COLUMNS) -> Console:
    """Returns a console of at most so many columns; plain where the file is no terminal, or with ``NO_COLOR``."""
    file = sys.stdout if file is None else file
    plain = not file.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    found = _Console(file=file, color_system=None if plain else "auto", highlight=False, soft_wrap=False)
    found.width = min(columns, found.width) if file.isatty() else columns
    return found


def write(out: Console, lines: Iterable[Text]) -> None:
    """Prints lines that were wrapped before."""
    for line in lines:
        line.rstrip()
        out.print(line, no_wrap=True, overflow="ignore", crop=False)


class View:
    """How rows are shown.

    Args:
        out: The console.
        full: Whether long texts are shown whole.
        tokens: Whether each token is shown with its id; rows must have been encoded with texts of tokens.
        said: Returns why a row is dropped in the words of a command.
    """

    def __init__(
        self, out: Console, full: bool = False, tokens: bool = False, said: Callable[[str], str] = str
    ) -> None:
        self.columns, self.full, self.tokens, self.said = out.width, full, tokens, said
        self.marks_cuts = out.color_system is None  # nothing can be struck


def row_lines(found: FoundRow, view: View) -> Iterator[Text]:
    """Yields the lines of a row of a source, with its origin."""
    for record in found.row.records():
        yield from record_lines(record, view, found.origin)
        yield Text()


def record_lines(row: EncodedRow, view: View, origin: str) -> Iterator[Text]:
    """Yields the lines of one record; others of the same row are not shown."""
    columns = view.columns
    head = Text(printable(f"{origin} · ", most=None), "bold")
    for text, side in row.heading():
        head.append(text, COLOURS.get(side, "bold" if row.kept else f"bold {ATTENTION}"))
    yield from _fold(head, columns)
    if not row.kept:
        yield Text()
        problem = printable(view.said(row.problem), most=None)
        yield from _labelled("dropped", Text(problem, ATTENTION), columns, ATTENTION)
        if raw := shortened(row.raw_text(), None if view.full else _SHOWN):
            yield from _labelled("row", _styled(raw, GREY), columns)
        return
    yield Text()
    for section in row.sections():
        yield from _section(section, view)
    yield Text()
    if carried := row.carried():
        shown = shortened(carried, None if view.full else _SHOWN)
        yield from _labelled("carried", Text(printable(shown, most=None), GREY), columns)
    facts = list(row.facts())
    for label, text in facts:
        yield from _labelled(label, Text(printable(text, most=None)), columns, ATTENTION)
    if not facts:
        yield Text("  nothing was cut, changed or lost", DIM)
    if view.tokens:
        yield from _indented(Text(_LEGEND, DIM), columns)


def style_of(part: Part, colour: str) -> str:
    """Returns the style of a part in a section of this colour."""
    styles = {Kind.PROMPT: GREY, Kind.FRAME: DIM, Kind.RESPONSE: colour}
    style = styles.get(part.kind, f"bold reverse {colour}")  # end of turn, reward token
    return f"{style} strike" if part.cut else style


def _section(section: Section, view: View) -> Iterator[Text]:
    """Yields the lines of a section: its text, or its tokens."""
    label, colour, parts = section.label, COLOURS.get(section.side, GREY), section.parts
    under = "" if section.trained is None else f"{section.trained:,} under the loss"
    if view.tokens:
        if label:
            yield _label(label, colour).append(under, DIM)
        yield from _cells(colour, parts, view)
        return
    text = Text()
    for cut, group in itertools.groupby(parts, lambda part: part.cut):
        mark = "~~" if cut and view.marks_cuts else ""
        text.append(mark)
        for part in group:
            shown = shortened(part.text, None if view.full else _SHOWN_CUT if cut else _SHOWN)
            text.append_text(_styled(shown, style_of(part, colour), breaks=part.kind is not Kind.FRAME and not cut))
        text.append(mark)
    if text.plain.endswith("\n"):
        text.right_crop(1)
    yield from _labelled(label, text, view.columns, colour)
    if under:
        yield from _labelled("", Text(under, DIM), view.columns)


def _styled(text: str, style: str, breaks: bool = True) -> Text:
    """Returns a text from outside as it may be shown; ends of lines as a sign, with a break after it."""
    return Text(printable(text, most=None).replace("\n", "⏎\n" if breaks else "⏎"), style)


_LEGEND = "▔ under the loss   ╌ cut off   ␣ blank   ⏎ end of line   ⋯ rest of a character   …9… left out"


def _cells(colour: str, parts: Sequence[Part], view: View) -> Iterator[Text]:
    """Yields rows of cells: each token with its id below, and a bar under those in the loss."""
    columns = view.columns
    lines = [Text("  "), Text("  "), Text("  ")]
    for part in parts:
        style = style_of(part, colour)
        style = f"reverse {style}" if part.control and "reverse" not in style else style
        bar, of_bar = ("╌", ATTENTION) if part.cut else ("▔" if part.trained else " ", colour)
        for one, text in _tokens(part, view.full):
            for shown in _pieces(visible(text) or "⋯", columns - 2):
                width = max(cell_len(shown), len(str(one)))
                if cell_len(lines[1].plain) + width > columns:
                    yield from _full(lines)
                    lines = [Text("  "), Text("  "), Text("  ")]
                lines[0].append(shown, style).append(" " * (width - cell_len(shown) + 1))
                lines[1].append(str(one), f"{DIM} strike" if part.cut else DIM).append(
                    " " * (width - len(str(one)) + 1)
                )
                lines[2].append(bar * width, of_bar).append(" ")
    yield from _full(lines)


def _tokens(part: Part, full: bool) -> Iterator[tuple[int | str, str]]:
    """Yields the id and the text of each token; the middle of a long cut part counts as one, unless `full`."""
    left_out = 0 if full or not part.cut else len(part.ids) - _SHOWN_CUT
    head = _SHOWN_CUT * 2 // 3 if left_out > 0 else len(part.ids)
    yield from zip(part.ids[:head], part.texts[:head], strict=True)
    if left_out > 0:
        yield "", f"…{left_out:,}…"
        yield from zip(part.ids[head + left_out :], part.texts[head + left_out :], strict=True)


def _full(lines: Sequence[Text]) -> Iterator[Text]:
    for line in lines:
        if line.plain.strip() or line is not lines[-1]:
            yield line


def _pieces(text: str, room: int) -> Iterator[str]:
    """Yields a text in pieces that fit into a line."""
    piece, used = "", 0
    for character in text:
        width = cell_len(character)
        if used + width >= room:
            yield piece
            piece, used = "", 0
        piece, used = piece + character, used + width
    yield piece


def visible(text: str) -> str:
    """Returns the text of a token with signs for blanks and escapes for what commands a terminal."""
    return printable(text, most=None).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def step_lines(step: Step, view: View, parts_of: Callable[[Strip], Iterable[Part]]) -> Iterator[Text]:
    """Yields the lines of a step: a strip a row, to scale; with tokens or full texts also each row.

    Args:
        step: The step.
        view: How it is shown.
        parts_of: Returns the parts of a strip.
    """
    rows = sum(strip.side == step.strips[0].side for strip in step.strips)
    head = Text(f"step {step.number:,}", "bold").append(f" (epoch {step.epoch})")
    head.append(f" · rank {step.rank} of {step.world} · {counted(rows)} · width {step.width:,}")
    yield from _fold(head.append(f" · padding {100 * step.padding:.1f} %"), view.columns)
    yield Text()
    by_shape: dict[str, list[str]] = {}
    for name, array in step.columns.items():
        by_shape.setdefault(f"{array.dtype} {array.shape}", []).append(name)
    for shape, names in by_shape.items():
        yield from _indented(Text(printable(f"{shape}   {'  '.join(names)}", most=None), DIM), view.columns)
    yield Text()
    beside = min(_NAME, max(_LEAST_NAME, view.columns - 72))
    room = max(_LEAST_NAME, view.columns - beside - _SIDE - sum(_COUNTS) - 4)
    titles = Text(" " * (beside + _SIDE + 2) + f"0 … {step.width:,}".ljust(room))
    yield titles.append("".join(one.rjust(size) for one, size in zip(_TITLES, _COUNTS, strict=True)))
    for before, strip in zip((None, *step.strips), step.strips, strict=False):
        repeated = before is not None and before.origins == strip.origins
        yield _strip_line(strip, step.width, room, "" if repeated else _name(strip.origins, beside), beside)
        if strip.side == "pack":
            yield from _labelled("", _segments(strip), view.columns)
    yield Text(_KEY, DIM)
    if view.tokens or view.full:
        for strip in step.strips:
            yield Text()
            yield from _fold(Text(printable(" ".join(strip.origins[:4]), most=None), "bold"), view.columns)
            for side, group in itertools.groupby(parts_of(strip), lambda part: part.role):
                yield from _section(Section(side, side, tuple(group)), view)
            if padding := strip.counts[2]:
                yield from _labelled("padding", Text(f"{padding:,} × {strip.ids[-1]}", DIM), view.columns, DIM)


_NAME, _LEAST_NAME, _SIDE, _COUNTS = 18, 6, 9, (9, 7, 9)  # columns
_TITLES = ("context", "loss", "padding")
_KEY = "  ▒ context   █ under the loss   · padding"


def _strip_line(strip: Strip, width: int, room: int, name: str, names: int) -> Text:
    """Returns one row to scale in `room` columns, after its name in `names`, with the sizes of its parts."""
    line = Text(" " * (names - cell_len(name))).append(f"{name} ", GREY)
    line.append(strip.side.ljust(_SIDE) + " ", COLOURS.get(strip.side, ""))
    scale = room / width
    at, end, fits = 0, 0, len(strip.pieces) * 2 <= room
    for number, piece in enumerate(strip.pieces):
        sign, style = ("█", COLOURS[piece.side]) if piece.trained else ("▒", GREY) if piece.side else ("·", DIM)
        end = round(piece.end * scale)
        if fits:  # no part is invisible
            end = min(max(end, at + 1), room - len(strip.pieces) + 1 + number)
        line.append(sign * (end - at), style)
        at = end
    line.append(" " * (room - at))
    for count, size in zip(strip.counts, _COUNTS, strict=True):
        line.append(f"{count:,}".rjust(size), DIM)
    return line


def _segments(strip: Strip) -> Text:
    """Returns the sizes of the segments of a pack, in their order."""
    found = Text(f"{len(strip.origins)} rows, segments of ", DIM)
    for _, group in itertools.groupby((one for one in strip.pieces if one.side), lambda piece: piece.segment):
        pieces = list(group)
        found.append(f"{pieces[-1].end - pieces[0].begin} ", COLOURS[pieces[0].side])
    return found


def _name(origins: Sequence[str], columns: int) -> str:
    """Returns the end of the first origin that fits beside a strip."""
    name = printable(os.path.basename(origins[0]), most=None) if origins else ""
    while cell_len(name) > columns:
        name = "…" + name[2:]
    return name


def _label(label: str, style: str = "") -> Text:
    found = Text("  ").append(printable(label), style)
    return found.append(" " * max(1, 2 + _LABEL - cell_len(found.plain)))


def _labelled(label: str, text: Text, columns: int, style: str = GREY) -> Iterator[Text]:
    """Yields a text in lines beside a label."""
    head = _label(label, style)
    indent = " " * (2 + _LABEL)
    first = True
    for line in _fold(text, columns - len(indent)):
        if first and cell_len(head.plain) > len(indent):
            yield head
            first = False
        yield (head if first else Text(indent)).append_text(line)
        first = False


def _indented(text: Text, columns: int) -> Iterator[Text]:
    for line in _fold(text, columns - 2):
        yield Text("  ").append_text(line[len(line.plain) - len(line.plain.lstrip(" ")) :])


def _fold(text: Text, columns: int) -> Iterator[Text]:
    """Yields the lines of a text, broken after a blank where one is near; Chinese is broken anywhere."""
    text.expand_tabs(4)
    for line in text.split("\n", allow_blank=True):
        borders, used, blank = [0], 0, 0
        for at, character in enumerate(line.plain):
            width = cell_len(character)
            if used + width > columns:
                near = blank > borders[-1] and cell_len(line.plain[blank:at]) <= columns // 4
                borders.append(blank if near else at)
                used = cell_len(line.plain[borders[-1] : at])
            used += width
            blank = at + 1 if character == " " else blank
        yield from line.divide(borders[1:])
