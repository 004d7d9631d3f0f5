"""The presets by name: one line each. A new preset is one function in `presets/` and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.auto import LIST, NUMBER, TEXT, TURNS, Auto, Entry, Pattern, alone, needs
from ms_prefstream.formats.base import Format, ManyRecords, OneRecord
from ms_prefstream.formats.fields import nearest
from ms_prefstream.formats.mapped import Mapped, MappedMany
from ms_prefstream.formats.presets.alpaca import alpaca
from ms_prefstream.formats.presets.chat import messages
from ms_prefstream.formats.presets.cvalues import cvalues
from ms_prefstream.formats.presets.helpsteer3 import helpsteer3
from ms_prefstream.formats.presets.hh_rlhf import hh_rlhf
from ms_prefstream.formats.presets.nectar import nectar
from ms_prefstream.formats.presets.orca import orca
from ms_prefstream.formats.presets.plain import strings
from ms_prefstream.formats.presets.ranked import ranked
from ms_prefstream.formats.presets.safe_rlhf import safe_rlhf
from ms_prefstream.formats.presets.sharegpt import sharegpt
from ms_prefstream.formats.presets.shp import shp
from ms_prefstream.formats.presets.stack_exchange import stack_exchange
from ms_prefstream.formats.presets.tokenized import tokenized
from ms_prefstream.formats.presets.ultrafeedback import orpo_mix, ultrafeedback


@dataclass(frozen=True)
class Preset:
    """A format that has a name.

    Args:
        factory: Makes the format; without arguments, its defaults.
        patterns: The fields by which ``format="auto"`` recognises it; empty if it never does.
        auto_options: Options under which auto uses it; it must then give exactly one record for every row.
    """

    factory: Callable[..., Format]
    patterns: tuple[Pattern, ...] = ()
    auto_options: Mapping[str, Any] = field(default_factory=dict)


_PAIR = {"chosen": TURNS, "rejected": TURNS}
_LISTS = {"chosen": LIST, "rejected": LIST}
_STRINGS = {"chosen": TEXT, "rejected": TEXT}
_ONE_PAIR = {"policy": "best_worst"}

PRESETS: Mapping[str, Preset] = {
    "messages": Preset(
        messages,
        (
            needs(prompt=TURNS, **_PAIR),
            needs(**_LISTS),
            needs(prompt=TURNS, response=TURNS),
            alone(prompt=TURNS, messages=LIST),
            alone(messages=LIST),
            alone(prompt=TURNS),
        ),
    ),
    "strings": Preset(
        strings,
        (needs(prompt=TEXT, **_STRINGS), needs(prompt=TEXT, response=TEXT), alone(prompt=TEXT)),
        {"dialogues": False},
    ),
    "cvalues": Preset(cvalues, (needs(prompt=TEXT, pos_resp=TEXT, neg_resp=TEXT),)),
    "sharegpt": Preset(sharegpt, (needs(conversations=LIST, **_PAIR), alone(conversations=LIST))),
    "tokenized": Preset(
        tokenized,
        (
            needs(prompt_ids=LIST, chosen_ids=LIST, rejected_ids=LIST),
            needs(prompt_ids=LIST, response_ids=LIST),
            alone(prompt_ids=LIST),
        ),
    ),
    "hh_rlhf": Preset(hh_rlhf, (needs(**_STRINGS),)),
    "ultrafeedback": Preset(ultrafeedback, (needs(prompt=TURNS, score_chosen=NUMBER, score_rejected=NUMBER, **_PAIR),)),
    "orpo_mix": Preset(orpo_mix, (needs(question=TEXT, **_LISTS), needs(prompt=TEXT, question=TEXT, **_LISTS))),
    "orca": Preset(orca, (needs(question=TEXT, **_STRINGS),)),
    "alpaca": Preset(
        alpaca,
        (
            needs(instruction=TEXT, **_STRINGS),
            needs(instruction=TEXT, output=LIST),
            needs(instruction=TEXT, output=TEXT),
        ),
    ),
    "stack_exchange": Preset(stack_exchange, (needs(question=TEXT, response_j=TEXT, response_k=TEXT),)),
    "shp": Preset(shp, (needs(history=TEXT, human_ref_A=TEXT, human_ref_B=TEXT, labels=NUMBER),)),
    "safe_rlhf": Preset(safe_rlhf, (needs(prompt=TEXT, response_0=TEXT, response_1=TEXT, better_response_id=NUMBER),)),
    "helpsteer3": Preset(
        helpsteer3, (needs(context=TURNS, response1=TEXT, response2=TEXT, overall_preference=NUMBER),)
    ),
    "nectar": Preset(nectar, (needs(prompt=TEXT, answers=LIST),), _ONE_PAIR),
    "ranked": Preset(
        ranked,
        (
            needs(prompt=TURNS, responses=LIST),
            needs(prompt=TURNS, responses=LIST, scores=LIST),
            needs(prompt=TURNS, completions=LIST, scores=LIST),
            needs(prompt=TURNS, completions=LIST),
        ),
        _ONE_PAIR,
    ),
}

# Fields of presets that may stand beside a prompt or a conversation alone; beside any other, something is missing.
_HARMLESS = ("question", "instruction", "history", "context", "labels", "scores")


def auto() -> Auto:
    """The format that decides per row which preset reads it, from the names and types of the fields.

    Ranked lists give one pair each, the best response against the worst; name the format for other policies.
    """
    entries = []
    for name, preset in PRESETS.items():
        read = preset.factory(**preset.auto_options)
        if isinstance(read, OneRecord):
            entries += [Entry(name, pattern, read) for pattern in preset.patterns]
    return Auto(entries, _HARMLESS)


def resolve_format(format: Any) -> Format:
    """The format that an option ``format=`` stands for.

    Args:
        format: A preset's name or ``"auto"``; what a factory returned (``mps.formats.cvalues(types=[...])``); or a
            function ``row -> row`` (auto reads its result) or ``row -> record``. A factory without its brackets
            stands for its defaults.

    Raises:
        OptionError: An unknown name, naming the nearest, or something that cannot be called.
    """
    factories: dict[str, Callable[..., Format]] = {"auto": auto, **{name: p.factory for name, p in PRESETS.items()}}
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
