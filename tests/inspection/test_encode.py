"""`mps.encode` shows what a row becomes, or why it is dropped."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.inspection import EncodedRow

ROW = {"prompt": "Q?", "chosen": "A!", "rejected": "B", "margin": 0.5}


def explain(row: Any, task: Any = None, **options: Any) -> EncodedRow:
    return mps.encode(row, task=task or mps.DPO(64), **{"tokenizer": "bytes"} | options)


def test_a_pair() -> None:
    found = explain(ROW)
    assert found.kept
    assert not found.truncated
    chosen, rejected = found.sides
    assert chosen.prompt == rejected.prompt == "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    assert (chosen.trained, chosen.rest, chosen.tokens) == (("A!<|im_end|>",), "\n", (21, 3, 25))
    assert rejected.trained == ("B<|im_end|>",)
    assert found.sample is not None
    assert chosen.ids == tuple(found.sample.sequences[0].ids.tolist())
    assert str(found) == (
        "kept · DPO · chosen 25 tokens, rejected 24 · prompt 21 · margin 0.5\n"
        "  user        <|im_start|>user⏎Q?<|im_end|>⏎\n"
        "              <|im_start|>assistant⏎\n"
        "  chosen      A!<|im_end|>⏎  (3 under the loss)\n"
        "  rejected    B<|im_end|>⏎  (2 under the loss)"
    )


def test_the_same_as_in_a_stream(chatml_dir: pathlib.Path) -> None:
    task = mps.DPO(24)
    row = {
        "prompt": "How do I keep my bread fresh for a week?",
        "chosen": "Wrap it in cloth",
        "rejected": "I'm not sure",
    }
    found = explain(row, task, tokenizer=chatml_dir)
    (batch,) = mps.stream([row], task=task, tokenizer=chatml_dir, batching=mps.Pad(1)).batches()
    for side in found.sides:
        assert batch[f"{side.name}_input_ids"][0, : side.tokens[2]].tolist() == list(side.ids)
        assert batch[f"{side.name}_loss_mask"].sum() == side.tokens[1]
    assert found.truncated
    assert found.notes == ("cut to fit",)
    assert re.search(r"^  cut         \d+ tokens of the prompt", str(found), re.MULTILINE)


def test_several_spans_and_notes(field: pathlib.Path) -> None:
    turns = [{"role": r, "content": c} for r, c in (("assistant", "a"), ("tool", "t"), ("assistant", "b"))]
    found = explain({"prompt": "Q?", "chosen": turns, "rejected": "\nc"}, tokenizer=field / "chatml")
    assert found.sides[0].trained == ("a<|im_end|>", "b<|im_end|>")
    assert found.notes == ("the prompt's ids differ at generation",)
    found = explain({"prompt": "Q?", "chosen": " a", "rejected": "b"}, tokenizer=field / "llama3")
    assert found.notes == ("the chat template changed a content",)


def test_rlhf() -> None:
    found = explain({"prompt": "Q?", "response": "A!"}, mps.RLHF(32, 64), template=None)
    assert found.rollout == "Q?"
    assert found.sides[0].name == "response"
    assert found.sides[0].trained == ("A!<|im_end|>",)
    assert "rollout     2 tokens: the prompt above" in str(found)
    found = explain({"prompt": "Q?"}, mps.RLHF(32, 64), template=None)
    assert (found.sides[0].name, found.sides[0].prompt, found.sides[0].trained) == ("prompt", "Q?", ())


def test_rows_of_ids() -> None:
    found = explain({"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8]}, tokenizer=None)
    assert (found.sides[0].prompt, found.sides[0].trained) == ("<5><6>", ("<7><2>",))


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({**ROW, "rejected": "A!"}, Reason.IDENTICAL, "the same text"),
        ({**ROW, "chosen": " "}, Reason.EMPTY_RESPONSE, "the chosen side is empty"),
        ({"prompt": "Q?", "chosen": "A"}, Reason.MISSING_FIELD, "rejected"),
        ({**ROW, "chosen": 3}, Reason.BAD_TYPE, "chosen"),
        ({**ROW, "prompt": "\ud83d"}, Reason.BAD_TYPE, "lone surrogate"),
    ],
)
def test_dropped(row: Any, reason: Reason, words: str) -> None:
    found = explain(row)
    assert not found.kept
    assert found.sides == ()
    assert found.reason is reason
    assert words in found.problem
    assert str(found).startswith(f"dropped · {reason}\n  ")
    assert found.raw is row


def test_many_records_and_none() -> None:
    ranked = {"prompt": "Q?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    found = explain(ranked, format=mps.formats.ranked(policy="adjacent"))
    assert len(found.others) == 1
    assert str(found).count("kept · DPO") == 2
    typed = {"prompt": "Q?", "pos_resp": "a", "neg_resp": "b", "pos_type": "x", "neg_type": "y"}
    found = explain(typed, format=mps.formats.cvalues(types=[("拒绝为主", "风险回复")]))
    assert not found.kept
    assert found.reason is None
    assert "leaves this row out" in str(found)


def test_options_are_errors() -> None:
    with pytest.raises(OptionError, match="boundary is 'x'"):
        explain(ROW, boundary="x")
    with pytest.raises(OptionError, match=r"task is 'dpo'; expected an object such as mps.DPO"):
        explain(ROW, "dpo")


def test_long_texts_are_shortened() -> None:
    found = explain({**ROW, "prompt": "x" * 5000}, mps.DPO(6000))
    assert "(5,0" in str(found)
    assert len(str(found)) < 1500
