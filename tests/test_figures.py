"""The pictures of README and documents are what their scripts make, and small; `make figures` makes them again."""

from __future__ import annotations

import pathlib
import re
import runpy
import sys
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "figures"
THEMES = ("light", "dark")
LOADED = re.compile(r"href=|url\([^#]|@import|<script|https?://(?!www\.w3\.org/2000/svg)")
SVG = ("row-walk", "batches", "inspect", "padding", "throughput")


@pytest.fixture(scope="module")
def made() -> Any:
    """The names of `make.py`."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield runpy.run_path(str(FOLDER / "make.py"))
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", SVG)
def test_a_picture_is_what_its_script_makes(name: str, theme: str, made: Any, request: pytest.FixtureRequest) -> None:
    if name == "inspect":
        request.getfixturevalue("shared")
    assert (FOLDER / f"{name}-{theme}.svg").read_text(encoding="utf-8") == made["SVG"][name](theme), (
        f"python docs/figures/make.py {name}"
    )


def test_every_picture_exists_in_both_themes_is_small_and_loads_nothing(made: Any) -> None:
    assert tuple(made["SVG"]) == SVG
    expected = {f"{name}-{theme}.svg" for name in SVG for theme in THEMES}
    expected |= {f"{name}-{theme}.png" for name in made["PNG"] for theme in THEMES}
    found = {path.name: path for path in FOLDER.iterdir() if path.suffix in (".svg", ".png")}
    assert set(found) == expected
    for name, path in found.items():
        assert path.stat().st_size < (150_000 if path.suffix == ".png" else 60_000), name
        if path.suffix == ".svg":
            assert LOADED.findall(path.read_text(encoding="utf-8")) == [], name
