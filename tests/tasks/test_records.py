"""Records as tasks encode them: nothing that a row says is lost on the way, and what has no use is refused."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers, pre_tokenizers

import ms_prefstream as mps
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Pair, Ranked, Stepwise, TokenCompletion, TokenPair
from ms_prefstream.sample import LARGEST
from ms_prefstream.tasks.base import Traits, added_defaults, stated_options, traits
from ms_prefstream.tasks.records import labelled_record, prompt_record, usual_record
from tests.fixtures_tokenizers import train_byte_level, write_directory

Q, A, B = ((Message(role, text),) for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
ABOUT: dict[str, Any] = {"origin": "rows.jsonl:7", "unread": ("score",), "carried": (1, "x")}
TEXT = {**ABOUT, "tools": ({"name": "f"},), "variables": {"v": 1}}
PAIR, IDS = Pair(Q, A, B, 0.5, **TEXT), TokenPair((1,), (2,), (3,), 0.5, **ABOUT)
RANKED = Ranked(Q, ((A, 1.0), (B, 0.0)), TEXT["tools"], **ABOUT)


def test_the_prompt_of_every_record() -> None:
    assert prompt_record(PAIR) == prompt_record(Completion(Q, A, desirable=True, **TEXT)) == Completion(Q, (), **TEXT)
    assert prompt_record(RANKED) == Completion(Q, (), **{**TEXT, "variables": None})
    assert (
        prompt_record(IDS) == prompt_record(TokenCompletion((1,), (2,), **ABOUT)) == TokenCompletion((1,), (), **ABOUT)
    )


def test_the_chosen_side_of_a_pair_is_the_response() -> None:
    assert usual_record(PAIR, pairs=False) == Completion(Q, A, **TEXT)
    assert usual_record(IDS, pairs=False) == TokenCompletion((1,), (2,), **ABOUT)
    for record in (PAIR, IDS):
        assert usual_record(record, pairs=True) is record
    for record in (Completion(Q, A, **TEXT), TokenCompletion((1,), (2,), **ABOUT)):
        assert usual_record(record, pairs=False) is record
        with pytest.raises(RowError, match=r"no rejected side; .* \(nothing reads the fields score\)"):
            usual_record(record, pairs=True)


def test_marked_responses() -> None:
    for record in (Completion(Q, A, desirable=False, **TEXT), TokenCompletion((1,), (2,), **ABOUT, desirable=True)):
        assert labelled_record(record) is record
    for record, said in (
        (PAIR, "the row is a pair; expected one response, as in the rows of this source that were looked at first "
               "[bad_type]. Put pairs in a source of their own, as a part of mps.mix, or at the beginning of this "
               "one."),
        (RANKED, "the row has several responses or steps; expected one response with a label [missing_field]. Name a "
                 "format that makes pairs of them, such as format='ranked'."),
        (Stepwise(Q, A, desirable=True), "the row has several responses or steps; expected one response with a label "
                 "[missing_field]. Name a format that makes pairs of them, such as format='ranked'."),
        (TokenCompletion((1,), desirable=True), "the row has no response; expected one, with a label [missing_field]."),
    ):  # fmt: skip
        with pytest.raises(RowError) as raised:
            labelled_record(record)  # type: ignore[arg-type]
        assert str(raised.value) == said


def test_options_for_people() -> None:
    assert stated_options(mps.DPO(64)) == ["max_length 64"]
    assert stated_options(mps.DPO(64, truncation="drop", margin=True)) == [
        "max_length 64",
        "truncation drop",
        "margin True",
    ]
    assert stated_options(mps.ProcessReward(64, step_separator="\n\n")) == ["max_length 64", r"step_separator '\n\n'"]
    assert added_defaults(mps.DPO) == {"append_eos": True}
    assert added_defaults(None) == {}


def test_what_a_task_states_of_its_traits_counts() -> None:
    class Own:
        scores = True
        least_rows = 3
        max_length = 9

        def record(self, record: Any) -> str:
            return "own"

    found = traits(Own())  # type: ignore[arg-type]
    assert (found.scores, found.least_rows, found.trains) == (True, 3, True)
    assert found.record(PAIR) == "own"  # type: ignore[comparison-overlap]
    assert traits(mps.DPO(8)).record(PAIR) is PAIR
    assert isinstance(found, Traits)


ROW = {"prompt": "Q?", "chosen": "yes", "rejected": "no"}
MARKED = {"prompt": "Q?", "completion": "yes", "label": True}
START = "{% for m in messages %}{{ m.role }}:"
LOWER = START + "{{ m.content | lower }}<|im_end|>{% endfor %}"
TRIMS = START + "{{ m.content | trim }}<|im_end|>{% endfor %}"


def encoded(row: Any, task: Any, template: str | None) -> Any:
    if template is not None:
        template += "{% if add_generation_prompt %}assistant:{% endif %}"
    return mps.encode(row, task=task, tokenizer="bytes", template=template)


def test_sides_that_a_template_makes_equal() -> None:
    same = encoded(ROW | {"rejected": "YES"}, mps.DPO(64), LOWER)
    assert same.reason is Reason.IDENTICAL
    assert same.problem == "chosen and rejected become the same tokens [identical]."


@pytest.mark.parametrize("kind", [mps.DPO, mps.KTO, mps.Reward, mps.ProcessReward])
def test_prompts_are_cut_to_their_own_limit(kind: Any) -> None:
    steps = {"completions": ["yes"], "labels": [True]}
    row = {mps.KTO: MARKED, mps.ProcessReward: steps}.get(kind, ROW) | {"prompt": "0123456789 " * 4}
    for limit, tokens in ((None, 63), (40, 44), (24, 28)):
        (sequence, *_) = encoded(row, kind(64, max_prompt_length=limit), TRIMS).sample.sequences
        assert len(sequence.ids) == tokens, "the response and its end take four"


def test_labels_of_steps_stand_at_single_tokens() -> None:
    def spans(steps: list[str], labels: list[Any], template: str | None = TRIMS, **options: Any) -> Any:
        found = encoded(
            {"prompt": "Q", "completions": steps, "labels": labels}, mps.ProcessReward(64, **options), template
        )
        return found.problem or found.sample.sequences[0].spans

    begin = len("user:Q") + 1 + len("assistant:")
    assert spans(["ab", "c"], [True, False]) == ((begin + 2, begin + 3), (begin + 3, begin + 4))
    assert spans(["a"], [True]) == ((begin, begin + 1),)
    assert spans(["a", "b"], [LARGEST, -LARGEST], values=True) == ((begin + 1, begin + 2), (begin + 2, begin + 3))
    lost = "the chat template leaves out the end of step {} of {}, so that its label has no token [content_lost]. Pass "
    lost += "template= that writes responses as they are, or another step_separator."
    assert spans(["ab", " "], [True, True]) == lost.format(1, 2)
    cuts = TRIMS.replace("m.content | trim", "m.content[:2] ~ m.content[4:]")
    assert spans(["ab", "c", "d"], [True] * 3, cuts) == lost.format(1, 3)
    # The last step is lost with its separator: the end of the step before it is not its place.
    cuts = TRIMS.replace("m.content | trim", "m.content[:-2] if m.role == 'assistant' else m.content")
    assert spans(["ab", "c"], [True] * 2, cuts) == lost.format(2, 2)


def test_a_step_that_is_the_first_token() -> None:
    template = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    row = {"prompt": "", "completions": ["a"], "labels": [True]}
    found = mps.encode(row, task=mps.ProcessReward(64), tokenizer="bytes", template=template).sample
    assert ([one.ids.tolist() for one in found.sequences], found.scores) == ([[97]], (1.0,))
    assert found.sequences[0].spans == ((0, 1),)


def test_responses_that_the_tokenizer_makes_no_token_of(tmp_path: pathlib.Path) -> None:
    tokenizer = train_byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Replace("\u200b", ""), ["</s>"]
    )
    folder = write_directory(tmp_path / "tokenizer", tokenizer.to_str(), {"eos_token": "</s>"})
    for task, name, said in (
        (mps.DPO(64, append_eos=False), "chosen", "the chosen side has no response token"),
        (mps.DPO(64, append_eos=False), "rejected", "the rejected side has no response token"),
        (mps.KTO(64, append_eos=False), "completion", "the response has no token"),
        (mps.RLHF(32, 64, append_eos=False), "completion", "the response has no token"),
    ):
        row = (ROW if isinstance(task, mps.DPO) else MARKED) | {name: "\u200b"}
        found = mps.encode(row, task=task, tokenizer=folder, template=None)
        assert found.problem == f"{said} [no_response_tokens]."


def test_the_first_id_can_be_the_reward_token() -> None:
    task = mps.Reward(8, layout="reward_token", reward_token=0)
    assert task.token_id(None) == 0
    assert dataclasses.replace(task, reward_token=None) == mps.Reward(8, layout="reward_token")


def test_the_reward_token_is_refused_in_texts_and_other_control_tokens_are_not() -> None:
    task = mps.Reward(64, layout="reward_token", reward_token=256)
    found = encoded(ROW | {"chosen": "yes<|endoftext|>"}, task, None)
    assert found.problem.startswith("the assistant turn holds the control token '<|endoftext|>'; expected text without")
    (chosen, rejected) = encoded(ROW | {"chosen": "yes<|im_end|>"}, task, None).sample.sequences
    for sequence in (chosen, rejected):
        assert sequence.spans == ((len(sequence.ids) - 1, len(sequence.ids)),)
        assert np.flatnonzero(sequence.ids == 256).tolist() == [len(sequence.ids) - 1]
        assert sequence.ids.dtype == np.int32
