"""Bars of the figures in `docs/performance.md`, read from its tables, so that page and picture are the same."""

from __future__ import annotations

import re

from drawing import CELL, MARGIN, ROOT, WIDTH, Drawing

PAGE = ROOT / "docs" / "performance.md"
MODES = ("`Pad` to 1,024", "`Bucket(max_shapes=8)`", "`Bucket(max_shapes=16)`", "`Pack(4096)`")
PEERS = ("text-to-batches", "against-trl", "against-xtuner", "against-mindrlhf")
LEFT, RIGHT = MARGIN + 23 * CELL, WIDTH - MARGIN - 60.0  # of the bars
HEIGHT = 14


def _page() -> str:
    return PAGE.read_text(encoding="utf-8")


def padding(theme: str) -> str:
    """Returns the picture of padding by mode, for each data set of the table."""
    section = _page().split("\n## Padding\n")[1].split("\n## ")[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    names, values = table[0][1:], {row[0]: row[1:] for row in table}
    drawing = Drawing(
        theme, "The share of padding in three data sets: much with Pad, less with Bucket, next to none with Pack"
    )
    for column, name in enumerate(names):
        drawing.y += 14 if column == 0 else 30
        drawing.text(MARGIN, drawing.y, name, bold=True)
        if column == 0:
            drawing.text(WIDTH - MARGIN, drawing.y, "padding", "quiet", "end")
        drawing.y += 10
        for mode in MODES:
            share = float(values[mode][column])
            border = RIGHT - (RIGHT - LEFT) * share / 100
            drawing.cells(MARGIN, drawing.y + HEIGHT - 2, mode.replace("`", ""), "quiet")
            drawing.box(LEFT, drawing.y, border - LEFT, HEIGHT, "frame")
            drawing.hatched(border, drawing.y, RIGHT - border, HEIGHT, "frame")
            drawing.text(WIDTH - MARGIN, drawing.y + HEIGHT - 2, f"{share:.1f} %", anchor="end")
            drawing.y += HEIGHT + 8
        drawing.y -= 8
    drawing.legend(LEFT, {"frame": "tokens", "": "padding"})
    return drawing.svg()


def throughput(theme: str) -> str:
    """Returns the picture of how many times as fast the library is as others, with the spread."""
    rows = []
    for name in PEERS:
        row = rf"^\| (.+) \| <!-- figure: {name} -->([\d.]+) \(([\d.]+) to ([\d.]+)\)"
        words, *figures = re.search(row, _page(), re.MULTILINE).groups()  # type: ignore[union-attr]
        before, peer, how = re.split(r"(?:of the rate of|times as fast as) ([^,]+),? ?", words.replace("`", ""))
        rows.append((peer, before + how, *map(float, figures)))
    rows.sort(key=lambda row: row[2], reverse=True)
    drawing = Drawing(theme, "How many times as fast as others text becomes tokens or batches")
    scale = (WIDTH - 2 * MARGIN) / max(most for *_, most in rows)
    drawing.y -= 14
    for peer, how, value, least, most in rows:
        drawing.y += 30
        drawing.text(MARGIN, drawing.y, peer, bold=True)
        drawing.text(WIDTH - MARGIN, drawing.y, f"{value:g} ×", anchor="end", bold=True)
        drawing.text(WIDTH - MARGIN - 64, drawing.y, how, "quiet", "end")
        drawing.y += 8
        drawing.box(MARGIN, drawing.y, value * scale, HEIGHT, "chosen")
        middle = drawing.y + HEIGHT / 2
        drawing.line([(MARGIN + least * scale, middle), (MARGIN + most * scale, middle)], "ink", 1.5)
        drawing.y += HEIGHT + 2
        drawing.box(MARGIN, drawing.y, scale, HEIGHT / 2, "frame")
        drawing.y += HEIGHT / 2
    drawing.legend(MARGIN, {"chosen": "ms_prefstream", "frame": "the other, 1 ×"})
    drawing.text(WIDTH - MARGIN, drawing.y, "line: smallest to largest ratio", "quiet", "end")
    return drawing.svg()
