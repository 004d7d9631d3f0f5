"""What `ms-prefstream inspect --tokens` prints on a terminal of 58 columns.

It needs the tokenizer of Qwen2.5 in `../shared/tokenizers/qwen2_5`; `MS_PREFSTREAM_SHARED` names another `../shared`.
"""

from __future__ import annotations

import io
import itertools
import os
import pathlib
from collections.abc import Iterator

from drawing import CELL, MARGIN, ROOT, WIDTH, Drawing
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

import ms_prefstream as mps
from ms_prefstream.inspection import rows_of
from ms_prefstream.inspection.terminal import ATTENTION, COLOURS, DIM, GREY, View, row_lines

PAIRS = ROOT / "ms_prefstream" / "demo" / "pairs.jsonl"
ROW, MAX_LENGTH = 3, 1024
COLUMNS = int((WIDTH - 2 * MARGIN) / CELL)
LINE = 18
COMMAND = (
    f"$ ms-prefstream inspect pairs.jsonl --row {ROW} --tokens \\",
    f"    --task dpo --max-length {MAX_LENGTH} \\",
    "    --tokenizer path/to/Qwen2.5-7B-Instruct",
)
_COLOURS = {
    GREY: "prompt",
    DIM: "quiet",
    ATTENTION: "attention",
    COLOURS["chosen"]: "chosen",
    COLOURS["rejected"]: "rejected",
}


def inspect(theme: str) -> str:
    """Returns the picture."""
    console = Console(file=io.StringIO(), width=COLUMNS, color_system="256")
    drawing = Drawing(theme, "ms-prefstream inspect: tokens with ids, those in the loss marked", paper="panel")
    for line in COMMAND:
        drawing.y += LINE
        drawing.cells(MARGIN, drawing.y, line, bold=True)
    drawing.y += LINE
    for words in _lines(console):
        drawing.y += LINE
        at = 0
        for text, style in _runs(words, console):
            _draw(drawing, MARGIN + at * CELL, text, style)
            at += cell_len(text)
    return drawing.svg()


def _lines(console: Console) -> list[Text]:
    """Returns the lines of the row without the empty one at their end."""
    shared = pathlib.Path(os.environ.get("MS_PREFSTREAM_SHARED", ROOT.parent / "shared"))
    options = {
        "task": mps.DPO(MAX_LENGTH),
        "tokenizer": str(shared / "tokenizers" / "qwen2_5"),
        "backend": "tokenizers",
    }
    (found,) = rows_of(str(PAIRS), [ROW], options, with_tokens=True, log=False)
    return list(row_lines(found._replace(origin=f"{PAIRS.name}:{ROW + 1}"), View(console, tokens=True)))[:-1]


def _runs(line: Text, console: Console) -> Iterator[tuple[str, Style]]:
    """Yields the texts of a line with their styles; bars stand alone."""
    styles = [line.get_style_at_offset(console, at) for at in range(len(line.plain))]
    for (style, _), group in itertools.groupby(
        zip(styles, line.plain, strict=True), lambda one: (one[0], one[1] == "▔")
    ):
        yield "".join(character for _, character in group), style


def _draw(drawing: Drawing, x: float, text: str, style: Style) -> None:
    colour = "ink" if style.color is None else _COLOURS[style.color.name]
    width = cell_len(text) * CELL
    if set(text) == {"▔"}:  # drawn, as fonts leave gaps
        drawing.box(x, drawing.y - 11, width, 2.5, colour)
        return
    if style.reverse:
        drawing.box(x, drawing.y - 12, width, LINE - 2, colour, round=2)
        colour = drawing.paper
    drawing.cells(x, drawing.y, text, colour, bold=bool(style.bold), struck=bool(style.strike))
