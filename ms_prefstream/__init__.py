"""Streaming preference data for MindSpore: reward, DPO and RLHF batches without an offline conversion step.

Importing the package loads nothing else of it, so that ``ms-prefstream --help`` stays quick. The first use of a public
name loads all of them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from ms_prefstream.version import VERSION

__version__ = VERSION

TYPE_CHECKING = False  # without `typing`, whose import takes longer than that of this file
if TYPE_CHECKING:
    from typing import Any

    from ms_prefstream.public import *  # noqa: F403
    from ms_prefstream.public import __all__ as __all__

_FUNCTIONS = ("doctor", "encode", "split", "stats", "stream")
"""Public functions whose modules or folders have the same names."""


class _Package(ModuleType):
    """The package, with public names that are loaded on first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = importlib.import_module(f"{__name__}.public")
        vars(self).update({known: getattr(public, known) for known in public.__all__})
        vars(self)["__all__"] = ["__version__", *public.__all__]
        if name in vars(self):
            return vars(self)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each submodule in its package; that would replace the function `mps.stream`.
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self.__all__})


sys.modules[__name__].__class__ = _Package
