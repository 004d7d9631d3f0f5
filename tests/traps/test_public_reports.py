"""Problems that people reported to other trainers of preference data, with the rows of their reports.

Each test names the report and asserts what is right: exact ids and masks, or an error that says what to do.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.errors import Reason
from tests.traps.helpers import END, START, Row, Side, Tok, chatml, pair, rows_of, stream_of, turn

Families = Callable[[str], Tok]
BYTES = Tok("bytes", None)
HEADER = f"{START}assistant\n"
SCHEMA = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}}
OSLO, SUNNY, RAINY = turn("user", "Oslo?"), turn("assistant", "Sunny."), turn("assistant", "Rainy.")
CALL: dict[str, Any] = {"name": "weather", "arguments": {"city": "Oslo"}}
SWIFT_CALL = [{"role": "tool_call", "content": json.dumps(CALL)}, {"role": "tool_response", "content": "rain"}]
OPENAI_CALL = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]

# The same in the text of the small template in the manner of Qwen2.5.
SYSTEM = f"{START}system\nYou are a helper."
TOOLS = f"{SYSTEM}\n\n# Tools\n<tools>\n{json.dumps(SCHEMA)}\n</tools>{END}\n"
CALLED = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>{END}"
RESULT = f"\n{START}user\n<tool_response>\nrain\n</tool_response>{END}\n"


class Loss(str):
    """Text that must be under the loss."""


def check(side: Side, tok: Tok, *parts: str) -> None:
    """Checks that a side has exactly the tokens of these texts, and exactly those of `Loss` under the loss."""
    assert side.ids == tok.ids("".join(parts)), tok.decode(side.ids)
    runs = [(bit, list(run)) for bit, run in itertools.groupby(range(len(side.ids)), lambda at: side.mask[at])]
    assert [tok.decode([side.ids[at] for at in run]) for bit, run in runs] == list(parts)
    assert [bool(bit) for bit, _ in runs] == [isinstance(part, Loss) for part in parts]


def answers(found: Row, tok: Tok, prompt: str, chosen: str, rejected: str) -> None:
    """Checks both sides of a pair in ChatML: one prompt, each answer with its end under the loss."""
    check(found.chosen, tok, prompt, Loss(chosen + END), "\n")
    check(found.rejected, tok, prompt, Loss(rejected + END), "\n")


def one(row: Any, tok: Tok = BYTES, task: Any = None, **options: Any) -> Row:
    """The one row of a stream that accepts it."""
    (found,) = rows_of([row], tok, task, **{"on_bad_row": "raise", **options})
    return found


def problem(row: Any, reason: Reason, **options: Any) -> str:
    """What the library says about a row that it refuses."""
    found = mps.encode(row, task=mps.DPO(512), **{"tokenizer": "bytes", **options})
    assert found.reason is reason, found
    assert found.problem is not None
    return found.problem


def asked(*turns: tuple[str, str]) -> str:
    return chatml(*turns, asking=True)


@pytest.fixture
def family(field: pathlib.Path) -> Families:
    """A tokenizer with a small template in the manner of a family."""
    return lambda name: Tok(field / name, field / name)


class TestToolTurns:
    @pytest.mark.parametrize("rejected", ["Sunny.", [SUNNY]], ids=["text", "turns"])
    @pytest.mark.parametrize("called", [SWIFT_CALL, OPENAI_CALL], ids=["ms-swift", "OpenAI"])
    def test_a_rejected_answer_inherits_no_tool_results(
        self, family: Families, called: list[Any], rejected: Any
    ) -> None:
        """modelscope/ms-swift#7184 and pull 10127: it stood after the tool results of the chosen side."""
        tok = family("qwen2.5")
        row = {"tools": json.dumps([SCHEMA]), "messages": [OSLO, *called, RAINY], "rejected_response": rejected}
        found = one(row, tok, template="auto")
        prompt = f"{TOOLS}{START}user\nOslo?{END}\n{HEADER}"
        check(found.chosen, tok, prompt, Loss(CALLED), RESULT + HEADER, Loss(f"Rainy.{END}"), "\n")
        check(found.rejected, tok, prompt, Loss(f"Sunny.{END}"), "\n")

    def test_the_tools_of_the_rejected_side(self, family: Families) -> None:
        """modelscope/ms-swift pull 5878: agent rows repeat their schemas in `rejected_tools`."""
        tok = family("qwen2.5")
        row = {"tools": [SCHEMA], "messages": [OSLO, RAINY], "rejected_messages": [OSLO, SUNNY]}
        stream = stream_of([{**row, "rejected_tools": json.dumps([json.dumps(SCHEMA)])}], tok, template="auto")
        assert len(list(stream.batches())) == 1
        assert not stream.report.unread
        answers(
            one({**row, "rejected_tools": [SCHEMA]}, tok, template="auto"),
            tok, f"{TOOLS}{START}user\nOslo?{END}\n{HEADER}", "Rainy.", "Sunny.",
        )  # fmt: skip
        other = {"type": "function", "function": {"name": "clock"}}
        assert "'tools' and 'rejected_tools' differ" in problem(
            {**row, "rejected_tools": [other]}, Reason.HISTORY_DIFFERS
        )
        del row["tools"]
        problem({**row, "rejected_tools": [SCHEMA]}, Reason.HISTORY_DIFFERS)

    def test_calls_schemas_and_reasoning_all_reach_the_text(self, shared: pathlib.Path) -> None:
        """axolotl-ai-cloud/axolotl#3824: calls, schemas and reasoning were lost; null contents were an error."""
        tok = Tok(shared / "tokenizers" / "qwen3", shared / "tokenizers" / "qwen3")
        rejected = {"role": "assistant", "content": None, "tool_calls": [{"function": {**CALL, "name": "clock"}}]}
        row = {
            "tools": [SCHEMA],
            "messages": [OSLO, *OPENAI_CALL],
            "chosen": {**RAINY, "reasoning_content": "It says rain."},
            "rejected": rejected,
        }
        found = one(row, tok, mps.DPO(1024), template="auto")
        assert tok.decode(found.chosen.trained) == f"<think>\nIt says rain.\n</think>\n\nRainy.{END}"
        assert tok.decode(found.rejected.trained) == CALLED.replace("weather", "clock")
        for side in found:
            assert json.dumps(SCHEMA) in tok.decode(side.prompt)
            assert CALLED in tok.decode(side.prompt)

    @pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": "{}"}])
    def test_a_call_without_arguments(self, family: Families, arguments: dict[str, Any]) -> None:
        """axolotl-ai-cloud/axolotl#3217: tool turns were a KeyError; the call of the report states no arguments."""
        tok = family("qwen2.5")
        called = [
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "search", **arguments}}]},
            {"role": "tool", "name": "search", "tool_call_id": "1", "content": "rain"},
        ]
        found = one({"messages": [OSLO, *called], "chosen": RAINY, "rejected": SUNNY}, tok, template="auto")
        call = '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>'
        answers(
            found, tok, f"{SYSTEM}{END}\n{START}user\nOslo?{END}\n{HEADER}{call}{END}{RESULT}{HEADER}", "Rainy.",
            "Sunny.",
        )  # fmt: skip

    def test_conversations_with_their_tools_as_json_text(self, family: Families) -> None:
        """kakao/diatool-dpo#2: each side is the JSON text of messages and tools."""
        tok = family("qwen2.5")
        row = {
            name: json.dumps({"messages": [OSLO, said], "tools": [SCHEMA]})
            for name, said in (("chosen", RAINY), ("rejected", SUNNY))
        }
        said = problem(row, Reason.BAD_TYPE)
        assert 'fields={"chosen": "chosen.messages", "rejected": "rejected.messages"}' in said
        fields = {"chosen": "chosen.messages", "rejected": "rejected.messages"}
        alone = mps.encode(row, task=mps.DPO(512), tokenizer=tok.loaded, fields=fields)
        assert set(alone.unread) == {"chosen.tools", "rejected.tools"}
        found = one(row, tok, template="auto", fields={**fields, "tools": "chosen.tools"})
        answers(found, tok, f"{TOOLS}{START}user\nOslo?{END}\n{HEADER}", "Rainy.", "Sunny.")


class TestShapesOfRows:
    @pytest.mark.parametrize(
        "rejected",
        [["Bad", "Worse"], [turn("assistant", "Bad"), turn("assistant", "Worse")], [[SUNNY], [RAINY]]],
        ids=["texts", "turns", "lists"],
    )
    def test_several_rejected_answers_are_not_one(self, rejected: Any) -> None:
        """modelscope/ms-swift#7314: may `rejected_response` be a list of several bad answers?"""
        row = {"messages": [turn("user", "Why?"), turn("assistant", "Good")], "rejected_response": rejected}
        assert "several answers" in problem(row, Reason.BAD_TYPE)
        ranked = {"prompt": "Why?", "responses": ["Good", "Bad", "Worse"], "scores": [1, 0, 0]}
        found = rows_of([ranked], BYTES, format=mps.formats.ranked(policy="all"), shuffle=False)
        assert [BYTES.decode(side.rejected.trained) for side in found] == [f"Bad{END}", f"Worse{END}"]

    def test_pictures_of_the_rejected_side(self) -> None:
        """modelscope/ms-swift#7314, its second row: only the picture differs, which no text holds."""
        messages = [turn("user", "<image>What is it?"), turn("assistant", "A cat.")]
        row = {"messages": messages, "rejected_messages": [messages[0], SUNNY], "rejected_images": ["dog.png"]}
        assert "'rejected_images'" in problem(row, Reason.BAD_TYPE)
        one({**row, "rejected_images": []})

    def test_alpaca_with_a_system_message(self) -> None:
        """modelscope/ms-swift#6830: system, instruction, input, chosen and rejected in one row."""
        row = {"system": "Be brief.", "instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"}
        answers(one(row), BYTES, asked(("system", "Be brief."), ("user", "Add.\n1 2")), "3", "4")

    def test_answers_inside_of_objects(self) -> None:
        """hiyouga/LlamaFactory#4717 and #4720: question, pos_answer.answer, neg_answer.answer gave `KeyError: None`."""
        row = {
            "id": "calendar_135",
            "question": "Which day?",
            "pos_answer": {"answer": "Monday", "score": 1.0, "actions": "Thought: I look."},
            "neg_answer": {"answer": "Tuesday", "score": 0.0, "actions": "Thought: I guess."},
        }
        line = 'fields={"prompt": "question", "chosen": "pos_answer.answer", "rejected": "neg_answer.answer"}'
        assert line in problem(row, Reason.MISSING_FIELD)
        fields = json.loads(line.removeprefix("fields="))
        answers(one(row, fields=fields), BYTES, asked(("user", "Which day?")), "Monday", "Tuesday")
        shown = mps.encode(row, task=mps.DPO(512), tokenizer="bytes", fields=fields)
        assert set(shown.unread) == {"pos_answer.actions", "neg_answer.actions"}

    def test_roles_in_capitals(self) -> None:
        """hiyouga/LlamaFactory#3264: whole conversations with the roles Human and Assistant."""
        row = {
            name: [{"role": "Human", "content": "Why?"}, {"role": "Assistant", "content": said}]
            for name, said in (("chosen", "Good"), ("rejected", "Bad"))
        }
        answers(one(row), BYTES, asked(("user", "Why?")), "Good", "Bad")

    def test_an_answer_with_the_role_of_the_user(self) -> None:
        """huggingface/trl#2385: a map function gave the rejected answer the role of the user."""
        row = pair([turn("user", "Why?")], [turn("assistant", "Good")], [turn("user", "Bad")])
        assert "'rejected' has no turn of the assistant" in problem(row, Reason.UNKNOWN_ROLE)

    def test_ranked_completions_with_whole_turns(self) -> None:
        """NVIDIA-NeMo/RL pulls 673 and 1388: context, and completions that each have a rank, from 0 on."""
        row = {
            "context": [turn("user", "Why?")],
            "completions": [
                {"rank": 1, "completion": [turn("assistant", "Bad")]},
                {"rank": 0, "completion": [turn("assistant", "Good")]},
            ],
        }
        assert 'fields={"prompt": "context"}' in problem(row, Reason.MISSING_FIELD)
        answers(one(row, fields={"prompt": "context"}), BYTES, asked(("user", "Why?")), "Good", "Bad")

    def test_more_turns_than_two(self) -> None:
        """axolotl-ai-cloud/axolotl#1645: of several turns the first question and answer were taken, silently."""
        said = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Why?")]
        row = {"chosen": [*said, turn("assistant", "Good")], "rejected": [*said, turn("assistant", "Bad")]}
        prompt = asked(("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))
        answers(one(row), BYTES, prompt, "Good", "Bad")

    def test_one_side_goes_on_after_the_other(self) -> None:
        """huggingface/trl pulls 6472 and 6960: one side begins the other, and the border was off by one."""
        longer = one(pair("Why?", "The sky is blue", "The sky is blue and vast"))
        answers(longer, BYTES, asked(("user", "Why?")), "The sky is blue", "The sky is blue and vast")
        said = [turn("user", "Why?"), turn("assistant", "Hm."), turn("user", "So?"), turn("assistant", "Yes")]
        assert "'rejected'" in problem({"chosen": said, "rejected": said[:2]}, Reason.HISTORY_DIFFERS)

    def test_dialogues_divide_at_the_last_answer(self) -> None:
        """huggingface/trl#1858: of hh-rlhf's dialogues the first question was the prompt, and the rest the answer."""
        said = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
        row = {"chosen": f"{said} Good", "rejected": f"{said} Bad"}
        prompt = asked(("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))
        answers(one(row), BYTES, prompt, "Good", "Bad")

    def test_a_prompt_beside_whole_conversations(self, tok: Tok) -> None:
        """OpenRLHF/OpenRLHF#909, huggingface/trl#1541, allenai/reward-bench#140: the prompt stood in the text twice."""
        why, good, bad = turn("user", "Why?"), turn("assistant", "Good"), turn("assistant", "Bad")
        rows = [
            pair([why], [good], [bad]),
            {"chosen": [why, good], "rejected": [why, bad]},
            pair([why], [why, good], [why, bad]),
            pair("Why?", [why, good], [why, bad]),
        ]
        for found in rows_of(rows, tok, on_bad_row="raise"):
            answers(found, tok, asked(("user", "Why?")), "Good", "Bad")


class TestTemplates:
    @pytest.mark.parametrize("rendered", ["prompt and ends", "whole conversations"])
    def test_text_that_is_rendered_already(self, tok: Tok, rendered: str) -> None:
        """huggingface/trl#2578, allenai/reward-bench#250: a template over rows that were rendered beforehand."""
        prompt = asked(("user", "Why?"))
        row = pair(prompt, f"Good{END}\n", f"Bad{END}\n")
        if rendered == "whole conversations":
            row = pair("Why?", f"{prompt}Good{END}\n", f"{prompt}Bad{END}\n")
        stream = stream_of([row], tok)
        list(stream.batches())
        assert stream.report.markers == 1
        assert any("rendered already" in warning for warning in stream.report.warnings)
        plain = stream_of([pair(f"What is {START}?", "A marker", "A tag")], tok)
        list(plain.batches())
        assert plain.report.markers == 0

    def test_the_way_out_for_rendered_text(self, family: Families) -> None:
        """huggingface/trl#2578: with the named options the ids are those of the text, without a second end."""
        tok, prompt = family("chatml"), asked(("user", "Why?"))
        row = pair(prompt, f"Good{END}", f"Bad{END}")
        found = one(row, tok, template=None, special_tokens_in_content="allow")
        check(found.chosen, tok, prompt, Loss(f"Good{END}"))
        check(found.rejected, tok, prompt, Loss(f"Bad{END}"))

    def test_no_template_is_said(self, gpt2_dir: pathlib.Path) -> None:
        """huggingface/trl#1687 and #1640: nobody said that no chat template was applied."""
        tok = Tok(gpt2_dir, gpt2_dir)
        stream = stream_of([pair("Why?", " Good", " Bad")], tok, template="auto")
        list(stream.batches())
        assert any("no chat template" in warning for warning in stream.report.warnings)

    def test_one_bos_for_prompt_and_answers(self, family: Families) -> None:
        """axolotl-ai-cloud/axolotl#1616, YangRui2015/Generalizable-Reward-Model#6: BOS once more before each answer."""
        tok = family("llama3")
        found = one(pair("Why?", "Good", "Bad"), tok, template="auto")
        head = "<|start_header_id|>{}<|end_header_id|>\n\n"
        prompt = f"<|begin_of_text|>{head.format('user')}Why?<|eot_id|>{head.format('assistant')}"
        check(found.chosen, tok, prompt, Loss("Good<|eot_id|>"))
        check(found.rejected, tok, prompt, Loss("Bad<|eot_id|>"))

    def test_no_bos_where_the_tokenizer_has_none(self, family: Families) -> None:
        """huggingface/trl#1073 and pull 1885: Qwen has no BOS, and None became a token."""
        tok = family("chatml")
        assert tok.loaded.bos_id is None
        answers(one(pair("Why?", "Good", "Bad"), tok), tok, asked(("user", "Why?")), "Good", "Bad")
        check(one(pair("Why?", " Good", " Bad"), tok, template=None).chosen, tok, "Why?", Loss(f" Good{END}"))

    def test_one_end_of_turn(self, tok: Tok) -> None:
        """huggingface/trl#4481: the end token was added once more after the template's own."""
        found = one(pair([turn("user", "2+2?")], [turn("assistant", "4.")], [turn("assistant", "5.")]), tok)
        assert all(side.trained.count(tok.loaded.special[END]) == 1 for side in found)
        answers(found, tok, asked(("user", "2+2?")), "4.", "5.")

    def test_ends_of_earlier_turns_are_seen_but_not_trained(self, tok: Tok) -> None:
        """huggingface/trl pull 741: with several turns the ends of the earlier ones were hidden from attention."""
        said = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Why?")]
        row = pair(said, [turn("assistant", "Good")], [turn("assistant", "Bad")])
        end = tok.loaded.special[END]
        found = one(row, tok, pad_token_id=end)
        assert found.chosen.ids.count(end) == 4
        answers(found, tok, asked(("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")), "Good", "Bad")

    def test_a_space_at_the_end_of_the_prompt(self, tok_named: Callable[[str], Tok]) -> None:
        """huggingface/trl#2054: it joins the answer's first token, which was then cut at the wrong place."""
        for name in ("byte-level BPE", "dummy prefix"):
            tok = tok_named(name)
            found = one(pair("Choose the light. ", "The light", "Bread"), tok, template=None)
            assert found.chosen.prompt == found.rejected.prompt
            assert tok.decode(found.chosen.trained).removesuffix(tok.loaded.eos_token or "").strip() == "The light"
            assert tok.decode(found.rejected.trained).removesuffix(tok.loaded.eos_token or "").strip() == "Bread"

    def test_a_system_message_is_never_part_of_an_answer(self, family: Families) -> None:
        """huggingface/alignment-handbook#167: answers rendered by themselves began with a system block."""
        tok = family("qwen2.5")
        found = one(pair("Why?", "Good", "Bad"), tok, template="auto")
        answers(found, tok, f"{SYSTEM}{END}\n{asked(('user', 'Why?'))}", "Good", "Bad")

    def test_a_template_without_system_messages(self, family: Families) -> None:
        """huggingface/alignment-handbook pull 123: Gemma's template refuses the system message that was inserted."""
        tok = family("gemma")
        found = one(pair("Why?", "Good", "Bad", system=""), tok, template="auto")
        prompt = "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
        check(found.chosen, tok, prompt, Loss("Good<end_of_turn>"), "\n")
        said = problem(pair("Why?", "Good", "Bad", system="Be brief."), Reason.TEMPLATE_REFUSED, tokenizer=tok.loaded)
        assert "System role not supported" in said

    def test_empty_think_blocks(self, family: Families) -> None:
        """modelscope/ms-swift#6763, hiyouga/LlamaFactory#7905, jingyaogong/minimind pull 829: they were trained."""
        tok = family("qwen3")
        prompt = asked(("user", "Why?")) + "<think>\n\n</think>\n\n"
        rows = [pair("Why?", "Good", "Bad"), {"messages": [OSLO, RAINY], "rejected_response": "Sunny."}]
        stream = stream_of(rows, tok, template="auto")
        assert len(list(stream.batches())) == stream.report.empty_think == 2
        answers(one(rows[0], tok, template="auto"), tok, prompt, "Good", "Bad")
        answers(one(rows[1], tok, template="auto"), tok, prompt.replace("Why?", "Oslo?"), "Rainy.", "Sunny.")


class TestLengths:
    def test_both_sides_keep_the_limit_and_one_prompt(self, tok: Tok) -> None:
        """hiyouga/LlamaFactory#4402 and #4617: the prompt was cut for the chosen side, so the rejected was too long."""
        row = pair("Tea or bread? " * 20, "Tea.", "Bread, and light! " * 4)
        found = one(row, tok, mps.DPO(140))
        assert max(len(side.ids) for side in found) <= 140
        assert found.chosen.prompt == found.rejected.prompt
        assert tok.decode(found.chosen.trained) == f"Tea.{END}"
        assert tok.decode(found.rejected.trained).startswith("Bread, and")

    @pytest.mark.parametrize("truncation", ["prompt_left", "response_right", "drop"])
    def test_no_row_without_a_token_under_the_loss(self, tok: Tok, truncation: str) -> None:
        """modelscope/ms-swift#3276, verl-project/verl pull 6441: every label was -100, and the loss NaN."""
        rows = [pair("Tea? " * 200, "Good", "Bad"), pair("Why?", "Good", "Bad")]
        stream = stream_of(rows, tok, mps.DPO(64, truncation=truncation, layout="concat"))
        batches = list(stream.batches())
        assert len(batches) == 2
        for batch in batches:
            assert (batch["labels"] != -100).any(axis=1).all()
        kept = 2 if truncation == "prompt_left" else 1
        assert sum(stream.report.dropped.values()) == 2 - kept

    @pytest.mark.parametrize("limit", [64, 80])
    def test_a_prompt_limit_without_room_for_an_answer(self, limit: int) -> None:
        """huggingface/trl#3339: max_prompt_length as large as max_length left empty answers, and the loss NaN."""
        with pytest.raises(mps.OptionError, match="expected the prompt limit to be at most 63"):
            mps.DPO(64, max_prompt_length=limit)

    def test_too_long_rows_are_dropped_whole_and_counted(self, tok: Tok) -> None:
        """huggingface/trl#1832 and #2488: leave long rows out instead of cutting them, and say so."""
        rows = [pair("Why?", "Good", "Bad"), pair("Why?", "Good " * 99, "Bad"), pair("Tea?", "Yes", "No")]
        stream = stream_of(rows, tok, mps.DPO(64, truncation="drop"))
        list(stream.batches())
        assert stream.report.dropped == {"too_long": 1}
        assert stream.report.truncated == 0
        assert "row 1 of list" in str(stream.report)

    def test_pairs_that_differ_after_the_cut_only(self, tok: Tok) -> None:
        """OpenRLHF/OpenRLHF#1311, natolambert/rlhf-book#503: cut sides were equal, their last token an end of turn."""
        same = "The light is good. " * 20
        rows = [pair("Why?", f"{same}Yes", f"{same}No"), pair("Why?", f"Yes {same}", f"No {same}")]
        stream = stream_of(rows, tok, mps.DPO(64, truncation="response_right"))
        list(stream.batches())
        assert stream.report.dropped == {"identical_after_truncation": 1}
        found = one(rows[1], tok, mps.DPO(64, truncation="response_right"))
        assert all(len(side.ids) == 64 and tok.loaded.special[END] not in side.trained for side in found)


class TestBatches:
    def test_the_prompts_of_both_sides_are_masked(self, tok: Tok) -> None:
        """OpenRLHF/OpenRLHF#294: in joined batches only the prompts of the chosen half were masked."""
        rows = [pair("Why?", "Good", "Bad"), pair("Tea or bread?", "Tea", "Bread")]
        stream = stream_of(rows, tok, mps.DPO(64, layout="concat"), batching=mps.Pad(2))
        (batch,) = stream.batches()
        texts = ["Good", "Tea", "Bad", "Bread"]
        for labels, mask, text in zip(batch["labels"], batch["loss_mask"], texts, strict=True):
            assert tok.decode(labels[labels != -100].tolist()) == text + END
            assert np.array_equal(labels != -100, mask == 1)

    def test_the_end_of_a_row_where_the_pad_id_is_the_end_token(self, family: Families) -> None:
        """RLHFlow/RLHF-Reward-Modeling#49, YangRui2015/Generalizable-Reward-Model#1: scores of the shared prompt."""
        tok = family("llama3")
        end = tok.loaded.special["<|eot_id|>"]
        stream = stream_of(
            [pair("Why?", "Good", "Bad and more")], tok, mps.Reward(64), template="auto", pad_token_id=end
        )
        (batch,) = stream.batches()
        lengths = batch["attention_mask"].sum(axis=1).astype(int)
        assert batch["end_ind"].tolist() == lengths.tolist()
        assert lengths[0] < lengths[1]
        for ids, length in zip(batch["input_ids"], lengths, strict=True):
            assert ids[length - 1] == end
            assert (ids[: length - 1] == end).sum() == 1  # that of the question

    @pytest.mark.parametrize("source", [list, lambda rows: lambda: iter(rows)], ids=["list", "generator"])
    def test_a_data_set_with_equal_sides(self, source: Callable[[list[Any]], Any]) -> None:
        """camel-ai/owl#592: 144 of 220 published pairs have the same text on both sides."""
        rows = [pair(f"Why {n}?", "Same" if n % 3 else f"Good {n}", "Same") for n in range(90)]
        stream = stream_of(source(rows), BYTES, mps.DPO(64), window=30)
        list(stream.batches())
        assert stream.report.dropped == {"identical": 60}
        (warning,) = [one for one in stream.report.warnings if "identical" in one]
        assert "both sides are the same" in warning
        few = stream_of([pair("Why?", "Good", "Bad")] * 87 + rows[:3], BYTES, mps.DPO(64), window=30)
        list(few.batches())
        assert not [one for one in few.report.warnings if "identical" in one]


def test_a_stream_that_is_resumed_twice() -> None:
    """huggingface/datasets#8308: after a first resume the state of a streamed data set stayed at its beginning."""
    datasets = pytest.importorskip("datasets")
    rows = [pair(f"#{n}#", "Good", "Bad") for n in range(24)]

    def stream() -> mps.Stream:
        source = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3).map(lambda row: row)
        return stream_of(source, BYTES, steps_per_epoch=24)

    def numbers(given: mps.Stream, count: int | None = None) -> list[str]:
        batches = itertools.islice(given.batches(epoch=0), count)
        return [BYTES.decode(batch["chosen_input_ids"][0].tolist()).split("#")[1] for batch in batches]

    expected = [str(n) for n in range(24)]
    first = stream()
    assert numbers(first, 7) == expected[:7]
    second = stream()
    second.resume(json.loads(json.dumps(first.state(step=7))))
    assert numbers(second, 6) == expected[7:13]
    third = stream()
    third.resume(json.loads(json.dumps(second.state(step=13))))
    assert numbers(third) == expected[13:]
