"""The user's own modules: which they are, and how a worker gets the same ones."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Constants: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Module -> name -> value."""

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_MOST_ITEMS = 2000


def users_modules() -> list[types.ModuleType]:
    """The imported modules that are the user's own; `__main__`, which always goes by value, is none of them."""
    return [module for name, module in list(sys.modules.items()) if _is_users(name, module)]


def constants() -> Constants:
    """The constants of the user's modules, as they are now."""
    found = {
        module.__name__: {name: value for name, value in vars(module).items() if name.isupper() and _is_plain(value)}
        for module in users_modules()
    }
    return {name: values for name, values in found.items() if values}


def set_constants(found: Constants) -> None:
    """Give the modules that were imported here the constants of another process, where they differ."""
    for name, values in found.items():
        module = sys.modules.get(name)
        for key, value in values.items() if module is not None else ():
            here = vars(module).get(key, ...)
            if type(here) is not type(value) or not _is_plain(here) or here != value:
                setattr(module, key, value)


def not_importable(names: Iterable[str]) -> list[types.ModuleType]:
    """The user's modules, among those of these names and beside them, that another process would not find."""
    tops = {name.partition(".")[0] for name in names}
    own = [module for module in users_modules() if module.__name__.partition(".")[0] in tops]
    lost = {top for top in {module.__name__.partition(".")[0] for module in own} if not _is_found(top)}
    return [module for module in own if module.__name__.partition(".")[0] in lost]


@contextlib.contextmanager
def by_value(pickler: Any, modules: Iterable[types.ModuleType]) -> Iterator[None]:
    """Let a module like `cloudpickle` send what these modules define by value."""
    known = pickler.list_registry_pickle_by_value()
    with contextlib.ExitStack() as stack:
        for module in modules:
            if module.__name__ not in known:
                pickler.register_pickle_by_value(module)
                stack.callback(pickler.unregister_pickle_by_value, module)
        yield


def _is_users(name: str, module: Any) -> bool:
    if not isinstance(module, types.ModuleType) or module.__name__ != name:
        return False
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):  # of the interpreter, or made by a program
        return getattr(module, "__spec__", None) is None
    return not any(part in file for part in _INSTALLED) and not file.startswith(_STANDARD)


def _is_found(name: str) -> bool:
    """Whether an import would find a module that is imported already; editable installs have finders of their own."""
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            if finder.find_spec(name, None) is not None:
                return True
    return False


def _is_plain(value: Any) -> bool:
    """Whether a value consists of plain values alone, and of few."""
    if type(value) in _PLAIN:
        return True
    if type(value) is dict:
        return 2 * len(value) <= _MOST_ITEMS and _is_plain([*value, *value.values()])
    return type(value) in (tuple, list, set, frozenset) and len(value) <= _MOST_ITEMS and all(map(_is_plain, value))
