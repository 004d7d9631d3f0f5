"""The parts of a side: all tokens of the sample and all that were cut off, in their order, with exact texts."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.inspection import EncodedRow, EncodedSide, Kind, Part, RowEncoder
from ms_prefstream.inspection.parts import Texts
from ms_prefstream.load.records import formats_of
from ms_prefstream.sources.open import open_source
from ms_prefstream.steps.data import Encoding

TURNS = [
    {"role": "system", "content": "Be brief. 请简短回答。"},
    {"role": "user", "content": "How do I keep my bread fresh?"},
    {"role": "assistant", "content": "今天的天气很好，我们去公园散步吧。"},
    {"role": "user", "content": "The quick brown fox 🙂 jumps\nover the lazy dog."},
]
ROW = {"prompt": TURNS, "chosen": "I'm not sure that's what they'd want 😀😀", "rejected": "如何学习编程？"}
LENGTHS = [*range(20, 260, 3)]
TASKS: dict[str, Any] = {
    "dpo": mps.DPO,
    "response_right": functools.partial(mps.DPO, truncation="response_right"),
    "prompt_limit": lambda length: mps.DPO(length, max_prompt_length=max(1, length // 2)),
    "reward_token": functools.partial(mps.Reward, layout="reward_token", reward_token=300),
    "rlhf": lambda length: mps.RLHF(max(1, length // 2), length),
    "rlhf_right": lambda length: mps.RLHF(max(1, length // 2), length, truncation="right"),
}


def encoded(row: Any, task: Any, tokenizer: Any, with_tokens: bool = False) -> EncodedRow:
    vocab_size = None if tokenizer is None else 100_000
    recipe = Encoding(task=task, tokenizer=tokenizer, vocab_size=vocab_size).recipe(ready=False)
    (read,) = formats_of(None, "auto", None)
    return RowEncoder(recipe, with_tokens).rows([row], read)[0]


def whole(side: EncodedSide) -> list[int]:
    return [one for part in side.parts if part.kind is not Kind.REWARD for one in part.ids]


def kept(side: EncodedSide) -> list[Part]:
    return [part for part in side.parts if not part.cut]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["chatml", "llama3", "llama2", "deepseek"])
def test_parts_are_the_sample_and_what_was_cut_off(family: str, task: str, field: pathlib.Path) -> None:
    tokenizer = load_tokenizer(field / family)
    uncut = encoded(ROW, TASKS[task](5000), tokenizer)
    assert uncut.sides
    cut = 0
    for length in LENGTHS:
        found = encoded(ROW, TASKS[task](length), tokenizer)
        for side, full in zip(found.sides, uncut.sides, strict=False):
            assert [one for part in kept(side) for one in part.ids] == list(side.ids)
            under = [part.trained for part in kept(side) for _ in part.ids]
            assert sum(under) == side.tokens[1]
            assert under.index(True) == side.tokens[0] if side.tokens[1] else True
            extra = [one for part in side.parts if part.cut for one in part.ids]
            # A line feed after the end of turn may go; a rollout may be cut alone.
            assert sum(side.cut_tokens()) == (len(extra) if side.truncated else 0)
            if whole(side) != whole(full):  # a header that was encoded again before a text that was cut
                assert len(whole(side)) - len(whole(full)) in range(1, 8)
            cut += bool(extra)
            assert extra or not side.truncated or task == "rlhf_right"
    assert cut > 3


def test_whole_turns_and_the_beginning_of_a_text_are_cut(field: pathlib.Path) -> None:
    tokenizer = load_tokenizer(field / "chatml")
    full = encoded(ROW, mps.DPO(5000), tokenizer).sides[0]
    turns = {(part.role, part.text): part for part in full.parts if part.kind is Kind.PROMPT}
    first = sum(len(part.ids) for part in full.parts if part.role in ("user", "assistant"))
    last = sum(len(part.ids) for part in full.parts[-14:] if part.role == "user")
    found = encoded(ROW, mps.DPO(full.tokens[2] - (first - last)), tokenizer).sides[0]
    gone = [(part.role, part.text) for part in found.parts if part.cut and part.kind is Kind.PROMPT]
    assert gone == [("user", TURNS[1]["content"]), ("assistant", TURNS[2]["content"])]
    assert set(gone) <= set(turns)
    assert "".join(part.text for part in found.parts if part.role == "system" and not part.cut).startswith(
        "<|im_start|>"
    )
    found = encoded(ROW, mps.DPO(full.tokens[2] - (first - last) - 3), tokenizer).sides[0]
    texts = [(part.cut, part.text) for part in found.parts if part.role == "user" and part.kind is Kind.PROMPT]
    assert [cut for cut, _ in texts] == [True, True, False]
    assert texts[1][1] + texts[2][1] == TURNS[3]["content"]


def test_the_kinds_and_roles_of_a_pair(field: pathlib.Path) -> None:
    side = encoded(ROW, mps.DPO(5000), load_tokenizer(field / "chatml")).sides[0]
    assert side.context + side.response == side.parts
    roles = list(dict.fromkeys(part.role for part in side.context))
    assert roles == ["system", "user", "assistant", ""]
    contents = [part.text for part in side.context if part.kind is Kind.PROMPT and part.role != "system"]
    assert contents == [turn["content"] for turn in TURNS[1:]]
    kinds = [(part.kind, part.text, part.trained) for part in side.response]
    assert kinds[:2] == [(Kind.RESPONSE, ROW["chosen"], True), (Kind.END, "<|im_end|>", True)]
    assert all(part.control for part in side.parts if part.text in ("<|im_start|>", "<|im_end|>"))


def test_only_the_reward_token_is_under_the_loss(field: pathlib.Path) -> None:
    task = mps.Reward(5000, layout="reward_token", reward_token="<|score|>")
    side = encoded(ROW, task, load_tokenizer(field / "chatml")).sides[1]
    assert [part.kind for part in side.parts if part.trained] == [Kind.REWARD]
    assert side.parts[-1].text.strip("<>").isdigit()  # no vocabulary has it
    assert [part.text for part in side.parts if part.kind is Kind.RESPONSE] == [ROW["rejected"]]


@pytest.mark.parametrize("family", ["chatml_dir", "gpt2_dir", "deepseek_dir", "llama2_dir", "metaspace_first_dir"])
def test_texts_of_tokens_are_the_text(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(family))
    text = " I keep  my bread 😀 fresh；今天的天气很好\n\n𝒳 naïve"
    (ids,) = tokenizer.encoder.encode([text])
    found = list(Texts(tokenizer.decode).of_tokens(ids.tolist(), 0, len(ids)))
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids.tolist())
    assert "\ufffd" not in "".join(found)


def test_texts_of_tokens_join_to_the_texts_of_parts(field: pathlib.Path) -> None:
    for family in ("chatml", "llama3", "llama2"):
        tokenizer = load_tokenizer(field / family)
        plain, tokens = (encoded(ROW, mps.DPO(90), tokenizer, with_tokens) for with_tokens in (False, True))
        for side, other in zip(plain.sides, tokens.sides, strict=True):
            assert [part.text for part in side.parts] == ["".join(part.texts) for part in other.parts]
            assert all(len(part.texts) == len(part.ids) for part in other.parts)
            assert all(part.texts == () for part in side.parts)


def test_rows_that_are_encoded_together_are_what_each_is_alone(field: pathlib.Path) -> None:
    ids = {"prompt_ids": [5] * 70, "chosen_ids": [7, 2], "rejected_ids": [8]}
    rows = [ROW, {"prompt": 3}, ids, {**ROW, "chosen": "x"}, {**ROW, "rejected": ROW["chosen"]}, ROW]
    recipe = Encoding(task=mps.DPO(60), tokenizer=load_tokenizer(field / "chatml")).recipe(ready=False)
    (read,) = formats_of(None, "auto", None)
    together = RowEncoder(recipe).rows(rows, read)
    for row, found in zip(rows, together, strict=True):
        (alone,) = RowEncoder(recipe).rows([row], read)
        assert found.sides == alone.sides
        assert (str(found), found.reason) == (str(alone), alone.reason)
    assert [row.truncated for row in together] == [True, False, True, True, False, True]


def test_rows_of_ids_and_samples_of_a_cache(tmp_path: pathlib.Path) -> None:
    row = {"prompt_ids": list(range(60, 80)), "chosen_ids": [7, 2], "rejected_ids": [8]}
    (side, _) = encoded(row, mps.DPO(10), None).sides
    assert [(part.cut, len(part.ids)) for part in side.parts] == [(True, 12), (False, 8), (False, 2)]
    stream = mps.stream([row], task=mps.DPO(10), tokenizer=None, batching=mps.Pad(1), pad_token_id=0)
    mps.write_cache(stream, tmp_path / "out", workers=0)
    ready = open_source(str(tmp_path / "out")).read([0])
    (cached, _) = encoded(ready[0], mps.DPO(10), None).sides
    assert kept(cached) == kept(side)
    assert "cut         before it was cached" in str(encoded(ready[0], mps.DPO(10), None))


def test_what_the_template_changed_and_lost(field: pathlib.Path) -> None:
    found = mps.encode({"prompt": "Q?", "chosen": " a", "rejected": "b"}, task=mps.DPO(64), tokenizer=field / "llama3")
    assert found.changed == ("the assistant turn of chosen",)
    assert "changed     by the chat template: the assistant turn of chosen" in str(found)
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    row = {"prompt": "Q?", "chosen": "<think>one two</think>three", "rejected": "b", "notes": "unread words"}
    found = mps.encode(row, task=mps.DPO(64), tokenizer="bytes", template=template)
    assert any("one" in words for words in found.lost)
    assert "lost        to the chat template: “" in str(found)
    assert "unread      fields that nothing read: notes" in str(found)
