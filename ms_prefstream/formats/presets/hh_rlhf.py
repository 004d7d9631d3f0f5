"""Anthropic hh-rlhf: two whole dialogues, each one string with role markers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.dialogue import dialogue
from ms_prefstream.formats.divide import History, check_history, divide
from ms_prefstream.formats.fields import margin_of, text
from ms_prefstream.formats.record import Pair


def hh_rlhf(history: History = "strict") -> OneRecord:
    r"""hh-rlhf rows; `chosen` is the better dialogue, `rejected` the worse one.

    ``{chosen: "\n\nHuman: Hi\n\nAssistant: Hello", rejected: "\n\nHuman: Hi\n\nAssistant: What"}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    The prompt ends at a role marker, never inside a turn. One space behind a marker belongs to the marker; the rest
    of a turn, white space at its end included, stays as it is. Optional: `margin` (a float).

    Args:
        history: As in `messages`; a few rows of the data set have different histories.
    """
    check_history(history)
    return OneRecord("hh_rlhf", read_hh_rlhf, {"history": history})


def read_hh_rlhf(row: Mapping[str, Any], history: History = "strict") -> Pair:
    """One row as a pair."""
    chosen = dialogue(text(row, "chosen"), "chosen")
    rejected = dialogue(text(row, "rejected"), "rejected")
    return Pair(*divide((), chosen, rejected, history), margin_of(row))
