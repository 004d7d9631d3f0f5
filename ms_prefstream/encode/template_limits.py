"""Limits of time and memory for chat templates: these come with the files of a tokenizer, and nobody has read them.

A template runs in this process, so it is counted from within. Each block, call, filter, test and comparison asks for
the time (`tick`). What can make a value much larger than its arguments is estimated before it runs (`check_growth`).
What a template makes is counted, and now and then the memory of the process is looked at (`made`). Between two of these
no step takes long, since no value is larger than `LARGEST`.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import re
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ms_prefstream.encode.tracked_text import plain
from ms_prefstream.errors import OptionError

SECONDS = 10.0  # the default of `template_limit_s`
MEMORY = 256 * 2**20  # bytes that the process may grow in one rendering
LARGEST = 2**26  # characters of one text, or of a list as text
_MOST = 2**20  # items of a list
LONGEST = 2**20  # characters of a template; the largest that models come with have 30,000
_DEEPEST = 200  # lists within lists
_BITS = 10_000  # of a whole number
_LOOK = 32 * 2**20  # bytes that are made between two looks at the memory of the process
_PAGE = resource.getpagesize()


class TemplateLimitError(Exception):
    """A template needs more time or memory than it may have; the message is the rest of a sentence about it."""


class _Spent(threading.local):
    """What the rendering of this thread has used."""

    def __init__(self) -> None:
        self.seconds = self.until = math.inf
        self.begun = 0
        self.made = 0
        self.weighed: dict[int, tuple[Any, int, int]] = {}


_spent = _Spent()


def checked_seconds(limit: Any) -> float | None:
    """Returns the option ``template_limit_s``; None where it sets no limit.

    Raises:
        OptionError: It is no positive number.
    """
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, numbers.Real) or not float(limit) > 0:
        raise OptionError(
            f"template_limit_s is {limit!r}; expected a positive number of seconds, or None for no limit."
        )
    return None if limit == math.inf else float(limit)


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Limits what templates do inside of this context, in this thread; None for no limit.

    Raises:
        TemplateLimitError: A limit is exceeded.
    """
    if seconds is None:
        yield
        return
    _spent.seconds, _spent.until = seconds, time.monotonic() + seconds
    _spent.begun, _spent.made = 0, 0
    try:
        yield
    finally:
        _spent.seconds = _spent.until = math.inf
        _spent.weighed.clear()


def tick() -> None:
    """Raises if the time is over."""
    if time.monotonic() > _spent.until:
        raise TemplateLimitError(f"needs more than {_spent.seconds:g} s for one conversation")


def made(value: Any) -> Any:
    """Returns a value that a template has made, and counts it."""
    if isinstance(value, str):
        _count(str.__len__(value))  # to ask for the length of a content would mark it as read
    elif isinstance(value, (list, tuple, dict)):
        if _spent.until < math.inf:
            _count(8 * len(value) + _weigh(value))
    elif isinstance(value, bytes):
        _count(len(value))
    elif isinstance(value, int) and value.bit_length() > _BITS and _spent.until < math.inf:
        raise TemplateLimitError(f"makes a number of {value.bit_length()} bits; {_BITS} are the limit")
    return value


def counted(parts: Iterable[str]) -> list[str]:
    """Returns the parts of a text that is to be joined, and counts it."""
    texts = list(parts)
    _count(sum(map(str.__len__, texts)))
    return texts


def _count(size: int) -> None:
    """Counts a value of so many characters or bytes."""
    if size > LARGEST:
        if _spent.until < math.inf:
            raise _too_large()
        return
    _spent.made += size
    if _spent.made > _LOOK:
        _spent.made = 0
        if _spent.until < math.inf:
            memory = _memory()
            _spent.begun = _spent.begun or memory
            if memory > _spent.begun + MEMORY:
                raise TemplateLimitError(f"needs more than {MEMORY >> 20} MB for one conversation")


def check_growth(name: str, values: Sequence[Any], named: Mapping[str, Any] | None = None) -> None:
    """Checks the arguments of an operator, a filter or a method whose result may be much larger than they are."""
    tick()
    if name in _LINEAR or _spent.until == math.inf:
        return
    given = [plain(one) if isinstance(one, str) else one for one in (*values, *(named or {}).values())]
    if _GROWTH.get(name, _product)(given) > LARGEST:
        raise _too_large()


def _too_large() -> TemplateLimitError:
    return TemplateLimitError(
        f"makes a value of more than {LARGEST >> 20} million characters or {_MOST >> 20} million items"
    )


def _memory() -> int:
    """Returns the bytes of memory that this process has now; where the system does not tell, the most it ever had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _weigh(value: Any) -> int:
    """Returns how many characters a value has as text, at least, where what is in it twice counts twice.

    Lists that hold one list twice, which holds one twice, and so on, are small in memory and endless as text.
    """
    return _weight(value, 0)[0]


def _weight(value: Any, depth: int) -> tuple[int, int]:
    """Returns the weight of a value and how deep it is."""
    if isinstance(value, str):
        return str.__len__(value) + 2, 0
    if not isinstance(value, (list, tuple, dict)):
        return 4, 0
    known = _spent.weighed.get(id(value))
    if known is None:
        if len(value) > _MOST:
            raise _too_large()
        if depth > _DEEPEST:
            raise TemplateLimitError(f"nests values more than {_DEEPEST} deep")
        total, below = 2, 0
        for items in (value, value.values()) if isinstance(value, dict) else (value,):
            for item in items:
                weight, deep = _weight(item, depth + 1)
                total, below = total + weight, max(below, deep)
            if total > LARGEST:
                raise _too_large()
        if below >= _DEEPEST:
            raise TemplateLimitError(f"nests values more than {_DEEPEST} deep")
        known = _spent.weighed[id(value)] = value, total, below + 1  # held, so that no other value gets its id
        tick()
    return known[1], known[2]


def _amount(value: Any) -> int:
    """Returns by how much an argument may multiply the others."""
    if isinstance(value, str):
        return max(1, str.__len__(value))
    if isinstance(value, bytes):
        return max(1, len(value))
    if isinstance(value, (list, tuple, dict)):
        return max(1, _weigh(value))
    return max(1, abs(value)) if isinstance(value, int) else 1


def _product(values: Iterable[Any]) -> int:
    return math.prod(map(_amount, values))


def _sum(values: Iterable[Any]) -> int:
    return sum(map(_amount, values))


def _times(values: Sequence[Any]) -> int:
    left, right = values
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return 0  # `made` limits the product, and its factors were limited
    return _product(values)


def _power(values: Sequence[Any]) -> int:
    left, right = values
    whole = isinstance(left, int) and isinstance(right, int)
    return 2 * LARGEST * (abs(left).bit_length() * right > _BITS) if whole else 0


def _formatted(values: Sequence[Any]) -> int:
    """The length of ``text % values`` or ``text.format(*values)``: every number in the text may be a width."""
    text, *given = values
    if not isinstance(text, str):
        return 0
    if len(given) == 1 and isinstance(given[0], tuple):
        given = list(given[0])
    widths = sum(min(int(digits[:12]), 2 * LARGEST) for digits in re.findall("[0-9]+", text))
    inner = (
        [value for value in given if isinstance(value, int)] if "*" in text or re.search(r"\{[^{}]*\{", text) else []
    )
    return len(text) + widths + sum(map(abs, inner)) + text.count("%" if "%" in text else "{") * _sum(given)


def _pieces(values: Sequence[Any]) -> int:
    """The memory of the pieces of a text, of which each is a value of some 64 bytes."""
    text, *separator = values
    if not isinstance(text, (str, bytes)):
        return _amount(text)
    known = separator and isinstance(separator[0], type(text)) and separator[0]
    return len(text) + 64 * (text.count(separator[0]) if known else len(text) // 2) // 4


def _replaced(values: Sequence[Any]) -> int:
    text, *both = values
    if len(both) < 2 or not all(isinstance(one, str) for one in (text, *both[:2])):
        return _product(values)
    return len(text) + str.count(text, both[0]) * len(both[1])


def _joined(values: Sequence[Any]) -> int:
    separator, *items = values
    known = [item for item in items if isinstance(item, (list, tuple, dict, str))]
    return sum(_amount(separator) * len(item) + _amount(item) for item in known)


def _lines(values: Sequence[Any]) -> int:
    """The length of a text with something before each line, or for each tab."""
    text, *added = values
    marks = text.count("\n") + text.count("\t") + 1 if isinstance(text, str) else 1
    return _amount(text) + marks * _sum(added)


def _as_json(values: Sequence[Any]) -> int:
    value, *added = values
    widest = max(map(_amount, added), default=1)
    return _amount(value) * widest if widest > 16 else 0  # `made` has limited the value


def _rounded(values: Sequence[Any]) -> int:
    return 2 * LARGEST * any(isinstance(value, int) and abs(value) > 1000 for value in values[1:])


def _slow(values: Sequence[Any]) -> int:
    """The steps of a filter that walks through the rest of a text again and again."""
    return _product([*values, values[0]])


def _numbers(values: Sequence[Any]) -> int:
    """The steps of a sum: for lists they are as many as the square of their number, which nobody needs."""
    return 2 * LARGEST * any(isinstance(value, (list, tuple)) for value in values[1:])


_GROWTH: dict[str, Callable[[Sequence[Any]], int]] = {
    "*": _times,
    "**": _power,
    "%": _formatted,
    "format": _formatted,
    "format_map": _formatted,
    "split": _pieces,
    "rsplit": _pieces,
    "splitlines": _pieces,
    "list": _pieces,
    **dict.fromkeys(("wordwrap", "urlize", "striptags", "pprint", "xmlattr"), _slow),
    "sum": _numbers,
    "replace": _replaced,
    "join": _joined,
    "tojson": _as_json,
    "round": _rounded,
    **dict.fromkeys(("indent", "expandtabs"), _lines),
    **dict.fromkeys(("batch", "center", "ljust", "rjust", "slice", "truncate", "zfill"), _sum),
}
# Operators, filters, tests and methods whose result is at most a few times as long as their arguments.
_LINEAR = frozenset({
    *("+", "-", "/", "//", "abs", "attr", "capitalize", "casefold", "count", "d", "default", "dictsort", "e", "encode"),
    *("endswith", "escape", "filesizeformat", "find", "first", "float", "forceescape", "get", "groupby", "in", "index"),
    *("int", "isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "isupper", "items"),
    *("keys", "last", "length", "lower", "lstrip", "map", "max", "min", "partition", "random", "reject", "rejectattr"),
    *("removeprefix", "removesuffix", "reverse", "rfind", "rindex", "rpartition", "rstrip", "safe", "select"),
    *("selectattr", "sort", "startswith", "string", "strip", "swapcase", "title", "trim", "unique", "upper"),
    *("urlencode", "values", "wordcount"),
})  # fmt: skip
