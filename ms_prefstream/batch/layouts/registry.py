"""Every layout by its name. A new layout is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.batch.layouts.concat import concat
from ms_prefstream.batch.layouts.kto import kto
from ms_prefstream.batch.layouts.mindformers import mindformers
from ms_prefstream.batch.layouts.paired import paired
from ms_prefstream.batch.layouts.process_reward import process_reward
from ms_prefstream.batch.layouts.prompts import prompts
from ms_prefstream.batch.layouts.reward_token import reward_token
from ms_prefstream.batch.layouts.rlhf import rlhf
from ms_prefstream.errors import OptionError


class _Entry(NamedTuple):
    make: Callable[..., Layout]
    accepts: frozenset[str]  # which further options of `make_layout` the layout has columns for


_REGISTRY = {
    "paired": _Entry(paired, frozenset({"with_ref_logps"})),
    "concat": _Entry(concat, frozenset()),
    "mindformers": _Entry(mindformers, frozenset()),
    "reward_token": _Entry(reward_token, frozenset()),
    "rlhf": _Entry(rlhf, frozenset({"max_prompt_length"})),
    "kto": _Entry(kto, frozenset({"with_ref_logps"})),
    "process_reward": _Entry(process_reward, frozenset()),
    "prompts": _Entry(prompts, frozenset()),
}

LAYOUT_NAMES = tuple(_REGISTRY)


def make_layout(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    with_ref_logps: bool = False,
    max_prompt_length: int | None = None,
    **options: Any,
) -> Layout:
    """Returns the layout with that name and the requested optional columns.

    Args:
        name: One of `LAYOUT_NAMES`.
        columns: Values of the samples that the batch has as columns, see `Layout.with_columns`.
        with_ref_logps: Add the reference log-probabilities, (B, 1) float32 a side (`paired`, `kto`).
        max_prompt_length: Columns of prompt_ids (`rlhf`, which needs it).
        options: Further options of the layout, which its task gives (`Traits.layout_options`).

    Raises:
        OptionError: There is no such layout, or it does not have the requested columns.
    """
    entry = _REGISTRY.get(name)
    if entry is None:
        raise OptionError(f"layout is {name!r}; it must be one of {', '.join(LAYOUT_NAMES)}.")
    asked = {"with_ref_logps": with_ref_logps, "max_prompt_length": max_prompt_length}
    wanted = {option: value for option, value in asked.items() if value is not None and value is not False}
    for option in [option for option in wanted if option not in entry.accepts]:
        able = ", ".join(other for other, its in _REGISTRY.items() if option in its.accepts)
        raise OptionError(f"layout {name!r} has no place for {option}={wanted[option]!r}; these have: {able}.")
    if "max_prompt_length" in entry.accepts and max_prompt_length is None:
        raise OptionError(f"layout {name!r} needs max_prompt_length, the number of columns of prompt_ids.")
    return entry.make(**wanted, **options).with_columns(columns or {})
