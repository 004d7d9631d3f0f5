"""Makes the pictures of README and documents, light and dark.

    python docs/figures/make.py                  # all of them
    python docs/figures/make.py padding batches  # these

`inspect` needs a tokenizer and `report` a browser; their modules say where from.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

from batches import batches
from charts import padding, throughput
from drawing import THEMES
from report_page import report
from row_walk import row_walk
from terminal import inspect

FOLDER = pathlib.Path(__file__).parent
SVG: dict[str, Callable[[str], str]] = {
    "row-walk": row_walk,
    "batches": batches,
    "inspect": inspect,
    "padding": padding,
    "throughput": throughput,
}
PNG: dict[str, Callable[[str], bytes]] = {"report": report}


def main(names: list[str]) -> None:
    """Writes the pictures of these names; of all if there are none."""
    for name in names or [*SVG, *PNG]:
        for theme in THEMES:
            if name in SVG:
                (FOLDER / f"{name}-{theme}.svg").write_text(SVG[name](theme), encoding="utf-8")
            else:
                (FOLDER / f"{name}-{theme}.png").write_bytes(PNG[name](theme))


if __name__ == "__main__":
    main(sys.argv[1:])
