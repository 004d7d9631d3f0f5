"""UltraFeedback binarized and orpo-dpo-mix-40k: whole conversations beside a prompt string."""

from __future__ import annotations

from ms_prefstream.formats.auto import NUMBER, PAIR_OF_LISTS, PAIR_OF_TURNS, TEXT, TURNS, needs
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.divide import History, check_history
from ms_prefstream.formats.fields import present, scored_margin
from ms_prefstream.formats.messages import turns
from ms_prefstream.formats.presets.chat import read_pair
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset


@preset(needs(prompt=TURNS, score_chosen=NUMBER, score_rejected=NUMBER, **PAIR_OF_TURNS))
def ultrafeedback(history: History = "strict") -> OneRecord:
    """Reads UltraFeedback binarized; `chosen` is the better conversation, with the higher score.

    ``{prompt: "Hi", chosen: [user Hi, assistant Hello], rejected: [user Hi, assistant What], score_chosen: 8,
    score_rejected: 6}`` -> ``Pair((user Hi), (assistant Hello), (assistant What), margin=2)``

    The prompt is recognised in the conversations by exact equality only. Equal scores are a tie. The margin is
    ``score_chosen - score_rejected`` unless the row has a field `margin`.

    Args:
        history: As in `messages`.
    """
    check_history(history)
    return OneRecord("ultrafeedback", read_ultrafeedback, {"history": history})


def read_ultrafeedback(row: Row, history: History = "strict") -> Pair:
    """Returns one row as a pair."""
    margin = scored_margin(row, "score_chosen", "score_rejected")
    return read_pair(row, turns(present(row, "prompt"), "prompt", "user"), history, False, margin)


@preset(needs(question=TEXT, **PAIR_OF_LISTS), needs(prompt=TEXT, question=TEXT, **PAIR_OF_LISTS))
def orpo_mix(history: History = "strict") -> OneRecord:
    """Reads orpo-dpo-mix-40k; `chosen` is the better conversation, `rejected` the worse one.

    ``{source: "x", prompt: "Hi", question: null, chosen: [user Hi, assistant Hello], rejected: [user Hi, assistant
    What]}`` -> ``Pair((user Hi), (assistant Hello), (assistant What))``

    The conversations are complete. `prompt` and `question` repeat a part of them, one or the other is null, and
    neither is read. Optional: `margin` (a float).

    Args:
        history: As in `messages`.
    """
    check_history(history)
    return OneRecord("orpo_mix", read_orpo_mix, {"history": history})


def read_orpo_mix(row: Row, history: History = "strict") -> Pair:
    """Returns one row as a pair."""
    return read_pair(row, (), history, False)
