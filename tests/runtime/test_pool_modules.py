"""Functions of modules: workers see them as they are in the program, and what they cannot see is refused by name."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

import cloudpickle
import pytest

from ms_prefstream.errors import OptionError
from ms_prefstream.runtime.pool import LoaderPool
from ms_prefstream.runtime.pool_modules import users_modules
from tests.runtime.pools import pairs, plain, recipe

OPTIONS = """
SUFFIX = ""

def add(row):
    return {**row, "prompt": row["prompt"] + SUFFIX}

class Adder:
    def __call__(self, row):
        return add(row)
"""
LOCKED = """
import threading

LOCK = threading.Lock()

def same(row):
    with LOCK:
        return row
"""


def load_module(path: pathlib.Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module from a file, under the file's name; the folder is not on the path."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("importable", [True, False])
def test_workers_see_what_was_set_in_a_module(
    importable: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_module(tmp_path / "options_of_a_test.py", OPTIONS, monkeypatch)
    if importable:
        monkeypatch.syspath_prepend(tmp_path)
    module.SUFFIX = " Be brief."
    for format in (module.add, module.Adder(), lambda row: module.add(row)):
        made = recipe(pairs(20, bad=False), format=format)
        with LoaderPool(made, 1) as pool:
            pool.wait()
            found = pool.load(range(20))
        assert plain(found) == plain(made.loader().load(range(20)))
        assert plain(found) != plain(recipe(pairs(20, bad=False)).loader().load(range(20)))
    assert cloudpickle.list_registry_pickle_by_value() == set()  # nothing is left behind for other libraries


def test_a_module_that_cannot_be_sent_goes_by_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module(tmp_path / "locked_of_a_test.py", LOCKED, monkeypatch)
    made = recipe(pairs(20, bad=False), format=module.same)
    with pytest.raises(OptionError, match=r"sends the format .*same .*would not find the module locked_of_a_test on"):
        LoaderPool(made, 1)
    monkeypatch.syspath_prepend(tmp_path)
    with LoaderPool(made, 1) as pool:
        pool.wait()
        assert plain(pool.load(range(20))) == plain(made.loader().load(range(20)))


def test_whose_modules_are_the_users() -> None:
    own = {name for name, _ in users_modules()}
    assert __name__ in own
    assert not {"sys", "os", "json", "numpy", "pytest", "ms_prefstream", "ms_prefstream.errors", "__main__"} & own
