"""The presets by name, and the format that an option ``format=`` means.

A new preset is one file in `presets/` with a factory under `preset`, and its name in `formats/__init__.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.auto import Auto, Entry, Pattern
from ms_prefstream.formats.base import Format, ManyRecords, OneRecord
from ms_prefstream.formats.fields import nearest
from ms_prefstream.formats.mapped import Mapped, MappedMany
from ms_prefstream.formats.unread import MEDIA

_Factory = TypeVar("_Factory", bound=Callable[..., Format])


@dataclass(frozen=True)
class Preset:
    """A format that has a name.

    Args:
        factory: Returns the format; without arguments, with its defaults.
        patterns: The fields by which ``format="auto"`` recognises it; empty if it never does.
        auto_options: Options with which auto uses it; it must then give exactly one record for every row.
    """

    factory: Callable[..., Format]
    patterns: tuple[Pattern, ...]
    auto_options: Mapping[str, Any]


PRESETS: dict[str, Preset] = {}

# Fields of presets that may stand beside a prompt or a conversation alone; beside any other, something is missing.
_HARMLESS = ("query", "question", "instruction", "history", "context", "labels", "scores")


# Fields of presets that no pattern needs.
_OPTIONAL = MEDIA | {
    *("system", "tools", "history", "input", "margin", "label", "kto_tag", "chat_template_kwargs"),
    *("pos_type", "neg_type", "safer_response_id", "score_A", "score_B", "score_ratio"),
}


def preset(*patterns: Pattern, **auto_options: Any) -> Callable[[_Factory], _Factory]:
    """Registers a factory of formats under its own name; arguments as in `Preset`.

    ``@preset(needs(question=TEXT, good=TEXT, bad=TEXT))`` before ``def question() -> OneRecord:``
    """

    def register(factory: _Factory) -> _Factory:
        PRESETS[factory.__name__] = Preset(factory, patterns, auto_options)
        return factory

    return register


def auto() -> Auto:
    """Returns the format that selects a preset for each row from the names and types of its fields.

    Ranked lists give one pair each, the best response against the worst; name the format for other policies.
    """
    entries = []
    for name, found in PRESETS.items():
        read = found.factory(**found.auto_options)
        if isinstance(read, OneRecord):
            entries += [Entry(name, pattern, read) for pattern in found.patterns]
    return Auto(entries, _HARMLESS)


@functools.cache
def standard_names() -> frozenset[str]:
    """Returns the names of all fields that presets read."""
    patterns = [pattern for found in PRESETS.values() for pattern in found.patterns]
    return frozenset(name for pattern in patterns for name in pattern.fields) | _OPTIONAL


def resolve_format(format: Any) -> Format:
    """Returns the format that an option ``format=`` means.

    Args:
        format: A preset's name or ``"auto"``; what a factory returned (``mps.formats.cvalues(types=[...])``); or a
            function ``row -> row`` (auto reads its result) or ``row -> record``. A factory that is not called stands
            for its defaults.

    Raises:
        OptionError: An unknown name, with the nearest known one, or something that cannot be called.
    """
    factories: dict[str, Callable[..., Format]] = {"auto": auto}
    factories |= {name: PRESETS[name].factory for name in sorted(PRESETS)}
    if isinstance(format, str):
        if format in factories:
            return factories[format]()
        guess = nearest(format.lower(), factories)
        raise OptionError(
            f"format is {format!r}; known formats: {', '.join(factories)}"
            + (f". Did you mean {guess!r}?" if guess else ", or a function row -> row.")
        )
    if isinstance(format, (OneRecord, ManyRecords, Auto, Mapped, MappedMany)):
        return format
    if any(format is factory for factory in factories.values()):
        made: Format = format()
        return made
    if not callable(format):
        raise OptionError(
            f"format is {format!r}; expected the name of a preset, a format from ms_prefstream.formats, or a function "
            "row -> row."
        )
    return MappedMany(format, auto()) if callable(getattr(format, "count", None)) else Mapped(format, auto())
