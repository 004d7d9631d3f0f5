"""The user's own modules: which they are, and how a worker gets the same ones."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import cloudpickle

Constants: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Module -> name -> value."""

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_MOST_ITEMS = 2000


def users_modules() -> list[types.ModuleType]:
    """Returns the imported modules of the user, without `__main__`, which is always pickled by value."""
    return [module for name, module in list(sys.modules.items()) if _is_users(name, module)]


def constants() -> Constants:
    """Returns the UPPER_CASE constants of the user's modules, as they are now."""
    found = {
        module.__name__: {name: value for name, value in vars(module).items() if name.isupper() and _is_plain(value)}
        for module in users_modules()
    }
    return {name: values for name, values in found.items() if values}


def set_constants(found: Constants) -> None:
    """Gives the modules that are imported here the constants of another process, where they differ."""
    for name, values in found.items():
        module = sys.modules.get(name)
        for key, value in values.items() if module is not None else ():
            here = vars(module).get(key, ...)
            if type(here) is not type(value) or not _is_plain(here) or here != value:
                setattr(module, key, value)


def not_importable(names: Iterable[str]) -> list[types.ModuleType]:
    """Returns those of the user's modules in the packages of these names that another process could not import."""
    tops = {name.partition(".")[0] for name in names}
    own = {module: module.__name__.partition(".")[0] for module in users_modules()}
    found = {top: _is_found(top) for top in tops & set(own.values())}
    return [module for module, top in own.items() if not found.get(top, True)]


@contextlib.contextmanager
def by_value(modules: Iterable[types.ModuleType]) -> Iterator[None]:
    """Lets cloudpickle pickle what these modules define by value."""
    known = cloudpickle.list_registry_pickle_by_value()
    with contextlib.ExitStack() as stack:
        for module in modules:
            if module.__name__ not in known:
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def _is_users(name: str, module: Any) -> bool:
    """Returns whether a module is neither installed, nor of Python or this library, nor the program itself."""
    if not isinstance(module, types.ModuleType) or module.__name__ != name:
        return False
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):  # built in, or made by a program
        return getattr(module, "__spec__", None) is None
    return not any(part in file for part in _INSTALLED) and not file.startswith(_STANDARD)


def _is_found(name: str) -> bool:
    """Returns whether an import would find an imported module; editable installs have finders of their own."""
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            if finder.find_spec(name, None) is not None:
                return True
    return False


def _is_plain(value: Any) -> bool:
    """Returns whether a value consists of plain values, and of few."""
    if type(value) in _PLAIN:
        return True
    if type(value) is dict:
        return 2 * len(value) <= _MOST_ITEMS and _is_plain([*value, *value.values()])
    return type(value) in (tuple, list, set, frozenset) and len(value) <= _MOST_ITEMS and all(map(_is_plain, value))
