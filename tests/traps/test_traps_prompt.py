"""What is the prompt: traps 4, 5 and 22."""

from __future__ import annotations

from typing import Any

import pytest

import ms_prefstream as mps
from tests.traps.helpers import END, Tok, chatml, pair, rows_of, sides, stream_of, turn


def hh(*turns: tuple[str, str]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[role]}: {content}" for role, content in turns)


def test_trap_04_longest_common_prefix_eats_the_response(tok: Tok) -> None:
    """Dialogues that go on alike after the last role marker divide at the marker, not where the letters differ."""
    chosen, rejected = "Yes, tea is good.", "Yes, tea is bad."
    rows = [
        {
            "chosen": hh(("user", "Tea?"), ("assistant", chosen)),
            "rejected": hh(("user", "Tea?"), ("assistant", rejected)),
        },
        {"chosen": hh(("user", "Tea?"), ("assistant", "Yes")), "rejected": hh(("user", "Tea?"), ("assistant", "Yes"))},
        {"chosen": hh(("user", "Tea?"), ("assistant", "")), "rejected": hh(("user", "Tea?"), ("assistant", "Yes"))},
        pair([turn("user", "Tea?")], chosen, rejected),
    ]
    stream = stream_of(rows, tok)
    found = [sides(batch) for batch in stream.batches()]
    for row in (found[0], found[3]):
        assert tok.decode(row.chosen.trained) == chosen + END
        assert tok.decode(row.rejected.trained) == rejected + END
        assert row.chosen.prompt == row.rejected.prompt == tok.ids(chatml(("user", "Tea?"), asking=True))
    assert stream.report.dropped == {"identical": 1, "empty_response": 1}


def test_trap_05_histories_are_compared(tok: Tok) -> None:
    """Sides with different histories: an error that names the row, a counted drop, or the common run of messages."""
    first = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Tea?"), turn("assistant", "Yes")]
    other = [turn("user", "Hi"), turn("assistant", "Good day"), turn("user", "Tea?"), turn("assistant", "No")]
    good = pair("Tea?", "Yes", "No")
    rows: list[Any] = [good, {"chosen": first, "rejected": other}]
    with pytest.raises(mps.RowError, match=r"row 1 .*divide at turn 2.*\[history_differs\]"):
        list(stream_of(rows, tok, on_bad_row="raise").batches())
    stream = stream_of(rows, tok)
    assert len(list(stream.batches())) == 2
    assert stream.report.dropped == {"history_differs": 1}
    common = mps.formats.messages(history="common")
    row = rows_of([{"chosen": first, "rejected": other}], tok, format=common)[0]
    assert row.chosen.prompt == tok.ids(chatml(("user", "Hi"), asking=True))
    assert tok.decode(row.chosen.trained) == f"Hello{END}Yes{END}"
    assert tok.decode(row.rejected.trained) == f"Good day{END}No{END}"


def test_trap_22_only_assistant_tokens_after_the_division(tok: Tok) -> None:
    """Shared assistant turns are not trained on, nor are tool turns inside the completion."""
    prompt = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Add")]
    chosen = [turn("assistant", "add(1, 2)"), turn("tool", "3"), turn("assistant", "It is 3.")]
    (row,) = rows_of([pair(prompt, chosen, [turn("assistant", "No")])], tok)
    whole = [(t["role"], t["content"]) for t in prompt + chosen]
    assert row.chosen.ids == tok.ids(chatml(*whole))
    assert tok.decode(row.chosen.trained) == f"add(1, 2){END}It is 3.{END}"
    assert row.chosen.prompt == tok.ids(chatml(*whole[:3], asking=True))
    assert tok.decode(row.rejected.trained) == f"No{END}"
    between = row.chosen.ids[len(row.chosen.prompt) :]
    first, last = row.chosen.mask.index(1), len(row.chosen.mask) - row.chosen.mask[::-1].index(1)
    gap = [i for i, bit in zip(row.chosen.ids[first:last], row.chosen.mask[first:last], strict=True) if not bit]
    assert tok.decode(gap) == "\n" + chatml(("tool", "3"), asking=True)
    assert between
