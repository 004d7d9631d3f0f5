"""ShareGPT turns (from / value) with two last turns to compare, as LLaMA-Factory reads them."""

from __future__ import annotations

from ms_prefstream.formats.auto import LIST, PAIR_OF_TURNS, alone, needs
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.divide import History, check_history, split_response
from ms_prefstream.formats.fields import missing, present
from ms_prefstream.formats.messages import turns
from ms_prefstream.formats.presets.chat import read_pair
from ms_prefstream.formats.record import Completion, Pair
from ms_prefstream.formats.registry import preset


@preset(needs(conversations=LIST, **PAIR_OF_TURNS), alone(conversations=LIST))
def sharegpt(history: History = "strict", keep_empty_system: bool = False) -> OneRecord:
    """Reads ShareGPT rows; `chosen` is the better answer to `conversations`, `rejected` the worse one.

    ``{conversations: [human Hi], chosen: gpt Hello, rejected: gpt What}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    * `conversations`: turns ``{from, value}`` with human, gpt, system, observation (a tool's result) or function_call
      (JSON text of the assistant's tool calls).
    * `chosen`, `rejected`: one turn, a list of turns, or a string. Without both, the conversation is a prompt with
      its response (what follows the last turn of the user), for RLHF.
    * Optional: `system` (a string), `tools` (a list or its JSON text), `margin` (a float).

    Args:
        history: As in `messages`.
        keep_empty_system: As in `messages`.
    """
    check_history(history)
    return OneRecord("sharegpt", read_sharegpt, {"history": history, "keep_empty_system": keep_empty_system})


def read_sharegpt(row: Row, history: History = "strict", keep_empty_system: bool = False) -> Pair | Completion:
    """Returns one row as a pair when it has `chosen` or `rejected`, as a completion otherwise."""
    conversation = turns(present(row, "conversations"), "conversations", "user", keep_empty_system)
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return read_pair(row, conversation, history, keep_empty_system)
    if not conversation:
        raise missing(row, "chosen")
    return Completion(*split_response(conversation))
