"""Rows that are too long: traps 11, 12, 13, 14, 16 (its slot) and 27."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from tests.fixtures_tokenizers import CHATML
from tests.traps.helpers import END, START, Tok, chatml, pair, rows_of, sides, stream_of, turn

LONG = "How do I keep my bread fresh for a week? 今天的天气很好，我们去公园散步吧。 " * 4
BYTES = Tok("bytes", None)
ANSWER, OTHER = "Wrap it in cloth and keep it away from the light.", "You do not: eat it all on the first day."


def test_trap_11_the_generation_header_survives(tok: Tok) -> None:
    """Prompts are cut on the left, whole turns first; BOS, system message and generation header stay."""
    prompt = [
        turn("system", "Be brief."), turn("user", LONG), turn("assistant", LONG), turn("user", "So?"),
        turn("assistant", "Yes."), turn("user", "And bread?"),
    ]  # fmt: skip
    system = chatml(("system", "Be brief."))
    kept = chatml(("user", "So?"), ("assistant", "Yes."), ("user", "And bread?"))
    header = f"{START}assistant\n"
    room = len(tok.ids(system + kept + chatml(("assistant", ANSWER))))
    (row,) = rows_of([pair(prompt, ANSWER, "No.")], tok, mps.DPO(room + 3))
    for response, side in zip((ANSWER, "No."), row, strict=True):
        assert tok.decode(side.prompt) == system + kept + header
        assert tok.decode(side.trained) == response + END
    frame = system + chatml(("user", " bread?"), ("assistant", ANSWER))
    room = len(tok.ids(frame)) + 4  # no whole turn fits: the last question is shortened
    (row,) = rows_of([pair([*prompt[:5], turn("user", LONG + "And bread?")], ANSWER, "No.")], tok, mps.DPO(room))
    text = tok.decode(row.chosen.prompt)
    assert text.startswith(system + f"{START}user\n")
    assert text.endswith(f"bread?{END}\n{header}")
    assert len(row.chosen.ids) <= room
    (row,) = rows_of([pair(prompt, LONG + LONG, "No.")], tok, mps.DPO(60))  # nothing of the turns fits
    assert tok.decode(row.chosen.prompt) == system + header


def test_trap_11_rows_without_their_question_are_told_from_rows_that_were_cut(tok: Tok) -> None:
    """An answer to nothing is what `prompt_left` leaves of a long response; the report says of how many rows."""
    rows = [pair("Why?", ANSWER, "No."), pair(LONG + "Why?", ANSWER, "No."), pair(LONG + "Why?", LONG + LONG, "No.")]
    task = mps.DPO(len(tok.ids(chatml(("user", "Why?"), ("assistant", ANSWER)))) + 8)
    stream = stream_of(rows, tok, task)
    kept = {tok.decode(side.prompt) for batch in stream.batches() for side in sides(batch)}
    questions = sorted("Why?" in prompt for prompt in kept)
    assert questions == [False, True, True]
    assert (stream.report.truncated, stream.report.question_cut) == (2, 1)
    assert "rows whose whole question was cut away: 1" in str(stream.report)
    found = [mps.encode(row, task=task, tokenizer=tok.given, template=CHATML).notes for row in rows]
    assert found == [(), ("cut to fit",), ("cut to fit", "the whole question was cut away")]


def test_trap_12_a_response_that_was_cut_has_no_end_of_turn(tok: Tok) -> None:
    """The template's own end of turn stands once behind a whole response, and not at all behind one that was cut."""
    end = tok.loaded.special[END]
    room = len(tok.ids(chatml(("user", "Why?"), ("assistant", ANSWER))))
    stream = stream_of([pair("Why?", ANSWER, "No."), pair("Why?", ANSWER, LONG)], tok, mps.DPO(room))
    whole, cut = (sides(batch) for batch in stream.batches())
    assert stream.report.truncated == 1
    assert whole.chosen.ids == tok.ids(chatml(("user", "Why?"), ("assistant", ANSWER)))
    for side in (*whole, cut.chosen):
        assert side.trained.count(end) == 1
        assert side.trained[-1] == end
    assert cut.rejected.trained.count(end) == 0
    assert LONG.startswith(tok.decode(cut.rejected.trained))
    assert room - 4 < len(cut.rejected.ids) <= room
    assert cut.rejected.mask[-1] == 1


@pytest.mark.parametrize("truncation", ["prompt_left", "response_right", "drop"])
def test_trap_13_no_response_token_is_left(tok: Tok, truncation: str) -> None:
    """Whatever is cut, each side keeps a token of its response, or the row is dropped with a reason."""
    rows = [pair(LONG * n, ANSWER * m, OTHER * k) for n in (0, 1, 3) for m in (1, 4) for k in (1, 9)] + [
        pair("Q", "A", "B")
    ]
    stream = stream_of(rows, tok, mps.DPO(48, truncation=truncation))
    for batch in stream.batches():
        for side in sides(batch):
            assert sum(side.mask) >= 1
            assert len(side.ids) <= 48
    dropped = stream.report.dropped
    assert stream.report.read == len(rows)
    assert set(dropped) <= {"too_long", "no_response_tokens", "identical_after_truncation"}
    assert (truncation == "prompt_left") != bool(dropped)


def test_trap_13_a_first_character_that_does_not_fit() -> None:
    """A character is never divided: without room for all its bytes the row is dropped."""
    rows = [pair("Why?", "你好", "天气"), pair("Why?", "Yes", "No")]
    header = len(BYTES.ids(chatml(asking=True)))
    stream = stream_of(rows, BYTES, mps.DPO(header + 2))
    assert len(list(stream.batches())) == 2
    assert stream.report.dropped == {"no_response_tokens": 1}
    (row, _) = rows_of(rows, BYTES, mps.DPO(header + 5))
    assert [BYTES.decode(side.trained) for side in row] == ["你", "天"]


def test_trap_14_identical_after_truncation(tok: Tok) -> None:
    """Sides that differ only behind the cut are dropped with a reason of its own."""
    rows = [pair("Why?", LONG + "yes", LONG + "no"), pair("Why?", "yes", "no")]
    stream = stream_of(rows, tok, mps.DPO(64))
    assert len(list(stream.batches())) == 2
    assert stream.report.dropped == {"identical_after_truncation": 1}
    assert not stream_of(rows, tok, mps.DPO(2000)).report.dropped


def reward(tok: Tok, **options: Any) -> mps.Reward:
    name = "<s>" if "<s>" in tok.loaded.special else "<|endoftext|>"
    return mps.Reward(layout="reward_token", reward_token=tok.loaded.special[name], **options)


def test_trap_16_the_reward_token_has_its_slot(tok: Tok) -> None:
    """The token stands behind every side, cut or not, and no row is longer than it may be."""
    token = reward(tok, max_length=64).reward_token
    rows = [pair("Why?", LONG, "No."), pair("Why?", "Yes.", LONG), pair("Why?", "Yes.", "No.")]
    stream = stream_of(rows, tok, reward(tok, max_length=64))
    for batch in stream.batches():
        assert batch["input_ids"].shape == (2, 64)
        for row, label in ((0, 0), (1, 1)):
            size = int(batch["attention_mask"][row].sum())
            ids = batch["input_ids"][row, :size].tolist()
            assert ids[-1] == token
            assert ids.count(token) == 1
            expected = np.full(64, -100)
            expected[size - 1] = label
            np.testing.assert_array_equal(batch["labels"][row], expected)


def test_trap_16_a_vocabulary_without_a_reserved_token(tok: Tok) -> None:
    """Without a reserved token the id has to be given; user text that holds the token is refused."""
    if tok.loaded.reserved_id is None:
        with pytest.raises(mps.TokenizerError, match=r"no reserved token.*reward_token="):
            stream_of([pair("a", "b", "c")], tok, mps.Reward(64, layout="reward_token"))
    else:
        stream_of([pair("a", "b", "c")], tok, mps.Reward(64, layout="reward_token"))
    task = reward(tok, max_length=64)
    name = next(name for name, id_ in tok.loaded.special.items() if id_ == task.reward_token)
    for row in (pair(f"{name}?", "b", "c"), pair("a", f"b{name}", "c"), pair("a", "b", f"c{name}")):
        with pytest.raises(mps.RowError, match="special_token") as caught:
            list(stream_of([row], tok, task, on_bad_row="raise").batches())
        assert name in str(caught.value)
    ids = {"prompt_ids": [5], "chosen_ids": [6, task.reward_token], "rejected_ids": [7]}
    with pytest.raises(mps.RowError, match="special_token"):
        list(stream_of([ids], tok, task, on_bad_row="raise").batches())


def test_trap_27_each_side_has_its_own_budget(tok: Tok) -> None:
    """A long rejected side does not cost the chosen side anything but the common cut of the prompt."""
    (row,) = rows_of([pair("Why? " + LONG, ANSWER, LONG * 3)], tok, mps.DPO(80))
    header = f"{START}assistant\n"
    assert tok.decode(row.chosen.prompt) == tok.decode(row.rejected.prompt) == header
    assert tok.decode(row.chosen.trained) == ANSWER + END  # whole: only the other side is too long
    assert len(row.rejected.ids) > 76
    (row,) = rows_of([pair(LONG, ANSWER, ANSWER + OTHER)], tok, mps.DPO(len(tok.ids(ANSWER + OTHER)) + 24))
    assert row.chosen.prompt == row.rejected.prompt  # the longer side decides, the cut is the same
    assert tok.decode(row.chosen.trained) == ANSWER + END
    assert tok.decode(row.rejected.trained) == ANSWER + OTHER + END
    assert len(row.chosen.ids) < len(row.rejected.ids)
    old, new = [turn("user", "Hi there"), turn("assistant", "Hello")], turn("user", "Why?")
    room = len(tok.ids(chatml(*((t["role"], t["content"]) for t in [*old, new]), ("assistant", ANSWER))))
    (row,) = rows_of([pair([*old, new], ANSWER, f"{ANSWER} {OTHER}"[: len(ANSWER) + 9])], tok, mps.DPO(room))
    for side in row:  # the chosen side alone would not have lost the first exchange
        assert tok.decode(side.prompt) == chatml(("user", "Why?"), asking=True)
        assert side.trained[-1] == tok.loaded.special[END]
    whole = tok.ids(chatml(("user", "Why?"), ("assistant", ANSWER)))
    (row,) = rows_of([pair("Why?", ANSWER, LONG)], tok, mps.DPO(len(whole), truncation="response_right"))
    assert row.chosen.ids == whole
    assert row.rejected.prompt == row.chosen.prompt
