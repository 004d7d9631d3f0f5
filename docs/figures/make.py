"""Makes the pictures of README and documents, light and dark.

python docs/figures/make.py                  # all of them
python docs/figures/make.py padding batches  # these
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

from batches import batches
from drawing import THEMES
from row_walk import row_walk

FOLDER = pathlib.Path(__file__).parent
SVG: dict[str, Callable[[str], str]] = {"row-walk": row_walk, "batches": batches}


def main(names: list[str]) -> None:
    """Writes the pictures of these names; of all if there are none."""
    for name in names or SVG:
        for theme in THEMES:
            (FOLDER / f"{name}-{theme}.svg").write_text(SVG[name](theme), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
