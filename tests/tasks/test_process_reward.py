"""`mps.ProcessReward`: arrays written out by hand, where the labels stand, and the rows that it refuses."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, Reason
from tests.fixtures_tokenizers import cached_tokenizer
from tests.tasks.test_task_golden import IG, P, assert_batch, batch_of

SHARED = pathlib.Path(os.environ.get("MS_PREFSTREAM_SHARED", pathlib.Path(__file__).parents[3] / "shared"))
ROW = {"prompt": "Q?", "completions": ["ab", "c"], "labels": [True, False]}
IDS = [[81, 63, 97, 98, 10, 99, 10, 258, P]]
ATTENTION = [[1, 1, 1, 1, 1, 1, 1, 1, 0]]
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encoded(
    row: dict[str, Any], length: int = 64, tokenizer: Any = "bytes", template: Any = None, **options: Any
) -> Any:
    return mps.encode(row, task=mps.ProcessReward(length, **options), tokenizer=tokenizer, template=template)


def ends(row: Any, tokenizer: Any = "bytes") -> list[int]:
    """The ids of the labelled tokens."""
    (sequence,) = row.sample.sequences
    return [int(sequence.ids[begin]) for begin, _ in sequence.spans]


def test_labels() -> None:
    batch = batch_of(ROW, mps.ProcessReward(9), length=9)
    labels = [[IG, IG, IG, IG, 1, IG, 0, IG, IG]]
    assert_batch(batch, {"input_ids": ("i4", IDS), "attention_mask": ("i4", ATTENTION), "labels": ("i4", labels)})


def test_the_last_step_only() -> None:
    batch = batch_of(ROW, mps.ProcessReward(9, last_step_only=True), length=9)
    assert batch["labels"].tolist() == [[IG, IG, IG, IG, IG, IG, 0, IG, IG]]


def test_values() -> None:
    row = {**ROW, "labels": [0.25, True]}
    assert_batch(
        batch_of(row, mps.ProcessReward(9, values=True), length=9),
        {
            "input_ids": ("i4", IDS),
            "attention_mask": ("i4", ATTENTION),
            "step_values": ("f4", [[0, 0, 0, 0, 0.25, 0, 1, 0, 0]]),
            "step_mask": ("i4", [[0, 0, 0, 0, 1, 0, 1, 0, 0]]),
        },
    )


def test_the_last_character_of_a_longer_separator() -> None:
    batch = batch_of(ROW, mps.ProcessReward(16, step_separator=" ки"), length=16)
    assert batch["input_ids"][0, 2:9].tolist() == [97, 98, *" ки".encode()]
    assert np.flatnonzero(batch["labels"][0] == 1).tolist() == [8]  # the last byte of the last character


def test_a_trimmed_separator_is_counted_and_its_label_stands_at_the_end_of_the_step() -> None:
    stream = mps.stream(
        [ROW, {**ROW, "completions": ["one", "end "]}],
        task=mps.ProcessReward(64),
        tokenizer="bytes",
        template=TRIMS,
        batching=mps.Pad(2),
        shuffle=False,
    )
    (batch,) = stream.batches()
    assert [chr(one) for one in batch["input_ids"][batch["labels"] >= 0]] == ["\n", "c", "\n", "d"]
    assert stream.report.separator_trimmed == 2
    assert "rows whose last separator the chat template trims: 2 (100.0 %)" in str(stream.report)
    assert "separator_trimmed" not in mps.Report().as_dict()
    assert any("trims the last separator" in note for note in encoded(ROW, template=TRIMS).notes)


def test_a_step_that_is_trimmed_away() -> None:
    row = encoded({**ROW, "completions": ["one", " "]}, template=TRIMS)
    assert row.reason is Reason.CONTENT_LOST
    assert "the chat template leaves out the end of step 1 of 2, so that its label has no token" in row.problem


@pytest.mark.parametrize(
    ("length", "kept", "cut"), [(8, [1, 0], False), (6, [1, 0], True), (4, [1], True), (3, [1], True)]
)
def test_steps_that_are_cut_away_have_no_label(length: int, kept: list[int], cut: bool) -> None:
    row = encoded(ROW, length)
    assert list(row.sample.scores) == kept
    assert row.truncated == cut
    assert ends(row) == [10] * len(kept)


def test_rows_without_a_labelled_step_left() -> None:
    row = encoded(ROW, 4, last_step_only=True)
    assert (row.reason, row.problem.split(" [")[0]) == (
        Reason.NO_RESPONSE_TOKENS,
        "no labelled step ends within 4 tokens",
    )


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({**ROW, "labels": [1, 0]}, Reason.BAD_TYPE, "item 1 of field 'labels' is 1; expected true or false"),
        ({**ROW, "labels": [True, 0.5]}, Reason.BAD_TYPE, "item 2 of field 'labels' is 0.5; expected true or false"),
        ({**ROW, "labels": [True]}, Reason.BAD_TYPE, "has 2 steps and field 'labels' has 1 labels"),
        ({**ROW, "labels": [True, "no"]}, Reason.BAD_TYPE, "item 2 of field 'labels' is str 'no'"),
        ({**ROW, "labels": [True, None]}, Reason.BAD_TYPE, "item 2 of field 'labels' is null"),
        ({**ROW, "completions": ["ab", 3]}, Reason.BAD_TYPE, "item 2 of field 'completions' is int 3"),
        ({**ROW, "completions": [], "labels": []}, Reason.EMPTY_RESPONSE, "expected at least one step"),
        ({"prompt": "Q?", "response": "A"}, Reason.MISSING_FIELD, "the row has no steps with labels"),
        ({"prompt_ids": [1], "response_ids": [2]}, Reason.MISSING_FIELD, "the row has no steps with labels"),
    ],
)
def test_reasons(row: dict[str, Any], reason: Reason, said: str) -> None:
    found = encoded(row)
    assert found.reason is reason
    assert said in found.problem


def test_values_that_float32_cannot_hold() -> None:
    assert encoded({**ROW, "labels": [3e38, -3e38]}, values=True).kept
    row = encoded({**ROW, "labels": [0.5, -1e39]}, values=True)
    assert row.reason is Reason.BAD_TYPE
    assert "item 2 of field 'labels' is -1e+39; expected a number that float32 can hold" in row.problem


def test_lists_as_json_text() -> None:
    row = encoded({"prompt": "Q?", "completions": '["ab", "c"]', "labels": "[true, false]"})
    assert row.sample.scores == (1, 0)


def test_a_row_that_another_format_reads() -> None:
    row = encoded({**ROW, "scores": [1, 2]})
    assert row.reason is Reason.MISSING_FIELD
    assert 'pass format="stepwise"' in row.problem
    assert mps.encode({**ROW, "scores": [1, 2]}, task=mps.ProcessReward(64), tokenizer="bytes", format="stepwise").kept


def test_two_steps_in_one_token() -> None:
    if not SHARED.exists():
        pytest.skip("needs ../shared")
    row = encoded(
        {**ROW, "completions": ["ab", "", "c"], "labels": [True, True, True]}, 64, SHARED / "tokenizers/qwen2_5"
    )
    assert row.reason is Reason.BAD_TYPE
    assert row.problem == (
        "steps 1 and 2 end in one token, which can have one label only [bad_type]. Correct the row, or pass another "
        "step_separator."
    )


@pytest.mark.parametrize("task", [mps.DPO(64), mps.Reward(64), mps.RLHF(64, 64)], ids=lambda task: task.name)
def test_other_tasks_refuse_such_rows(task: Any) -> None:
    found = mps.encode(ROW, task=task, tokenizer="bytes")
    assert found.reason is Reason.MISSING_FIELD
    assert "Use mps.ProcessReward for such rows" in found.problem


def test_options() -> None:
    with pytest.raises(OptionError, match="step_separator is ''; expected the text after each step"):
        mps.ProcessReward(8, step_separator="")
    with pytest.raises(OptionError, match="ProcessReward: values is 1; expected True or False"):
        mps.ProcessReward(8, values=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"Pack: the steps of mps\.ProcessReward are scored in rows of their own"):
        mps.stream([ROW], task=mps.ProcessReward(8), tokenizer="bytes", batching=mps.Pack(64))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=8)
STEPS = st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=5)


@pytest.mark.parametrize("name", ["bytes", "qwen2_5"])
@given(steps=STEPS, separator=st.sampled_from(["\n", "\n\n", " | ", "。\n", "е"]))
def test_labels_stand_where_the_separators_end(name: str, steps: list[tuple[str, bool]], separator: str) -> None:
    if name != "bytes" and not SHARED.exists():
        return
    tokenizer: Any = cached_tokenizer("bytes" if name == "bytes" else str(SHARED / "tokenizers" / name))
    texts, labels = zip(*steps, strict=True)
    row = {"prompt": "Q?", "completions": list(texts), "labels": list(labels)}
    found = encoded(row, 512, tokenizer, step_separator=separator)
    if not found.kept:
        assert found.reason in (Reason.EMPTY_RESPONSE, Reason.BAD_TYPE)  # blank, or two steps in one token
        return
    (sequence,) = found.sample.sequences
    assert found.sample.scores == tuple(map(float, labels))
    ids, text = sequence.ids.tolist(), "Q?"
    for (begin, end), step in zip(sequence.spans, texts, strict=True):
        text += step + separator
        assert end == begin + 1
        assert tokenizer.decode(ids[:end]).startswith(text)
        assert not tokenizer.decode(ids[:begin]).startswith(text)
