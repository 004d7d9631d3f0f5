"""Responses in steps, each with a label: what process reward models are trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import LIST, TURNS, unless
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.fields import as_number, missing, present, wrong_type
from ms_prefstream.formats.messages import turns
from ms_prefstream.formats.presets.ranked import as_list
from ms_prefstream.formats.record import Stepwise
from ms_prefstream.formats.registry import preset


@preset(unless(prompt=TURNS, completions=LIST, labels=LIST))
def stepwise() -> OneRecord:
    """Reads responses in steps, as TRL and axolotl have them; each step has a label.

    ``{prompt: "1 + 1 + 1", completions: ["1 + 1 = 2", "2 + 1 = 4"], labels: [true, false]}`` ->
    ``Stepwise(prompt=(user "1 + 1 + 1"), steps=("1 + 1 = 2", "2 + 1 = 4"), labels=(True, False))``

    * `prompt`: a string or a list of turns.
    * `completions`: the steps, strings without what separates them.
    * `labels`: true, false or a number for each step; true and larger numbers are better.
    * Optional: `system` (a string), `tools` (schemas).
    """
    return OneRecord("stepwise", read_stepwise)


def read_stepwise(row: Row) -> Stepwise:
    """Returns one row with its steps and labels."""
    steps, labels = as_list(present(row, "completions"), "completions"), as_list(present(row, "labels"), "labels")
    if len(steps) != len(labels):
        raise RowError(
            Reason.BAD_TYPE,
            f"field 'completions' has {len(steps)} steps and field 'labels' has {len(labels)} labels; expected a label "
            "for each step",
        )
    if not steps:
        raise RowError(Reason.EMPTY_RESPONSE, "field 'completions' is empty; expected at least one step")
    prompt = turns(present(row, "prompt"), "prompt", "user")
    if not prompt:
        raise missing(row, "prompt")
    return Stepwise(
        prompt,
        steps=tuple(_step(step, f"item {index} of field 'completions'") for index, step in enumerate(steps, 1)),
        labels=tuple(_label(label, f"item {index} of field 'labels'") for index, label in enumerate(labels, 1)),
    )


def _step(value: Any, where: str) -> str:
    if isinstance(value, str):
        return str(value)
    raise wrong_type(where, value, "a step, a string", "Pass format='ranked' for responses with scores")


def _label(value: Any, where: str) -> bool | float:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return as_number(value, where)
