"""Functions of the user's modules on their way to other processes: by value, as they are now.

A function that is sent by name is imported anew there, and does not see what was set in its module after the import::

    import settings                     # SUFFIX = ""
    settings.SUFFIX = " Be brief."      # as a program does that reads its options
    mps.stream(..., format=settings.with_suffix, workers=2)

Modules of the standard library, of installed packages and of this one go by name.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from typing import Any

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))


@contextlib.contextmanager
def users_modules_by_value(pickler: Any) -> Iterator[None]:
    """Let a module like `cloudpickle` send what the user's modules define by value.

    Args:
        pickler: `cloudpickle`, or a copy of it such as `ray.cloudpickle`.
    """
    known = pickler.list_registry_pickle_by_value()
    added = [module for name, module in users_modules() if name not in known]
    for module in added:
        pickler.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            pickler.unregister_pickle_by_value(module)


def users_modules() -> list[tuple[str, Any]]:
    """The imported modules that are the user's own, with their names; `__main__` always goes by value."""
    return [(name, module) for name, module in list(sys.modules.items()) if _is_users(name, module)]


def not_found(names: Iterable[str]) -> list[str]:
    """Those of these modules of the user that another process, with the same path, would not find."""
    own = {name for name, _ in users_modules()}
    tops = {name.partition(".")[0] for name in names if name in own}
    return sorted(top for top in tops if importlib.machinery.PathFinder.find_spec(top) is None)


def _is_users(name: str, module: Any) -> bool:
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    if getattr(module, "__name__", None) != name:
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):  # of the interpreter, or made by a program
        return isinstance(module, types.ModuleType) and getattr(module, "__spec__", None) is None
    return not any(part in file for part in _INSTALLED) and not file.startswith(_STANDARD)
