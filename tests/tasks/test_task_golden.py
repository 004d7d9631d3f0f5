"""Every task and layout written out by hand, from rows of text and from rows of ids.

The tokenizer is ``"bytes"``: a letter's id is its code ("A" is 65, "!" 33, a newline 10), ``<|im_start|>`` is 257,
``<|im_end|>`` (the end of turn) 258, and 259 pads. Without a chat template the end of turn alone stands behind a
response.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps

IG = -100
P = 259

TEXTS = {"prompt": "Q?", "chosen": "A!", "rejected": "B", "margin": 1.5}
IDS = {"prompt_ids": [81, 63], "chosen_ids": [65, 33, 258], "rejected_ids": [66, 258], "margin": 1.5}
ROWS = pytest.mark.parametrize("row", [TEXTS, IDS], ids=["text", "ids"])


def batch_of(row: dict[str, Any], task: Any, length: int | None = 7, **options: Any) -> dict[str, np.ndarray]:
    """The only batch of a stream of one row."""
    given = {"tokenizer": None, "pad_token_id": P} if "prompt_ids" in row else {"tokenizer": "bytes", "template": None}
    stream = mps.stream(
        [row],
        task=task,
        batching=mps.Pad(1, length=length),
        shuffle=False,
        **given | options,  # type: ignore[arg-type]
    )
    (batch,) = stream.batches()
    assert list(batch) == stream.column_names
    return batch


def assert_batch(batch: dict[str, np.ndarray], expected: dict[str, tuple[str, list[Any]]]) -> None:
    """The same columns in the same order, each with exactly this dtype, shape and content."""
    assert list(batch) == list(expected)
    for name, (dtype, rows) in expected.items():
        wanted = np.array(rows, dtype)
        assert batch[name].dtype == wanted.dtype, name
        assert batch[name].shape == wanted.shape, name
        np.testing.assert_array_equal(batch[name], wanted, err_msg=name)


@ROWS
def test_dpo_paired(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.DPO(7)),
        {
            "chosen_input_ids": ("i4", [[81, 63, 65, 33, 258, P, P]]),
            "chosen_labels": ("i4", [[81, 63, 65, 33, 258, P, P]]),
            "chosen_attention_mask": ("i4", [[1, 1, 1, 1, 1, 0, 0]]),
            "chosen_loss_mask": ("i4", [[0, 0, 1, 1, 1, 0, 0]]),
            "rejected_input_ids": ("i4", [[81, 63, 66, 258, P, P, P]]),
            "rejected_labels": ("i4", [[81, 63, 66, 258, P, P, P]]),
            "rejected_attention_mask": ("i4", [[1, 1, 1, 1, 0, 0, 0]]),
            "rejected_loss_mask": ("i4", [[0, 0, 1, 1, 0, 0, 0]]),
        },
    )


@ROWS
def test_dpo_paired_shifted_with_margin(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.DPO(7, labels="shifted", margin=True)),
        {
            "chosen_input_ids": ("i4", [[81, 63, 65, 33, 258, P, P]]),
            "chosen_labels": ("i4", [[63, 65, 33, 258, P, P, P]]),
            "chosen_attention_mask": ("i4", [[1, 1, 1, 1, 1, 0, 0]]),
            "chosen_loss_mask": ("i4", [[0, 1, 1, 1, 0, 0, 0]]),
            "rejected_input_ids": ("i4", [[81, 63, 66, 258, P, P, P]]),
            "rejected_labels": ("i4", [[63, 66, 258, P, P, P, P]]),
            "rejected_attention_mask": ("i4", [[1, 1, 1, 1, 0, 0, 0]]),
            "rejected_loss_mask": ("i4", [[0, 1, 1, 0, 0, 0, 0]]),
            "margin": ("f4", [1.5]),
        },
    )


@ROWS
def test_dpo_concat(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.DPO(7, layout="concat")),
        {
            "input_ids": ("i4", [[81, 63, 65, 33, 258, P, P], [81, 63, 66, 258, P, P, P]]),
            "labels": ("i4", [[IG, IG, 65, 33, 258, IG, IG], [IG, IG, 66, 258, IG, IG, IG]]),
            "attention_mask": ("i4", [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]]),
            "loss_mask": ("i4", [[0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0]]),
        },
    )


@ROWS
def test_dpo_concat_shifted(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.DPO(7, layout="concat", labels="shifted")),
        {
            "input_ids": ("i4", [[81, 63, 65, 33, 258, P, P], [81, 63, 66, 258, P, P, P]]),
            "labels": ("i4", [[IG, 65, 33, 258, IG, IG, IG], [IG, 66, 258, IG, IG, IG, IG]]),
            "attention_mask": ("i4", [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]]),
            "loss_mask": ("i4", [[0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]]),
        },
    )


@ROWS
def test_reward_mindformers(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.Reward(7)),
        {
            "input_ids": ("i4", [[81, 63, 65, 33, 258, P, P], [81, 63, 66, 258, P, P, P]]),
            "position_id": ("i4", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]),
            "attention_mask": ("f2", [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]]),
            "loss_mask": ("f2", [[0, 0, 1, 1, 1, 0, 0]]),
            "end_ind": ("i4", [5, 4]),
        },
    )


@ROWS
def test_reward_token(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.Reward(7, layout="reward_token", reward_token=256, margin=True)),
        {
            "input_ids": ("i4", [[81, 63, 65, 33, 258, 256, P], [81, 63, 66, 258, 256, P, P]]),
            "attention_mask": ("i4", [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0]]),
            "labels": ("i4", [[IG, IG, IG, IG, IG, 0, IG], [IG, IG, IG, IG, 1, IG, IG]]),
            "margin": ("f4", [1.5]),
        },
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "response": "A!"},
        {"prompt_ids": [81, 63], "response_ids": [65, 33, 258]},
        TEXTS,  # of a pair, the chosen side is the response
        IDS,
    ],
    ids=["text", "ids", "pair of texts", "pair of ids"],
)
def test_rlhf(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.RLHF(max_prompt_length=4, seq_length=7)),
        {
            "prompt_ids": ("i4", [[81, 63, P, P]]),
            "pretrain_ids": ("i4", [[81, 63, 65, 33, 258, P, P]]),
            "loss_mask": ("i4", [[0, 0, 1, 1, 1, 0, 0]]),
        },
    )


@pytest.mark.parametrize("row", [{"prompt": "Q?"}, {"prompt_ids": [81, 63]}], ids=["text", "ids"])
def test_rlhf_prompt_only(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.RLHF(max_prompt_length=3, seq_length=5), length=5),
        {
            "prompt_ids": ("i4", [[81, 63, P]]),
            "pretrain_ids": ("i4", [[81, 63, P, P, P]]),
            "loss_mask": ("i4", [[0, 0, 0, 0, 0]]),
        },
    )


# <|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n
ASKED = [257, 117, 115, 101, 114, 10, 81, 63, 258, 10, 257, 97, 115, 115, 105, 115, 116, 97, 110, 116, 10]


def test_dpo_in_chatml() -> None:
    chosen = [*ASKED, 65, 33, 258, 10]
    rejected = [*ASKED, 66, 258, 10, P]
    assert_batch(
        batch_of(TEXTS, mps.DPO(25), length=25, template="auto"),
        {
            "chosen_input_ids": ("i4", [chosen]),
            "chosen_labels": ("i4", [chosen]),
            "chosen_attention_mask": ("i4", [[1] * 25]),
            "chosen_loss_mask": ("i4", [[0] * 21 + [1, 1, 1, 0]]),
            "rejected_input_ids": ("i4", [rejected]),
            "rejected_labels": ("i4", [rejected]),
            "rejected_attention_mask": ("i4", [[1] * 24 + [0]]),
            "rejected_loss_mask": ("i4", [[0] * 21 + [1, 1, 0, 0]]),
        },
    )


def test_reward_in_chatml() -> None:
    """The mask of this layout runs from the first difference to the end of the longer side, template text included."""
    batch = batch_of(TEXTS, mps.Reward(26), length=26, template="auto")
    assert batch["input_ids"].tolist() == [[*ASKED, 65, 33, 258, 10, P], [*ASKED, 66, 258, 10, P, P]]
    assert batch["loss_mask"].tolist() == [[0] * 21 + [1, 1, 1, 1, 0]]
    assert batch["end_ind"].tolist() == [25, 24]


def test_rlhf_in_chatml() -> None:
    """A rollout starts from the header that makes the model answer."""
    assert_batch(
        batch_of({"prompt": "Q?", "response": "A!"}, mps.RLHF(22, 25), length=25, template="auto"),
        {
            "prompt_ids": ("i4", [[*ASKED, P]]),
            "pretrain_ids": ("i4", [[*ASKED, 65, 33, 258, 10]]),
            "loss_mask": ("i4", [[0] * 21 + [1, 1, 1, 0]]),
        },
    )


LONG_TEXTS = {"prompt": "PQRST", "chosen": "ABCD", "rejected": "abcdefg"}
LONG_IDS = {
    "prompt_ids": [80, 81, 82, 83, 84],
    "chosen_ids": [65, 66, 67, 68, 258],
    "rejected_ids": [97, 98, 99, 100, 101, 102, 103, 258],
}
LONG_ROWS = pytest.mark.parametrize("row", [LONG_TEXTS, LONG_IDS], ids=["text", "ids"])


def dpo(row: dict[str, Any], length: int, **options: Any) -> tuple[list[int], list[int], list[int], list[int]]:
    """(ids, mask) of both sides, unpadded."""
    batch = batch_of(row, mps.DPO(length, **options), length=None)
    found: list[list[int]] = []
    for side in ("chosen", "rejected"):
        size = int(batch[f"{side}_attention_mask"].sum())
        found += [batch[f"{side}_input_ids"][0, :size].tolist(), batch[f"{side}_loss_mask"][0, :size].tolist()]
    return found[0], found[1], found[2], found[3]


@LONG_ROWS
@pytest.mark.parametrize(
    ("length", "options", "chosen", "rejected"),
    [
        (13, {}, ([80, 81, 82, 83, 84], "ABCD."), ([80, 81, 82, 83, 84], "abcdefg.")),
        (12, {}, ([81, 82, 83, 84], "ABCD."), ([81, 82, 83, 84], "abcdefg.")),
        (9, {}, ([84], "ABCD."), ([84], "abcdefg.")),
        (8, {}, ([], "ABCD."), ([], "abcdefg.")),
        (6, {}, ([], "ABCD."), ([], "abcdef")),
        (4, {}, ([], "ABCD"), ([], "abcd")),
        (12, {"max_prompt_length": 2}, ([83, 84], "ABCD."), ([83, 84], "abcdefg.")),
        (9, {"max_prompt_length": 2}, ([84], "ABCD."), ([84], "abcdefg.")),
        (12, {"truncation": "response_right"}, ([80, 81, 82, 83, 84], "ABCD."), ([80, 81, 82, 83, 84], "abcdefg")),
        (7, {"truncation": "response_right"}, ([80, 81, 82, 83, 84], "AB"), ([80, 81, 82, 83, 84], "ab")),
        (7, {"truncation": "response_right", "max_prompt_length": 1}, ([84], "ABCD."), ([84], "abcdef")),
    ],
)  # fmt: skip
def test_cut_in_dpo(row: dict[str, Any], length: int, options: Any, chosen: Any, rejected: Any) -> None:
    """``.`` stands for the end of turn, which a response that was cut does not have."""
    ids = [258 if letter == "." else ord(letter) for letter in chosen[1]]
    other = [258 if letter == "." else ord(letter) for letter in rejected[1]]
    masks = [[0] * len(side[0]) + [1] * len(side[1]) for side in (chosen, rejected)]
    expected = (chosen[0] + ids, masks[0], rejected[0] + other, masks[1])
    assert dpo(row, length, **options) == expected


@LONG_ROWS
def test_cut_in_reward(row: dict[str, Any]) -> None:
    """The reward token's slot is taken off before anything is cut."""
    task = mps.Reward(10, layout="reward_token", reward_token=256, max_prompt_length=3)
    batch = batch_of(row, task, length=None)
    assert batch["input_ids"].tolist() == [
        [84, 65, 66, 67, 68, 258, 256, P, P, P],
        [84, 97, 98, 99, 100, 101, 102, 103, 258, 256],
    ]
    batch = batch_of(row, mps.Reward(11, max_prompt_length=2), length=None)
    assert batch["input_ids"].tolist() == [
        [83, 84, 65, 66, 67, 68, 258, P, P, P, P],
        [83, 84, 97, 98, 99, 100, 101, 102, 103, 258, P],
    ]
    assert batch["end_ind"].tolist() == [7, 10]


@LONG_ROWS
@pytest.mark.parametrize("truncation", ["prompt_left", "response_right"])
def test_cut_in_rlhf(row: dict[str, Any], truncation: str) -> None:
    """Prompts are cut on the left to their columns; what is pretrained on has a budget of its own."""
    batch = batch_of(row, mps.RLHF(3, 7, truncation=truncation), length=None)
    assert batch["prompt_ids"].tolist() == [[82, 83, 84]]
    kept = [83, 84, 65, 66, 67, 68, 258] if truncation == "prompt_left" else [82, 83, 84, 65, 66, 67, 68]
    assert batch["pretrain_ids"].tolist() == [kept]
    assert batch["loss_mask"].tolist() == [[0] * kept.index(65) + [1] * (7 - kept.index(65))]


def test_cut_in_rlhf_keeps_the_header() -> None:
    row = {"prompt": "Say " + "x" * 40, "response": "A!"}
    batch = batch_of(row, mps.RLHF(25, 30), length=None, template="auto")
    user, header = [257, 117, 115, 101, 114, 10], ASKED[10:]
    assert batch["prompt_ids"].tolist() == [[*user, *[120] * 6, 258, 10, *header]]
    assert batch["pretrain_ids"].tolist() == [[*user, *[120] * 6, 258, 10, *header, 65, 33, 258, 10, P]]


def drop_reasons(row: dict[str, Any], task: Any, **options: Any) -> dict[str, int]:
    """Why a row is dropped beside a good one."""
    tokens = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    good = tokens if "prompt_ids" in row else {"prompt": "p", "chosen": "x", "rejected": "y"}
    given = {"tokenizer": None, "pad_token_id": P} if "prompt_ids" in row else {"tokenizer": "bytes", "template": None}
    stream = mps.stream([good, row], task=task, batching=mps.Pad(1), shuffle=False, **given | options)  # type: ignore[arg-type]
    assert len(list(stream.batches())) == 2
    return dict(stream.report.dropped)


@LONG_ROWS
@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (mps.DPO(12, truncation="drop"), "too_long"),
        (mps.DPO(20, max_prompt_length=4, truncation="drop"), "too_long"),
        (mps.DPO(5, truncation="response_right"), "no_response_tokens"),
        (mps.Reward(6, layout="reward_token", reward_token=256, truncation="response_right"), "no_response_tokens"),
        (mps.RLHF(4, 20, truncation="drop"), "too_long"),
        (mps.RLHF(9, 9, truncation="drop"), "too_long"),
        (mps.RLHF(5, 5, truncation="response_right"), "no_response_tokens"),
    ],
    ids=str,
)
def test_dropped(row: dict[str, Any], task: Any, reason: str) -> None:
    assert drop_reasons(row, task) == {reason: 1}


@pytest.mark.parametrize(
    "row", [{"prompt": ""}, {"prompt": "", "response": "A"}, {"prompt_ids": [], "response_ids": [5]}]
)
def test_rlhf_without_a_prompt(row: dict[str, Any]) -> None:
    with pytest.raises(mps.RowError, match=r"the prompt is empty; expected text .*\[missing_field\]"):
        batch_of(row, mps.RLHF(4, 7))


def test_rlhf_prompt_of_which_nothing_fits() -> None:
    assert drop_reasons({"prompt": "你"}, mps.RLHF(2, 7)) == {"too_long": 1}


def test_sides_that_only_differ_behind_the_cut() -> None:
    text = {"prompt": "P", "chosen": "xxxxA", "rejected": "xxxxB"}
    ids = {"prompt_ids": [80], "chosen_ids": [5, 5, 5, 1], "rejected_ids": [5, 5, 5, 2]}
    assert drop_reasons(text, mps.DPO(4)) == {"identical_after_truncation": 1}
    assert drop_reasons(ids, mps.DPO(3)) == {"identical_after_truncation": 1}


def test_shifted_labels_cannot_predict_the_very_first_token() -> None:
    """Without a prompt nothing stands before the first token of a response: it leaves the mask."""
    row = {"prompt": "", "chosen": "AB", "rejected": "C"}
    batch = batch_of(row, mps.DPO(4, layout="concat", labels="shifted"), length=4)
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[66, 258, IG, IG], [258, IG, IG, IG]]
    lone = {"prompt_ids": [], "chosen_ids": [7], "rejected_ids": [8, 9]}
    assert drop_reasons(lone, mps.DPO(4, labels="shifted")) == {"no_response_tokens": 1}
    both = {"prompt_ids": [], "chosen_ids": [7], "rejected_ids": [8]}
    assert drop_reasons(both, mps.DPO(4)) == drop_reasons(both, mps.DPO(4, labels="shifted"))
    assert drop_reasons(both, mps.DPO(4)) == {"no_response_tokens": 1}


def test_a_margin_that_is_not_there() -> None:
    with pytest.raises(mps.RowError, match=r"has no margin; expected a number.*\[missing_field\]"):
        batch_of({"prompt": "P", "chosen": "A", "rejected": "B"}, mps.DPO(7, margin=True))


def test_a_row_without_a_rejected_side() -> None:
    with pytest.raises(mps.RowError, match=r"no rejected side.*mps\.RLHF"):
        batch_of({"prompt": "P", "response": "A"}, mps.DPO(7))


def test_text_without_a_tokenizer() -> None:
    with pytest.raises(mps.OptionError, match="tokenizer=None is for rows that are already tokenized"):
        batch_of(TEXTS, mps.DPO(7), tokenizer=None, pad_token_id=0)
