"""A picture as SVG in the colours of the reports, light or dark: text stays text, and nothing is loaded.

A picture is 520 units wide and its text 14 high, so that it is still legible at the width of a phone.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from html import escape

from rich.cells import cell_len

from ms_prefstream.inspection.steps import Strip

ROOT = pathlib.Path(__file__).parents[2]
THEMES = ("light", "dark")
WIDTH, MARGIN, TEXT = 520, 16, 14
SIDES = {"frame": "prompt", "chosen": "chosen", "rejected": "rejected"}  # of strips, by colour
CELL = 0.6 * TEXT  # of a fixed-width font
_CSS = ROOT / "ms_prefstream" / "html" / "report.css"
_FONTS = (
    "text{font:14px system-ui,sans-serif}"
    ".m{font-family:ui-monospace,monospace}.b{font-weight:600}.s{text-decoration:line-through}"
)


def palette(theme: str) -> dict[str, str]:
    """Returns the colours of the HTML reports by their names in `report.css`."""
    of_theme = {"light": ":root {", "dark": ':root[data-theme="dark"] {'}[theme]
    block = _CSS.read_text(encoding="utf-8").split(of_theme, 1)[1].split("}", 1)[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", block))


class Drawing:
    """A picture that grows from top to bottom.

    Args:
        theme: ``light`` or ``dark``.
        title: What the picture is, for those who cannot see it.
        paper: The colour of the paper.

    Attributes:
        colours: The colours by name: paper, ink, quiet, line, panel, prompt, chosen, rejected, attention.
        paper: The colour of the paper.
        y: The lower end of what was drawn.
    """

    def __init__(self, theme: str, title: str, paper: str = "paper") -> None:
        self.colours, self.paper = palette(theme), paper
        self.y = float(MARGIN)
        self._title = title
        self._parts: list[str] = []
        self._patterns: dict[str, str] = {}

    def text(
        self, x: float, y: float, text: str, colour: str = "ink", anchor: str = "start", *, bold: bool = False
    ) -> None:
        """Writes one line; `y` is its base line."""
        self._text(x, y, text, colour, " b" if bold else "", "" if anchor == "start" else f' text-anchor="{anchor}"')

    def cells(
        self, x: float, y: float, text: str, colour: str = "ink", *, bold: bool = False, struck: bool = False
    ) -> float:
        """Writes one line in a fixed-width font, a Chinese character in two cells; returns where it ends."""
        end, shown = x + cell_len(text) * CELL, text.strip(" ")
        if shown:
            begin = x + (len(text) - len(text.lstrip(" "))) * CELL
            kind = " m" + " b" * bold + " s" * struck
            more = f' textLength="{_number(cell_len(shown) * CELL)}"'
            self._text(begin, y, shown.replace("  ", "\N{NO-BREAK SPACE}" * 2), colour, kind, more)
        return end

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, *, round: float = 0, opacity: float = 1
    ) -> None:
        """Fills a rectangle."""
        more = f' rx="{_number(round)}"' if round else ""
        more += f' opacity="{_number(opacity)}"' if opacity != 1 else ""
        self._parts.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}"'
            f' fill="{self.colours[colour]}"{more}/>'
        )

    def hatched(self, x: float, y: float, width: float, height: float, colour: str = "quiet") -> None:
        """Hatches a rectangle, which is how padding looks."""
        self._patterns[colour] = (
            f'<pattern id="hatched-{colour}" width="5" height="5" patternUnits="userSpaceOnUse"'
            f' patternTransform="rotate(45)"><path d="M0 0V5" stroke="{self.colours[colour]}" stroke-width="1.6"/>'
            "</pattern>"
        )
        self._parts.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}"'
            f' fill="url(#hatched-{colour})"/>'
        )

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        """Fills a circle."""
        self._parts.append(
            f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" fill="{self.colours[colour]}"/>'
        )

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1) -> None:
        """Draws a line through points."""
        path = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        self._parts.append(
            f'<path d="M{path}" fill="none" stroke="{self.colours[colour]}" stroke-width="{_number(width)}"/>'
        )

    def strip(self, x: float, scale: float, strip: Strip, *, height: float = 9, faint: bool = False) -> None:
        """Draws a row of a batch below what was drawn.

        Args:
            x: Its left end.
            scale: Units a column.
            strip: The row.
            height: Its height.
            faint: Whether another row matters more.
        """
        for piece in strip.pieces:
            at, width = x + piece.begin * scale, (piece.end - piece.begin) * scale
            if piece.side:
                colour = piece.side if piece.trained else "frame"
                self.box(at, self.y, width, height, colour, opacity=0.3 if faint else 1)
            else:
                self.hatched(at, self.y, width, height, "line" if faint else "frame")
        self.y += height

    def legend(self, x: float, words: Mapping[str, str]) -> None:
        """Draws what colours mean, by colour; "" is the hatching."""
        self.y += 26
        for colour, word in words.items():
            if colour:
                self.box(x, self.y - 10, 12, 11, colour)
            else:
                self.hatched(x, self.y - 10, 12, 11, "frame")
            self.text(x + 18, self.y, word, "quiet")
            x += 18 + 7.4 * len(word) + 20

    def svg(self) -> str:
        """Returns the picture, which ends a margin below `y`."""
        height = _number(self.y + MARGIN)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
            f' role="img"><title>{escape(self._title)}</title><style>{_FONTS}</style>'
        )
        patterns = f"<defs>{''.join(self._patterns.values())}</defs>" if self._patterns else ""
        paper = f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{self.colours[self.paper]}"/>'
        return "\n".join([head, patterns + paper, *self._parts, "</svg>"]) + "\n"

    def _text(self, x: float, y: float, text: str, colour: str, kind: str, more: str) -> None:
        kind = f' class="{kind.strip()}"' if kind else ""
        self._parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}" fill="{self.colours[colour]}"{kind}{more}>{escape(text)}</text>'
        )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
