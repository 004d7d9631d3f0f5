"""The walk of a row: raw row, messages, rendered text, ids with the span under the loss, mask, batch.

Everything is what the library makes of a bundled row; the tokenizer is the built-in one, a token for each byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from drawing import CELL, MARGIN, ROOT, SIDES, WIDTH, Drawing
from rich.cells import cell_len

import ms_prefstream as mps
from ms_prefstream.formats.record import Message
from ms_prefstream.formats.registry import auto
from ms_prefstream.inspection import rows_of
from ms_prefstream.inspection.encoded import EncodedSide, Kind, Part
from ms_prefstream.inspection.steps import step_of
from ms_prefstream.inspection.terminal import visible

PAIRS = ROOT / "ms_prefstream" / "demo" / "pairs.jsonl"
ROW = 3
OPTIONS = {"task": mps.DPO(256), "tokenizer": "bytes"}
BATCHING = mps.Bucket(4, multiple_of=64)
LEFT = MARGIN + 36.0  # of everything but the numbers of the stations
COLUMNS = int((WIDTH - MARGIN - LEFT) / CELL)
LINE = 20
_FRAMES = {Kind.FRAME: "quiet", Kind.PROMPT: "prompt"}  # other parts have the colour of their side


class Cell(NamedTuple):
    """A token as it is shown."""

    text: str
    id: int | None  # None for those that are left out
    trained: bool
    colour: str

    @property
    def columns(self) -> int:
        """Columns of the widest of its lines, and one between cells."""
        return max(cell_len(self.text), len(str(self.id or ""))) + 1


def row_walk(theme: str) -> str:
    """Returns the picture."""
    (found,) = rows_of(str(PAIRS), [ROW], OPTIONS, with_tokens=True, log=False)
    record, chosen = found.row.record, found.row.sides[0]
    raw, name = mps.read(str(PAIRS))[ROW], f"{PAIRS.name}:{ROW + 1}"
    drawing = Drawing(theme, f"How {name} becomes a row of a batch: text, messages, tokens, loss mask, padding")
    stations = _Stations(drawing)

    stations.begin("Raw row", name)
    for number, (key, value) in enumerate(raw.items(), 1):
        turns = ", ".join(json.dumps(turn, ensure_ascii=False) for turn in value)
        begin, end = "{" if number == 1 else "", "}" if number == len(raw) else ","
        _write(drawing, [(f'{begin}"{key}": [', "quiet"), (turns, _side(key)), (f"]{end}", "quiet")])

    stations.begin("Messages", f"recognised as “{auto().decide(raw).preset}”")
    for key in ("prompt", "chosen", "rejected"):
        for message in getattr(record, key):
            _message(drawing, message, key)

    stations.begin("Text", "by the chat template of the tokenizer")
    _write(drawing, _runs(chosen.context, "prompt"))
    for side in found.row.sides:
        _write(drawing, _runs(side.response, side.name))

    (start, end), *_ = found.row.sample.sequences[0].spans
    cells = list(_cells(chosen, start))
    stations.begin("Ids", f"{len(chosen.ids)} tokens of chosen, {start} to {end - 1} under the loss")
    _tokens(drawing, cells)
    stations.begin("Loss mask", "1 on the answer and its end of turn")
    drawing.y += LINE
    for x, cell in _placed(cells):
        mark = "…" if cell.id is None else f"{cell.trained:d}"
        drawing.cells(x, drawing.y, mark, cell.colour if cell.trained else "quiet", bold=cell.trained)

    stream = mps.stream(str(PAIRS), batching=BATCHING, verbose=False, **OPTIONS)
    number = next(step for step in range(stream.steps_per_epoch) if ROW in stream.rows(0, step, resolved=True))
    step = step_of(stream, number)
    stations.begin("Batch", f"{len(step.strips) // 2} pairs, padded to {step.width} columns")
    drawing.y += 8
    for strip in step.strips:
        drawing.strip(LEFT, (WIDTH - MARGIN - LEFT) / step.width, strip, faint=strip.origins != (found.origin,))
        drawing.y += 2 if strip.side == "chosen" else 6
    drawing.legend(LEFT, {**SIDES, "": f"padding, {100 * step.padding:.0f} %"})
    return drawing.svg()


def _side(key: str) -> str:
    return key if key in ("chosen", "rejected") else "prompt"


class _Stations:
    """Headings with a number, and a line that leads through them."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing, self._count, self._last = drawing, 0, 0.0

    def begin(self, title: str, more: str) -> None:
        """Begins the next station."""
        drawing, radius = self._drawing, 11
        self._count += 1
        centre = drawing.y + radius + (18 if self._count > 1 else 0)
        if self._count > 1:
            x = MARGIN + radius
            drawing.line([(x, self._last + radius + 4), (x, centre - radius - 4)], "line", 2)
        drawing.disc(MARGIN + radius, centre, radius, "panel")
        drawing.text(MARGIN + radius, centre + 5, str(self._count), "quiet", "middle", bold=True)
        drawing.text(LEFT, centre + 5, title, bold=True)
        drawing.text(WIDTH - MARGIN, centre + 5, more, "quiet", "end")
        drawing.y, self._last = centre + 8, centre


def _write(drawing: Drawing, runs: Iterable[tuple[str, str]], left: float = LEFT, columns: int = COLUMNS) -> None:
    """Writes coloured runs of text, wrapped at blanks."""
    drawing.y += LINE
    used = 0
    for text, colour in runs:
        for word in _words(text):
            size = cell_len(word.rstrip(" "))
            if used and used + size > columns:
                drawing.y, used = drawing.y + LINE, 0
            drawing.cells(left + used * CELL, drawing.y, word, colour)
            used += cell_len(word)


def _words(text: str) -> Iterator[str]:
    """Yields words, each with the blank after it."""
    while text:
        word, blank, text = text.partition(" ")
        yield word + blank


def _message(drawing: Drawing, message: Message, key: str) -> None:
    y = drawing.y
    _write(drawing, [(message.content, _side(key))], LEFT + 11 * CELL, COLUMNS - 11)
    drawing.cells(LEFT, y + LINE, message.role if key == "prompt" else key, "quiet")


def _runs(parts: Sequence[Part], side: str) -> Iterator[tuple[str, str]]:
    for part in parts:
        yield part.text.replace("\n", "⏎"), _FRAMES.get(part.kind, side)


def _cells(side: EncodedSide, border: int) -> Iterator[Cell]:
    """Yields the cells around the border of a response and at its end that fit into a line."""
    cells = [
        Cell(visible(text) or "⋯", one, part.trained, _FRAMES.get(part.kind, side.name))
        for part in side.parts
        for one, text in zip(part.ids, part.texts, strict=True)
    ]
    gap = Cell("… ", None, False, "quiet")
    head, tail = cells[border - 4 : border], cells[-3:]
    room = COLUMNS + 1 - sum(cell.columns for cell in (gap, gap, *head, *tail))
    first = cells[border : border + 1]
    while sum(cell.columns for cell in first) + cells[border + len(first)].columns <= room:
        first.append(cells[border + len(first)])
    yield from (gap, *head, *first, gap, *tail)


def _placed(cells: Iterable[Cell]) -> Iterator[tuple[float, Cell]]:
    x = LEFT
    for cell in cells:
        yield x, cell
        x += cell.columns * CELL


def _tokens(drawing: Drawing, cells: Sequence[Cell]) -> None:
    """Draws tokens with their ids, and a bar below those under the loss."""
    top = drawing.y + LINE
    for x, cell in _placed(cells):
        drawing.cells(x, top, cell.text, cell.colour)
        drawing.cells(x, top + LINE, str(cell.id or ""), "quiet")
    trained = [(x, x + (cell.columns - 1) * CELL) for x, cell in _placed(cells) if cell.trained]
    drawing.box(trained[0][0], top + LINE + 7, trained[-1][1] - trained[0][0], 2.5, "chosen")
    drawing.y = top + LINE + 8
