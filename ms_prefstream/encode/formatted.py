"""``"…%s…" % (…)`` and ``"…{}…".format(…)`` in chat templates, with the contents in them still tracked."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from ms_prefstream.encode.track import Tracked, joined

_PERCENT = re.compile("%(.?)", re.DOTALL)


def percent(text: str, values: Any) -> str | None:
    """``text % values`` where every conversion is a plain ``%s``; None where another way is needed.

    Args:
        text: The template's own text.
        values: One value, or a tuple of them.
    """
    given = list(values) if isinstance(values, tuple) else [values]
    kinds = _PERCENT.findall(text)
    if set(kinds) - {"s", "%"} or kinds.count("s") != len(given) or not any(map(_is_tracked, given)):
        return None
    parts: list[str] = []
    end = 0
    for match in _PERCENT.finditer(text):
        parts.append(text[end : match.start()])
        parts.append("%" if match.group(1) == "%" else str(given.pop(0)))
        end = match.end()
    return joined([*parts, text[end:]])


def braces(text: str, values: Sequence[Any], named: Mapping[str, Any]) -> str | None:
    """``text.format(*values, **named)`` where every field is plain: ``{}``, ``{0}`` or ``{name}``; None otherwise."""
    if not any(map(_is_tracked, (*values, *named.values()))):
        return None
    parts: list[str] = []
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError:
        return None  # Jinja says what is wrong with it
    for number, (before, name, form, conversion) in enumerate(fields):
        parts.append(before)
        if name is None:
            continue
        if form or conversion:
            return None
        if name == "" and all(other in ("", None) for _, other, _, _ in fields):
            place: Any = sum(other is not None for _, other, _, _ in fields[:number])
        else:
            place = int(name) if name.isdigit() else name
        found = named.get(place) if isinstance(place, str) else values[place] if place < len(values) else None
        if found is None:
            return None
        parts.append(str(found))
    return joined(parts)


def _is_tracked(value: Any) -> bool:
    return isinstance(value, Tracked)
