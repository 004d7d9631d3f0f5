"""Limits of time and memory for chat templates: these come with the files of a tokenizer, and nobody has read them.

A template runs in this process, so it is counted from within. Each block, call, filter, test, comparison and look-up
asks for the time and, if it works for long, for the memory of the process (`tick`). What can make a value much larger
than its arguments, or take much longer, is estimated before it runs (`check_growth`). What a template makes is counted,
and now and then the memory of the process is looked at (`made`). Between two of these no step takes long, since no
value is larger than `LARGEST`.
"""

from __future__ import annotations

import contextlib
import itertools
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
LARGEST = 2**25  # bytes of one text, or of a list as text; one character beyond ASCII counts as four
_MOST = 2**20  # items of a list
_WALKED = 2**18  # characters of a text that is taken apart, or of a name
LONGEST = 2**20  # characters of a template; the largest that models come with have 30,000
_DEEPEST = 200  # lists within lists
_BITS = 10_000  # of a whole number
_LOOK = 16 * 2**20  # bytes that are made between two looks at the memory of the process
_PAUSE = 0.05  # seconds between two looks
_OBJECT = 64  # bytes of a small object
_TOGETHER = 1024  # parts of a text that are counted at once
_PAGE = resource.getpagesize()


class TemplateLimitError(Exception):
    """A template needs more time or memory than it may have; the message is the rest of a sentence about it."""


class _Spent(threading.local):
    """What the rendering of this thread has used."""

    def __init__(self) -> None:
        self.seconds = self.until = math.inf
        self.end = self.begun_at = 0.0
        self.begun = 0  # bytes of memory of the process
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
    now = time.monotonic()
    _spent.seconds, _spent.until = seconds, now + min(seconds, _PAUSE)
    _spent.end = time.thread_time() + seconds
    if now > _spent.begun_at + _PAUSE:
        _spent.begun_at, _spent.begun = now, _memory()
    _spent.made = 0
    try:
        yield
    finally:
        _spent.seconds = _spent.until = math.inf
        _spent.weighed.clear()


def tick() -> None:
    """Raises if this thread has worked for longer, or fills the memory; waiting for a busy machine does not count."""
    if time.monotonic() > _spent.until:
        left = _spent.end - time.thread_time()
        if left < 0:
            raise TemplateLimitError(f"needs more than {_spent.seconds:g} s for one conversation")
        if _spent.seconds - left > _PAUSE:  # else the memory is more likely to be that of other threads
            _look()
        _spent.until = time.monotonic() + min(left, _PAUSE)


def made(value: Any) -> Any:
    """Returns a value that a template has made, and counts it."""
    if isinstance(value, str):
        _count(_size(value))
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
    texts: list[str] = []
    whole, rest = 0, iter(parts)
    while some := list(itertools.islice(rest, _TOGETHER)):
        tick()
        size = sum(map(_size, some))
        whole += size
        _count(size + _OBJECT * len(some))
        if whole > LARGEST and _spent.until < math.inf:
            raise _too_large()
        texts += some
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
            _look()


def _look() -> None:
    """Raises if the process has grown by too much."""
    if _memory() > _spent.begun + MEMORY:
        raise TemplateLimitError(f"needs more than {MEMORY >> 20} MB for one conversation")


def _size(text: str) -> int:
    """Returns the bytes of a text at most; to ask for its length in the usual way would mark a content as read."""
    return str.__len__(text) if str.isascii(text) else 4 * str.__len__(text)


def check_growth(name: str, values: Sequence[Any], named: Mapping[str, Any] | None = None) -> None:
    """Checks the arguments of an operator, a filter or a method whose result may be much larger than they are."""
    tick()
    if name in _LINEAR or _spent.until == math.inf:
        return
    given = [plain(one) if isinstance(one, str) else one for one in (*values, *(named or {}).values())]
    if name in _WALKING and any(isinstance(one, (str, bytes)) and len(one) > _WALKED for one in given):
        raise TemplateLimitError(f"takes apart a text of more than {_WALKED:,} characters ({name})")
    if _GROWTH.get(name, _product)(given) > LARGEST:
        raise _too_large()


def _too_large() -> TemplateLimitError:
    return TemplateLimitError(f"makes a value of more than {LARGEST >> 20} MB or {_MOST:,} items")


def _memory() -> int:
    """Returns the bytes of memory that this process has now; where the system does not say, the most it ever had."""
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
        longer = not (str.isascii(value) or str.isprintable(value))  # \U00012345 for a character of four bytes
        return _size(value) * (3 if longer else 1) + 2, 0
    if not isinstance(value, (list, tuple, dict)):
        return 3 + _written(value), 0
    known = _spent.weighed.get(id(value))
    if known is None:
        kind: Any = next(kind for kind in (list, tuple, dict) if isinstance(value, kind))
        if kind.__len__(value) > _MOST:
            raise _too_large()
        if depth > _DEEPEST:
            raise TemplateLimitError(f"nests values more than {_DEEPEST} deep")
        total, below = 2, 0
        for items in _held(value):
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


def _held(value: Any) -> tuple[Iterable[Any], ...]:
    """Returns what a list or a mapping holds, without marking contents as read."""
    if isinstance(value, dict):
        return dict.keys(value), dict.values(value)
    return (list.__iter__(value) if isinstance(value, list) else value,)


def _amount(value: Any) -> int:
    """Returns by how much an argument may multiply the others."""
    if isinstance(value, str):
        return max(1, _size(value))
    if isinstance(value, bytes):
        return max(1, len(value))
    if isinstance(value, (list, tuple, dict)):
        return max(1, _weigh(value))
    return max(1, abs(value)) if isinstance(value, int) else 1


def _written(value: Any) -> int:
    """Returns the size of an argument that is written: a number has its digits."""
    return 1 + abs(value).bit_length() // 3 if isinstance(value, int) else _amount(value)


def _product(values: Sequence[Any]) -> int:
    """Returns the size of the first value, written as often as the others say."""
    return math.prod([*map(_written, values[:1]), *map(_amount, values[1:])])


def _sum(values: Sequence[Any]) -> int:
    return sum([*map(_written, values[:1]), *map(_amount, values[1:])])


def _times(values: Sequence[Any]) -> int:
    left, right = values
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return 0  # `made` limits the product, and its factors were limited
    return _amount(left) * _amount(right)


def _power(values: Sequence[Any]) -> int:
    left, right = values
    whole = isinstance(left, int) and isinstance(right, int)
    return 2 * LARGEST * (abs(left).bit_length() * right > _BITS) if whole else 0


def _formatted(values: Sequence[Any]) -> int:
    """Returns the length of ``text % values`` or ``text.format(*values)``: every number in the text may be a width."""
    text, *given = values
    if not isinstance(text, str):
        return 0
    if len(text) > _WALKED:
        return 2 * LARGEST  # it has no use, and a field may have many parts
    if len(given) == 1 and isinstance(given[0], tuple):
        given = list(given[0])
    widths = sum(min(int(digits[:12]), 2 * LARGEST) for digits in re.findall("[0-9]+", text))
    inner = (
        [value for value in given if isinstance(value, int)] if "*" in text or re.search(r"\{[^{}]*\{", text) else []
    )
    return (
        len(text) + widths + sum(map(abs, inner)) + text.count("%" if "%" in text else "{") * sum(map(_written, given))
    )


def _pieces(values: Sequence[Any]) -> int:
    """Returns the memory of the pieces of a text, each of which is an object."""
    text, *separator = values
    if not isinstance(text, (str, bytes)):
        return _amount(text)
    known = separator and isinstance(separator[0], type(text)) and separator[0]
    return len(text) + _OBJECT * (text.count(separator[0]) if known else len(text) // 8)


def _searched_back(values: Sequence[Any]) -> int:
    """Returns the steps of a search from the end, which may compare all of what it looks for at each place."""
    text, *given = values
    sizes = [len(one) for one in given if isinstance(one, (str, bytes))]
    return len(text) * sum(sizes) // 32 if isinstance(text, (str, bytes)) else 0


def _pieces_from_end(values: Sequence[Any]) -> int:
    return max(_pieces(values), _searched_back(values))


def _items(values: Sequence[Any]) -> int:
    """Returns the memory of lists whose number is an argument."""
    return _OBJECT * sum(abs(value) for value in values if isinstance(value, int))


def _written_longer(values: Sequence[Any]) -> int:
    return 5 * _written(values[0]) if values else 0


def _replaced(values: Sequence[Any]) -> int:
    text, *both = values
    if len(both) < 2 or not all(isinstance(one, str) for one in (text, *both[:2])):
        return math.prod(map(_written, values[:3]))  # numbers are written, before others replace them
    return len(text) + str.count(text, both[0]) * len(both[1])


def _joined(values: Sequence[Any]) -> int:
    separator, *items = values
    known = [item for item in items if isinstance(item, (list, tuple, dict, str))]
    return sum(_written(separator) * len(item) + _amount(item) for item in known)


def _lines(values: Sequence[Any]) -> int:
    """Returns the length of a text with something before each line, or for each tab."""
    text, *added = values
    marks = text.count("\n") + text.count("\t") + 1 if isinstance(text, str) else 1
    return _amount(text) + marks * sum(map(_amount, added))


def _as_json(values: Sequence[Any]) -> int:
    value, *added = values
    widest = max(map(_amount, added), default=1)
    return _written(value) * (1 + _weight(value, 0)[1] * widest) // 8  # an item may be indented as often as it is deep


def _rounded(values: Sequence[Any]) -> int:
    return 2 * LARGEST * any(isinstance(value, int) and abs(value) > 1000 for value in values[1:])


def _slow(values: Sequence[Any]) -> int:
    """Returns the steps of a filter that walks through the rest of a text again and again."""
    return _product(values) * _written(values[0]) // 32


def _numbers(values: Sequence[Any]) -> int:
    """Returns the steps of a sum: of lists they are as many as the square of their number, too many for any use."""
    return 2 * LARGEST * any(isinstance(value, (list, tuple)) for value in values[1:])


_GROWTH: dict[str, Callable[[Sequence[Any]], int]] = {
    "*": _times,
    "**": _power,
    "%": _formatted,
    "format": _formatted,
    "format_map": _formatted,
    "split": _pieces,
    "rsplit": _pieces_from_end,
    "splitlines": _pieces,
    **dict.fromkeys(("rfind", "rindex", "rpartition"), _searched_back),
    **dict.fromkeys(("batch", "slice"), _items),
    **dict.fromkeys(("e", "escape", "forceescape"), _written_longer),
    **dict.fromkeys(("wordwrap", "urlize", "striptags", "pprint", "xmlattr"), _slow),
    "sum": _numbers,
    "replace": _replaced,
    "join": _joined,
    "tojson": _as_json,
    "round": _rounded,
    **dict.fromkeys(("indent", "expandtabs"), _lines),
    **dict.fromkeys(("center", "ljust", "rjust", "truncate", "zfill"), _sum),
}
# Operators, filters, tests and methods whose result is at most a few times as long as their arguments.
_LINEAR = frozenset({
    *("+", "-", "/", "//", "abs", "attr", "capitalize", "casefold", "count", "d", "default", "encode", "endswith"),
    *("filesizeformat", "find", "first", "float", "get", "in", "index", "int", "isalnum", "isalpha", "isdecimal"),
    *("isdigit", "islower", "isnumeric", "isspace", "isupper", "items", "keys", "last", "length", "lower", "lstrip"),
    *("partition", "random", "removeprefix", "removesuffix", "reverse", "rstrip", "safe", "startswith", "string"),
    *("strip", "swapcase", "trim", "upper", "values"),
})  # fmt: skip
# Those that make an object or take a step for each character of a text, or for each part of the name of an attribute.
_WALKING = frozenset({
    *("batch", "dictsort", "groupby", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr"),
    *("slice", "sort", "strftime", "sum", "title", "unique", "urlencode", "wordcount"),
})  # fmt: skip
_GROWTH.update(dict.fromkeys(_WALKING - _GROWTH.keys(), lambda values: 0))
