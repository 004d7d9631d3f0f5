"""The order of folders: a module imports from its own folder and from folders below it, never in circles.

Imports under `TYPE_CHECKING` and inside functions count as well.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "ms_prefstream"

ORDER = (
    "errors version",
    "sample checks fingerprint progress disk lines",
    "part_range",
    "plan",
    "lengths",
    "mindrecord",
    "sources",
    "formats",
    "encode.backends",
    "encode",
    "tasks",
    "batch.layouts",
    "batch",
    "report",
    "load",
    "load.workers",
    "steps",
    "cache",
    "mindspore",
    "stream",
    "inspection indexing merging doctor split stats",
    "html",
    "public",
    "__init__",
    "adapters",
    "demo",
    "cli",
    "__main__",
)
"""Bottom up, one storey a line. ARCHITECTURE.md draws it."""

STOREY = {place: storey for storey, line in enumerate(ORDER) for place in line.split()}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def place_of(module: str) -> str:
    """The folder, or the file at the root, that a module belongs to."""
    return max((place for place in STOREY if f"{module}.".startswith(f"{place}.")), key=len)


def imports_of(module: str) -> Iterator[tuple[int, str]]:
    """(line, module of this package) of each import in a module, wherever it is written."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; expected an absolute one"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] == "ms_prefstream":
                inner = name.partition(".")[2]
                while inner and inner not in MODULES:
                    inner = inner.rpartition(".")[0]
                yield getattr(node, "lineno", 0), inner or "__init__"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    here = place_of(module)
    for line, target in imports_of(module):
        there = place_of(target)
        assert here == there or STOREY[there] < STOREY[here], f"{module}:{line} imports {target}, which is above it"


def test_no_circles() -> None:
    """Modules of one folder import each other in one direction."""
    below = {module: {target for _, target in imports_of(module)} - {module} for module in MODULES}
    while leaves := {module for module, targets in below.items() if not targets & below.keys()}:
        for module in leaves:
            del below[module]
    assert not below, f"these modules import each other in a circle: {', '.join(sorted(below))}"


def test_every_module_has_a_place() -> None:
    unplaced = [module for module in MODULES if not any(f"{module}.".startswith(f"{place}.") for place in STOREY)]
    assert not unplaced
