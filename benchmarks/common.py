"""What the benchmarks share: figures with their spread, and how they are printed.

Every benchmark is a script of its own. With ``--json`` it prints each figure as one line of JSON, which is how
`suite.py` collects them:

    {"part": "e", "what": "packed, samples/s against padded", "values": [4.9, 5.1], "form": ".2f", "target": ">= 4.5"}
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from dataclasses import asdict, dataclass

LONG = 12  # characters of a text that is not a name or a kind


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure.

    Attributes:
        part: The letter of its part in the suite.
        what: What was measured, with its unit.
        values: One value for each repeat.
        form: How a value is written, as in ``format(value, form)``.
        target: What it is meant to reach, empty if nothing.
    """

    part: str
    what: str
    values: list[float]
    form: str = ".2f"
    target: str = ""

    @property
    def shown(self) -> str:
        """The median, and the smallest and largest value where there are several."""
        middle = format(statistics.median(self.values), self.form)
        if len(self.values) == 1:
            return middle
        return f"{middle} ({min(self.values):{self.form}} to {max(self.values):{self.form}})"


def arguments(text: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark on rows has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a JSON Lines file of preference pairs")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each figure")
    return parser


def show(figure: Figure, as_json: bool) -> None:
    """Print a figure at once: a benchmark takes minutes, and half a table is better than none."""
    if as_json:
        print(json.dumps(asdict(figure)), flush=True)
    else:
        target = f"   (target {figure.target})" if figure.target else ""
        print(f"({figure.part}) {figure.what}: {figure.shown}{target}", flush=True)


def repeated_rows(data: str, rows: int, path: pathlib.Path) -> pathlib.Path:
    """A JSON Lines file of so many different rows: those of `data` again and again, later ones with changed texts.

    The number of the repetition stands before every long text of a row, so that no text is encoded only once for
    several rows.
    """
    lines = pathlib.Path(data).read_text("utf-8").splitlines()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            again, line = divmod(number, len(lines))
            file.write((_changed(lines[line], again) if again else lines[line]) + "\n")
    return path


def _changed(line: str, again: int) -> str:
    row = json.loads(line)
    changed = {
        name: f"{again} {value}" if isinstance(value, str) and len(value) >= LONG else value
        for name, value in row.items()
    }
    return json.dumps(changed, ensure_ascii=False)
