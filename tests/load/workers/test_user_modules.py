"""The user's modules in workers: imported there, with the constants of the program; or sent; or refused by name."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types
from typing import Any

import cloudpickle
import numpy as np
import pytest

from ms_prefstream.errors import OptionError
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.user_modules import constants, set_constants, users_modules
from tests.pools import pairs, plain, recipe, wait_ready

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


@pytest.mark.slow
@pytest.mark.parametrize("importable", [True, False])
def test_workers_see_the_constants_of_a_module(
    importable: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_module(tmp_path / f"options_{importable}_of_a_test.py", OPTIONS, monkeypatch)
    if importable:
        monkeypatch.syspath_prepend(tmp_path)
    module.SUFFIX = " Be brief."
    for format in (module.add, module.Adder(), lambda row: module.add(row)):
        made = recipe(pairs(20, bad=False), format=format)
        with LoaderPool(made, 1) as pool:
            wait_ready(pool)
            found = pool.load(range(20))
        assert plain(found) == plain(made.loader().load(range(20)))
        assert plain(found) != plain(recipe(pairs(20, bad=False)).loader().load(range(20)))
    assert cloudpickle.list_registry_pickle_by_value() == set()  # nothing is left behind for other libraries


KINDS = """
import enum

class Kind(enum.Enum):
    BRIEF = 1

class Named:
    def __init_subclass__(cls):
        assert cls.name

MISSING = object()
"""
FORMAT = """
import threading

from kinds_of_a_test import MISSING, Kind, Named

LOCK = threading.Lock()

class Format(Named):
    name = "format"

    def __init__(self):
        self.kind = Kind.BRIEF

    def __call__(self, row):
        from kinds_of_a_test import MISSING as missing, Kind as again

        with LOCK:
            return {**row, "prompt": f"{self.kind is again.BRIEF} {missing is MISSING}"}
"""


def test_modules_that_can_be_imported_are_and_what_is_one_thing_stays_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of classes, enums and markers beside those that a worker imports would not be the same."""
    load_module(tmp_path / "kinds_of_a_test.py", KINDS, monkeypatch)
    module = load_module(tmp_path / "format_of_a_test.py", FORMAT, monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    assert module.Format()({})["prompt"] == "True True"
    made = recipe(pairs(20, bad=False), format=module.Format())
    with LoaderPool(made, 1) as pool:
        wait_ready(pool)
        assert plain(pool.load(range(20))) == plain(made.loader().load(range(20)))


def test_a_module_that_is_neither_found_nor_sent_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_module(tmp_path / "locked_of_a_test.py", LOCKED, monkeypatch)
    made = recipe(pairs(20, bad=False), format=module.same)
    said = r"sends the format .*same .*would not find the module locked_of_a_test on sys.path, and it cannot be sent"
    with pytest.raises(OptionError, match=said):
        LoaderPool(made, 1)
    assert cloudpickle.list_registry_pickle_by_value() == set()
    monkeypatch.syspath_prepend(tmp_path)
    with LoaderPool(made, 1) as pool:
        wait_ready(pool)
        assert plain(pool.load(range(20))) == plain(made.loader().load(range(20)))


def test_what_is_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_by_a_test")
    values = {"A": 1, "B": ("x", [None, {"y": 2.0}]), "C": {1, 2}, "D_1": "é"}
    others = {"lower": 1, "Mixed": 1, "E": object(), "F": [object()], "G": dict.fromkeys(range(2000)), "H": [[open]]}
    vars(module).update(values | others)
    monkeypatch.setitem(sys.modules, "made_by_a_test", module)
    found = constants()["made_by_a_test"]
    assert found == values
    kept = module.C  # type: ignore[attr-defined]
    module.A = True  # type: ignore[attr-defined]
    module.B = np.zeros(3)  # type: ignore[attr-defined]
    set_constants({"made_by_a_test": found, "not_imported": {"A": 1}})
    assert type(module.A) is int  # type: ignore[attr-defined]
    assert values["B"] == module.B  # type: ignore[attr-defined]
    assert module.C is kept  # type: ignore[attr-defined]  # what is equal is left alone


def test_whose_modules_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings:
        __name__ = "settings_of_a_test"
        __file__ = "settings.py"

    monkeypatch.setitem(sys.modules, "settings_of_a_test", Settings())  # type: ignore[arg-type]
    own = {module.__name__ for module in users_modules()}
    assert __name__ in own
    others = {"sys", "os", "json", "numpy", "pytest", "ms_prefstream", "ms_prefstream.errors", "__main__"}
    assert not (others | {"settings_of_a_test"}) & own
