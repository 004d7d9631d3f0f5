"""Short hashes: of byte strings, and of the code of a user's function and the plain values in it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any


def hash_of(parts: Iterable[bytes]) -> str:
    """Returns one short hash of several byte strings and of their lengths."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def code_hash(function: Any) -> str:
    """Returns a short hash of a function, the same in every process of one version of Python.

    It covers the code of the function (of the method ``__call__`` for other callables), nested functions included, its
    default values, and the values in its closure and in a `functools.partial`, as far as these are plain and immutable.
    Functions that it calls, and data that it looks up while it runs, are not covered.

    Args:
        function: Any callable.
    """
    digest = hashlib.sha256()
    for part in _parts(function):
        digest.update(part.encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()[:8]


def _parts(function: Any) -> Iterator[str]:
    if isinstance(function, functools.partial):
        yield from _parts(function.func)
        yield _plain((function.args, tuple(sorted(function.keywords.items()))))
        return
    if not hasattr(function, "__code__"):
        yield _plain(tuple(sorted(getattr(function, "__dict__", {}).items())))
        function = vars(type(function)).get("__call__")
    code = getattr(function, "__code__", None)
    if code is None:
        return  # a built-in function, which its name identifies
    yield from _code(code)
    yield _plain((function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items()))))
    for cell in getattr(function, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield from _parts(value) if hasattr(value, "__code__") and value is not function else [_plain(value)]


def _code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield " ".join(code.co_names)
    for constant in code.co_consts:
        yield from _code(constant) if isinstance(constant, CodeType) else [_plain(constant)]


def _plain(value: Any) -> str:
    """Returns a value as text if it is plain and immutable, else its type's name: other texts may hold addresses."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_plain, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_plain, value)))}}}"
    return type(value).__qualname__
