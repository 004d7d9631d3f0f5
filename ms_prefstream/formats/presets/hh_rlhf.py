"""Anthropic hh-rlhf: dialogues as strings with role markers, whole or with the prompt in a separate field."""

from __future__ import annotations

from ms_prefstream.formats.auto import PAIR_OF_TEXTS, needs
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.divide import History, check_history, complete, divide, split_response
from ms_prefstream.formats.fields import margin_of, response_field, text, wrong_type
from ms_prefstream.formats.messages import dialogue, marked
from ms_prefstream.formats.record import Completion, Message, Messages, Pair
from ms_prefstream.formats.registry import preset


@preset(needs(**PAIR_OF_TEXTS))
def hh_rlhf(history: History = "strict") -> OneRecord:
    r"""Reads hh-rlhf rows; `chosen` is the better dialogue, `rejected` the worse one.

    ``{chosen: "\n\nHuman: Hi\n\nAssistant: Hello", rejected: "\n\nHuman: Hi\n\nAssistant: What"}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    The same pair from ``{prompt: "\n\nHuman: Hi\n\nAssistant:", chosen: " Hello", rejected: " What"}``, as
    Dahoas/full-hh-rlhf has it; whole dialogues beside a prompt must repeat it exactly, and it may then be the
    text of the last turn alone. ``{prompt, response}`` or ``{prompt}`` is a prompt with its response, for RLHF.

    The prompt ends at a role marker, never inside a turn. One space after a marker belongs to the marker; the rest
    of a turn, white space at its end included, stays as it is. Optional: `margin` (a float).

    Args:
        history: As in `messages`; a few rows of the data set have different histories.
    """
    check_history(history)
    return OneRecord("hh_rlhf", read_hh_rlhf, {"history": history})


def read_hh_rlhf(row: Row, history: History = "strict") -> Pair | Completion:
    """Returns one row as a pair when it has `chosen` or `rejected`, as a completion otherwise."""
    given = row.get("prompt") is not None
    if given and row.get("chosen") is None and row.get("rejected") is None:
        return _completion(row)
    chosen, rejected = (_side(row, name, given) for name in ("chosen", "rejected"))
    return Pair(*divide(_shared(row) if given else (), chosen, rejected, history), margin_of(row))


def _shared(row: Row) -> Messages:
    """Returns the turns of the prompt of a pair; beside whole dialogues it may be plain text, or empty."""
    prompt = text(row, "prompt")
    if marked(prompt) or not (marked(row["chosen"]) and marked(row["rejected"])):
        return _prompt(row)
    return (Message("user", prompt),) if prompt else ()


def _completion(row: Row) -> Completion:
    response = response_field(row)
    if response is None:
        return Completion(*split_response(_turns(row)))
    whole, start = complete(_prompt(row), _side(row, response, True), response)
    return Completion(whole[:start], whole[start:])


def _turns(row: Row) -> Messages:
    """Returns the turns of the prompt, without an empty last one of the assistant: ``...\n\nAssistant:``."""
    whole = dialogue(text(row, "prompt"), "prompt")
    found = whole[:-1] if whole[-1] == Message("assistant", "") else whole
    if not found:
        raise wrong_type("prompt", row["prompt"], "a dialogue with a turn of the human")
    return found


def _prompt(row: Row) -> Messages:
    found = _turns(row)
    if found[-1].role == "assistant":
        raise wrong_type(
            "the end of field 'prompt'",
            found[-1].content,
            r"the marker '\n\nAssistant:' or a turn after '\n\nHuman:'",
            "Move what the assistant has begun to say into the responses",
        )
    return found


def _side(row: Row, name: str, responds: bool) -> Messages:
    """Returns a whole dialogue, or the response to a prompt, whose first turn needs no marker."""
    found = text(row, name)
    return dialogue(f"\n\nAssistant:{found}" if responds and not marked(found) else found, name)
