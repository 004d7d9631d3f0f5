# ruff: noqa: E501 - Jinja reads best a tag at a time
"""What the template makes of a row, seen through `mps.encode`: nothing vanishes, and nothing is added that no row has."""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.encoder import Encoded
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.record import Completion, Message
from ms_prefstream.inspection import EncodedRow
from ms_prefstream.sample import Note
from tests.encode.chat_templates import CHATML
from tests.encode.oracle import Oracle

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
R1 = TURNS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
QWEN3_LIKE = TURNS.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}",
)
CALLING = TURNS.replace("{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}%s{% endfor %}")
ARGUMENTS = {  # the manner of a family: what it writes for a call of f with {"a": 1, "b": "é"}
    "qwen": ("{{ '{\"name\": \"' + c.function.name + '\", \"arguments\": ' }}{{ c.function.arguments | tojson }}}", '{"name": "f", "arguments": {"a": 1, "b": "é"}}'),
    "llama 3.1": ("{{ '{\"name\": \"' ~ c.function.name ~ '\", \"parameters\": ' ~ (c.function.arguments | tojson) ~ '}' }}", '{"name": "f", "parameters": {"a": 1, "b": "é"}}'),
    "mistral": ("{{ c.function | tojson }}", '{"name": "f", "arguments": {"a": 1, "b": "é"}}'),
    "deepseek": ("{{ '<｜tool▁sep｜>' + c['function']['name'] + '\\n```json\\n' + c['function']['arguments'] + '\\n```' }}", '<｜tool▁sep｜>f\n```json\n{"a": 1, "b": "é"}\n```'),
    "glm": ("{{ c.function.name }}{% for k, v in c.function.arguments.items() %}{{ '\n<arg_key>' ~ k ~ '</arg_key>\n<arg_value>' }}{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>{% endfor %}", "f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>é</arg_value>"),
}  # fmt: skip
SCHEMA = {"type": "function", "function": {"name": "f", "description": "Adds.", "parameters": {"type": "object"}}}
DPO = mps.DPO(max_length=1024)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


def call(arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "arguments": arguments}}]


QUESTION = (user("q"),)


def encode(
    chosen: Any, prompt: Any = QUESTION, tokenizer: Any = "bytes", task: Any = DPO, **options: Any
) -> EncodedRow:
    row = {"prompt": prompt if isinstance(prompt, str) else [*prompt], "chosen": chosen, "rejected": said("no")}
    if isinstance(prompt, str):
        row["rejected"] = "no"
    if "tools" in options:
        row["tools"] = options.pop("tools")
    return mps.encode(row, task=task, tokenizer=tokenizer, **options)


def one(prompt: Any, response: Any = (), variables: Any = None, tokenizer: Any = "bytes", **options: Any) -> Encoded:
    """One conversation, encoded."""
    loaded = load_tokenizer(tokenizer)
    record = Completion(
        *(tuple(Message(**turn) for turn in turns) for turns in (prompt, response)), variables=variables
    )
    (found,) = build_encoder(loaded, **options).encode([record])
    if isinstance(found, RowError):
        raise found
    return found[-1]


def trained(found: EncodedRow, side: int) -> str:
    """The text under the loss of one side."""
    return "".join(found.sides[side].trained)


def text_of(encoded: Encoded) -> str:
    return load_tokenizer("bytes").decode(encoded.ids.tolist())


class TestCalls:
    def test_a_content_of_none_is_never_written(self) -> None:
        found = encode(said(None, tool_calls=call({"a": 1})), template=TURNS)  # type: ignore[arg-type]
        assert found.reason is Reason.TEMPLATE_REFUSED
        assert "leaves out the tool calls" in found.problem

    @pytest.mark.parametrize("lost", ["names", "arguments", "one of two"])
    def test_each_call_is_looked_for_by_itself(self, lost: str) -> None:
        writes = {"names": "{{ c.function.name }}", "arguments": "{{ c.function.arguments | tojson }}"}
        template = CALLING.replace("%s", writes.get(lost, "{% if loop.first %}{{ c | tojson }}{% endif %}"))
        found = encode(said("", tool_calls=[*call({"a": 1}), *call({"b": "f"})]), template=template)
        assert "leaves out the tool calls" in found.problem

    def test_a_value_that_stands_elsewhere_in_the_text_is_not_held(self) -> None:
        """Found by position: the question has the very words of the call."""
        found = encode(said("", tool_calls=call({"a": 1})), [user('f {"a": 1}')], template=TURNS)
        assert "leaves out the tool calls" in found.problem

    @pytest.mark.parametrize("arguments", [{"a": 1, "b": "é"}, '{"a": 1, "b": "é"}', '{"a":1,"b":"\\u00e9"}'])
    @pytest.mark.parametrize("family", ARGUMENTS)
    def test_both_spellings_of_arguments(self, family: str, arguments: Any) -> None:
        writes, expected = ARGUMENTS[family]
        found = encode(said("", tool_calls=call(arguments)), template=CALLING.replace("%s", writes))
        assert found.kept, found.problem
        assert trained(found, 0).removesuffix("<|end|>") == expected

    def test_the_id_may_stand_for_the_name(self) -> None:
        writes = "{{ c.id }}({{ c.function.arguments | tojson }})"
        for id_, kept in (("functions.f:0", True), ("functions.find:0", False), ("0", False)):
            calls = [{**call({"a": 1})[0], "id": id_}]
            assert encode(said("", tool_calls=calls), template=CALLING.replace("%s", writes)).kept is kept
        for function, writes in (
            ({"name": "f"}, "{{ c.function.arguments or '' }}"),
            (call({"a": 1})[0]["function"], "{{ c.function | tojson }}"),
        ):
            calls = [{"id": "functions.f:0", "function": function}]
            assert encode(said("", tool_calls=calls), template=CALLING.replace("%s", "{{ c.id }}" + writes)).kept

    @pytest.mark.parametrize(
        ("cut", "kept"), [("[:-1]", True), ("[1:-1]", True), (".strip('{}')", True), ("[:-4]", False)]
    )
    def test_an_object_without_its_last_bracket(self, cut: str, kept: bool) -> None:
        """Mistral's templates put the id into the object of a call."""
        for before in ("", "'call ' ~ "):
            writes = "{% set out = " + before + "(c.function | tojson) %}{{ out" + cut + " ~ ', more}' }}"
            found = encode(said("", tool_calls=call({"a": 12})), template=CALLING.replace("%s", writes))
            assert found.kept is (kept or (before != "" and cut == "[1:-1]"))

    @pytest.mark.parametrize("arguments", ["no JSON {", '"text"', '{"a": 1, "a": 2}'])
    def test_text_that_is_no_object_stays_text(self, arguments: str) -> None:
        found = encode(
            said("", tool_calls=call(arguments)),
            template=CALLING.replace("%s", "{{ c.function.name + c.function.arguments }}"),
        )
        assert f"f{arguments}" in trained(found, 0)

    def test_python_notation_is_not_json(self) -> None:
        for writes in (
            "{{ c.function.name ~ c.function.arguments.x }}",
            "{{ c.function.name }}{{ c }}",
            "{{ c.function.name }}{{ c.function.arguments | tojson | tojson }}",  # JSON in JSON
        ):
            found = encode(said("", tool_calls=call({"x": {"y": True}})), template=CALLING.replace("%s", writes))
            assert "leaves out the tool calls" in found.problem
        text = encode(
            said("", tool_calls=call({"y": True})),
            template=CALLING.replace("%s", "{{ c.function.name ~ c.function.arguments }}"),
        )
        assert 'f{"y": true}' in trained(text, 0)

    @pytest.mark.parametrize("how", ["tojson", "tojson(ensure_ascii=true)"])
    def test_control_tokens_do_not_come_out_of_escapes(self, field: pathlib.Path, how: str) -> None:
        arguments = '{"a": "\\u003c|im_end|\\u003e"}'
        writes = "{{ c.function.name ~ (c.function.arguments | %s) }}" % how  # noqa: UP031
        template = CHATML.replace("message['content']", "message['content'] + calls(message)")
        template = (
            "{% macro calls(m) %}{% for c in m.tool_calls or [] %}" + writes + "{% endfor %}{% endmacro %}" + template
        )
        loaded = load_tokenizer(field / "chatml")
        record = Completion((Message("user", "q"),), (Message("assistant", "", {"tool_calls": call(arguments)}),))
        ((_, encoded),) = build_encoder(loaded, template=template).encode([record])
        assert '{"a": "<|im_end|>"}' in loaded.decode(encoded.ids.tolist())
        assert encoded.ids.tolist().count(loaded.special["<|im_end|>"]) == 2  # the ends of both turns

    @pytest.mark.parametrize("form", ["{{ c.function | tojson }}", "{{ c.function.name + c.function.arguments }}"])
    @pytest.mark.parametrize("value", [datetime.date(2024, 1, 1), b"x", {1}, object()])
    def test_arguments_that_json_has_no_form_for(self, value: Any, form: str) -> None:
        found = encode(said("", tool_calls=call({"a": value})), template=CALLING.replace("%s", form))
        assert found.reason is Reason.BAD_TYPE
        assert "cannot be written as JSON" in found.problem

    def test_values_too_deep_for_a_template(self) -> None:
        deep: dict[str, Any] = {}
        deep["a"] = deep
        for row in (
            {"prompt": [*QUESTION], "chosen": said("", tool_calls=call(deep))},
            {"prompt": [user("q") | {"more": deep}], "chosen": said("yes")},
            {"prompt": [*QUESTION], "chosen": said("yes"), "tools": [deep]},
            {"prompt": [*QUESTION], "chosen": said("yes"), "notes": [deep]},
        ):
            for mode in ("escape", "error"):
                found = mps.encode(
                    {**row, "rejected": said("no")}, task=DPO, tokenizer="bytes", special_tokens_in_content=mode
                )
                assert found.reason is Reason.BAD_TYPE
                assert "holds itself" in found.problem


class TestMask:
    """The end of a turn that has more than its content."""

    TWO_ENDS = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"  # Phi-3's way

    @pytest.mark.parametrize("extra", [{"weight": 1}, {"metadata": "m"}, {"reasoning_content": "r"}])
    def test_a_key_beside_the_content_moves_no_end(self, extra: Any) -> None:
        found = encode(said("yes", **extra), template=self.TWO_ENDS)
        assert [trained(found, side) for side in (0, 1)] == ["yes<|im_end|>", "no<|im_end|>"]

    def test_reasoning_before_the_content(self) -> None:
        template = self.TWO_ENDS.replace("message['content']", "(message.thinking or '') + message['content']")
        found = encode(said("yes", thinking="hm, "), template=template)
        assert trained(found, 0) == "hm, yes<|im_end|>"


class TestSchemas:
    @pytest.mark.parametrize("writes", ["", "{{ tools | length }}", "{{ tools[0].function.name }}"])
    def test_a_template_that_leaves_them_out(self, writes: str) -> None:
        found = encode(said("yes"), template=writes + TURNS, tools=[SCHEMA])
        assert found.reason is Reason.TEMPLATE_REFUSED
        assert "leaves out the tool schemas" in found.problem

    @pytest.mark.parametrize(
        "writes",
        [
            "{{ tools }}",
            "{{ tools | tojson }}",
            "{% for t in tools %}{{ t.function.name ~ t.function.description }}{% endfor %}",
        ],
    )
    def test_a_template_that_writes_them(self, writes: str) -> None:
        assert encode(said("yes"), template=writes + TURNS, tools=[SCHEMA]).kept

    def test_a_schema_that_is_a_text(self) -> None:
        schema = {"type": "function", "function": "f adds"}
        for writes, kept in (("{{ tools[0].function }}", True), ("{{ tools[0].type }}", False)):
            assert encode(said("yes"), template=writes + TURNS, tools=[schema]).kept is kept

    def test_a_part_that_is_left_out_is_named(self) -> None:
        schema = {"type": "function", "function": {"name": "f", "parameters": {}, "notes": "slow"}}
        found = encode(said("yes"), template="{{ tools[0].function.name }}" + TURNS, tools=[schema])
        assert found.kept
        assert found.unread == ("tool field 'notes'",)

    @pytest.mark.parametrize("name", ["internlm2", "qwen2_5"])
    def test_real_templates(self, shared: pathlib.Path, name: str) -> None:
        found = encode(said("yes"), tokenizer=shared / "tokenizers" / name, tools=[SCHEMA])
        assert found.kept == (name == "qwen2_5")


class TestLostWords:
    THOUGHT = said("<think>hm</think>yes")

    def test_reported_dropped_or_an_error(self) -> None:
        found = encode(self.THOUGHT, template=R1)
        assert found.kept
        assert "the chat template left out words of a trained turn" in found.notes
        for mode in ("drop", "error"):
            assert encode(self.THOUGHT, template=R1, content_lost=mode).reason is Reason.CONTENT_LOST
            assert encode(said("yes"), template=R1, content_lost=mode).kept
        with pytest.raises(OptionError, match="content_lost is 'no'; expected 'report', 'drop' or 'error'"):
            encode(self.THOUGHT, template=R1, content_lost="no")

    def test_what_a_stream_does_with_such_rows(self) -> None:
        rows = [
            {"prompt": [user(f"q{n}")], "chosen": self.THOUGHT if n == 3 else said("yes"), "rejected": said("no")}
            for n in range(8)
        ]

        def stream(**options: Any) -> Any:
            return mps.stream(
                rows, task=DPO, tokenizer="bytes", template=R1, batching=mps.Pad(2), shuffle=False, **options
            )

        counted = stream()
        list(counted.batches())
        assert counted.report.content_lost == 1
        assert len(counted.report.origins["content_lost"]) == 1
        dropping = stream(content_lost="drop")  # whatever on_bad_row says
        list(dropping.batches())
        assert dropping.report.dropped == {"content_lost": 1}
        with pytest.raises(RowError, match="content_lost"):
            list(stream(content_lost="error").batches())
        patient = stream(content_lost="error", on_bad_row="drop")
        list(patient.batches())
        assert patient.report.dropped == {"content_lost": 1}

    def test_an_index_keeps_the_verdict(self, tmp_path: pathlib.Path) -> None:
        source = tmp_path / "rows.jsonl"
        rows = [
            {"prompt": [user(f"q{n}")], "chosen": self.THOUGHT if n == 3 else said("yes"), "rejected": said("no")}
            for n in range(8)
        ]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

        def stream(**options: Any) -> Any:
            return mps.stream(
                source, task=DPO, tokenizer="bytes", template=R1, batching=mps.Pad(2), content_lost="drop", **options
            )

        stream(index=None).build_index(tmp_path / "rows.mprefidx")
        again = stream(index=tmp_path / "rows.mprefidx")
        assert again.report.dropped == {"content_lost": 1}

    @pytest.mark.parametrize(
        ("writes", "content", "lost"),
        [
            ("{{ m.content | trim }}", "  yes\n", False), ("{{ m.content.strip('#') }}", "#yes", True),
            ("{{ m.content.strip('#') }}", "yes", False), ("{{ m.content.lower() }}", "yes", False),
            ("{{ m.content.lower() }}", "Yes", True), ("{{ m.content | replace('\n', ' ') }}", "a\nb", False),
            ("{{ m.content | replace('x', '') }}", "axb", True), ("{{ m.content[1:] }}", " yes", False),
            ("{{ m.content[1:] }}", "yes", True), ("{{ m.content | replace('<b>', '') }}", "a<b>c", True), ("{{ m.content.split('.')[0] }}", "yes. no", True),
        ],
    )  # fmt: skip
    def test_blanks_are_no_words(self, writes: str, content: str, lost: bool) -> None:
        for _ in range(5):
            found = one([user("  question")], said(content), template=TURNS.replace("{{ m.content }}", writes))
            assert bool(found.laid.notes & Note.CONTENT_LOST) is lost

    def test_words_of_the_prompt_count_as_rewritten(self) -> None:
        found = one([user("q"), *said("<think>hm</think>yes"), user("so?")], said("yes"), template=R1)
        assert found.laid.rewritten
        assert not found.laid.notes & Note.CONTENT_LOST

    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
    def test_reasoning_beside_the_content(self, key: str) -> None:
        assert "left out words" in str(encode(said("yes", **{key: "hm"}), template=TURNS))
        written = TURNS.replace("{{ m.content }}", "{{ (m.%s or '') ~ m.content }}" % key)  # noqa: UP031
        assert "left out words" not in str(encode(said("yes", **{key: "hm"}), template=written))

    def test_further_keys_that_are_not_written_are_named(self) -> None:
        found = encode(said("yes", thought="hm", id="x1", score=3), template=TURNS)
        assert found.unread == ("turn field 'thought'",)
        assert not encode(
            said("yes", thought="hm"), template=TURNS.replace("{{ m.content }}", "{{ m.content }}{{ m.thought }}")
        ).unread

    @pytest.mark.parametrize("role", ["system", "user", "tool"])
    def test_a_whole_turn(self, role: str) -> None:
        template = TURNS.replace("{{ m.content }}", "{{ m.content if m.role != '" + role + "' }}")
        turns = [{"role": "system", "content": "s"}, user("q"), *said("a"), {"role": "tool", "content": "t"}]
        with pytest.raises(RowError, match=f"leaves out the {role} message") as caught:
            one([*turns, user("q")], said("yes"), template=template)
        assert caught.value.reason is Reason.TEMPLATE_REFUSED
        kept = [{**turn, "content": " \n"} if turn["role"] == role else turn for turn in [*turns, user("q")]]
        one(kept, said("yes"), template=template)  # a blank turn says nothing


class TestContinued:
    PROMPT = (user("Name a colour."), *said("The colour is"))

    def test_refused(self) -> None:
        found = encode(said(" blue."), self.PROMPT, template=TURNS)
        assert found.reason is Reason.PROMPT_ENDS_WITH_ANSWER
        assert 'continue_final_message="join"' in found.problem
        with pytest.raises(OptionError, match="continue_final_message is 'yes'; expected 'error' or 'join'"):
            encode(said(" blue."), self.PROMPT, template=TURNS, continue_final_message="yes")

    @pytest.mark.parametrize("boundary", ["joint", "inference"])
    @pytest.mark.parametrize("content", [" blue.", "blue.", "\nblue"])
    @pytest.mark.parametrize("family", ["chatml", "llama3", "qwen3", "mistral"])
    def test_joined(self, field: pathlib.Path, family: str, content: str, boundary: str) -> None:
        """One turn, whose first part is prompt: as transformers renders it, and cut where the response begins."""
        folder = field / family
        oracle, loaded = Oracle(folder), load_tokenizer(folder)
        whole = oracle.render((Message(**self.PROMPT[0]), Message("assistant", "The colour is" + content)))
        encoded = one(
            self.PROMPT,
            said(content),
            tokenizer=folder,
            boundary=boundary,
            continue_final_message="join",
        )
        ids = encoded.ids.tolist()
        border = whole.index("The colour is") + len("The colour is")
        if boundary == "joint":
            assert ids == oracle.ids(whole)
            spans = oracle.spans(whole)
            assert encoded.prompt == sum(end <= border for _, end in spans)
        else:
            before = oracle.ids(whole[:border])
            assert ids[: encoded.prompt] == before
            assert encoded.prompt == len(before)
        assert loaded.decode(ids) == whole
        ((begin, end),) = encoded.spans
        assert loaded.decode(ids[begin:end]).lstrip().startswith(content.strip())
        asked = one(self.PROMPT, tokenizer=folder, boundary=boundary, continue_final_message="join")
        assert asked.ids.tolist() == oracle.ids(whole[:border])

    def test_both_sides_and_the_turns_after(self) -> None:
        found = encode(said(" blue."), self.PROMPT, template=TURNS, continue_final_message="join")
        assert (
            found.sides[0].prompt == found.sides[1].prompt == "<|user|>Name a colour.<|end|><|assistant|>The colour is"
        )
        turns = [*said(" blue."), user("Sure?"), *said("Yes.")]
        encoded = one(self.PROMPT, turns, template=TURNS, continue_final_message="join")
        assert "The colour is blue.<|end|><|user|>Sure?<|end|><|assistant|>Yes.<|end|>" in text_of(encoded)
        assert [text_of(encoded)[begin:end] for begin, end in encoded.spans] == [" blue.", "Yes."]

    def test_both_sides_of_a_pair_have_one_prompt(self, field: pathlib.Path) -> None:
        """No control token stands between the parts of a turn, so ``auto`` keeps the prompt as at generation."""
        prompt = [user("q"), *said("The quick br")]
        row = {"prompt": prompt, "chosen": "own fox", "rejected": " y"}
        found = mps.encode(row, task=DPO, tokenizer=field / "chatml", continue_final_message="join")
        first, second = (side.ids[: side.tokens[0]] for side in found.sides)
        assert first == second
        assert [trained(found, side) for side in (0, 1)] == ["own fox<|im_end|>", " y<|im_end|>"]

    def test_calls_cannot_be_continued(self) -> None:
        prompt = (user("q"), *said("", tool_calls=call({})))
        template = CALLING.replace("%s", "{{ c | tojson }}")
        for mode in ("error", "join"):
            found = encode(said("yes"), prompt, template=template, continue_final_message=mode)
            assert found.reason is Reason.PROMPT_ENDS_WITH_ANSWER


class TestThink:
    def test_an_empty_block_of_the_template_is_prompt(self) -> None:
        found = encode(said("yes"), template=QWEN3_LIKE)
        assert found.sides[0].prompt.endswith("<|assistant|><think>\n\n</think>\n\n")
        assert "an empty think block is not trained" in found.notes
        kept = encode(said("yes"), template=QWEN3_LIKE, train_empty_think=True)
        assert trained(kept, 0).startswith("<think>\n\n</think>\n\nyes")
        assert not kept.notes

    def test_a_learned_layout_says_so_too(self) -> None:
        fixed = TURNS.replace(
            "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
        )
        encoder = build_encoder(load_tokenizer("bytes"), template=fixed)
        for _ in range(6):
            ((_, found),) = encoder.encode([Completion((Message("user", "q"),), (Message("assistant", "yes"),))])
            assert found.laid.notes == Note.EMPTY_THINK
            assert text_of(found)[found.prompt :].startswith("yes")

    def test_reasoning_of_the_row_is_trained(self) -> None:
        found = encode(said("yes", reasoning_content="hm"), template=QWEN3_LIKE)
        assert trained(found, 0).startswith("<think>\nhm\n</think>\n\nyes")

    def test_a_generation_prompt_that_opens_the_block(self) -> None:
        """As R1's: the rest of the block, which the template writes, is prompt as well."""
        template = QWEN3_LIKE.replace(
            "{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<|assistant|><think>\n"
        )
        found = encode(said("yes"), template=template)
        assert found.sides[0].prompt.endswith("<|assistant|><think>\n\n</think>\n\n")
        assert trained(found, 0).startswith("yes")

    @pytest.mark.parametrize("content", ["<think>\n\n</think>\n\nyes", "<think>\nhm\n</think>\n\nyes", "yes"])
    def test_qwen3(self, shared: pathlib.Path, content: str) -> None:
        folder = shared / "tokenizers" / "qwen3"
        found = encode(said(content), tokenizer=folder)
        assert trained(found, 0).startswith(content)  # a block of the row stays trained
        assert "left out words" not in str(found)
        old = encode(said(content), tokenizer=folder, train_empty_think=True)
        assert old.sample is not None
        assert found.sample is not None
        assert old.sample.sequences[0].ids.tolist() == found.sample.sequences[0].ids.tolist()
        off = encode(said("yes"), tokenizer=folder, template_variables={"enable_thinking": False})
        assert off.sides[0].prompt.endswith("<think>\n\n</think>\n\n")

    def test_sides_with_and_without_reasoning_are_cut_alike(self) -> None:
        found = encode(
            said("yes", reasoning_content="hm"), [user("q" * 300)], task=mps.DPO(max_length=120), template=QWEN3_LIKE
        )
        assert found.kept
        assert trained(found, 0).startswith("<think>\nhm")
        assert trained(found, 1).startswith("no")


class TestRendered:
    """Prompts that are rendered already, joined as text."""

    @pytest.mark.parametrize(
        "prompt",
        [
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|im_start|>user\nHi<|im_end|>\n",
            "<s>[INST] Hi [/INST]", "Hi\n\nHuman: x\n\nAssistant:", "<start_of_turn>user\nHi<end_of_turn>\n",
        ],
    )  # fmt: skip
    def test_markers_are_counted(self, prompt: str) -> None:
        assert "the text looks rendered already" in encode("a", prompt, template=None, format="strings").notes
        assert "the text looks rendered already" not in encode("a", "Hi", template=None, format="strings").notes

    def test_no_second_bos_or_eos(self, field: pathlib.Path) -> None:
        folder = field / "llama3"  # BOS <|begin_of_text|>, EOS <|eot_id|>
        loaded = load_tokenizer(folder)
        prompt = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"

        def ids(answer: str, question: str = prompt) -> list[int]:
            found = encode(
                answer, question, tokenizer=folder, template=None, format="strings", special_tokens_in_content="allow"
            )
            assert found.sample is not None
            assert "the text looks rendered already" not in found.notes
            return found.sample.sequences[0].ids.tolist()

        bos, eos = loaded.special["<|begin_of_text|>"], loaded.special["<|eot_id|>"]
        assert ids("a<|eot_id|>").count(bos) == 1
        assert ids("a<|eot_id|>")[-2:] == ids("a")[-2:]
        assert ids("a<|eot_id|>").count(eos) == ids("a").count(eos) == 2
        assert ids("a", "Hi<|eot_id|>")[0] == bos
        assert ids("a", "\n" + prompt).count(bos) == 1
        assert ids("a<|eot_id|>\n").count(eos) == 2

    def test_blanks_after_a_stated_end_are_not_trained(self) -> None:
        found = encode(
            "a<|im_end|>\n", "Hi", template=None, format="strings", special_tokens_in_content="allow", tokenizer="bytes"
        )
        assert trained(found, 0) == "a<|im_end|>"
        assert found.sides[0].rest == "\n"


class TestVariables:
    ASKS = "{{ mood }}|{{ bos_token }}" + TURNS

    def test_of_a_stream_and_of_a_row(self) -> None:
        options: dict[str, Any] = {"template": self.ASKS, "template_variables": {"mood": "kind"}}
        assert text_of(one([user("q")], said("a"), **options)).startswith("kind|")
        encoder = build_encoder(load_tokenizer("bytes"), **options)
        turns = (Message("user", "q"),), (Message("assistant", "a"),)
        for mood in ("bold", None, "shy", "bold", None):
            variables = None if mood is None else {"mood": mood}
            ((_, found),) = encoder.encode([Completion(*turns, variables=variables)])
            assert text_of(found).startswith(f"{mood or 'kind'}|")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"messages": 1},
            {"tools": []},
            {"add_generation_prompt": True},
            {"x": object()},
            {"x": float("nan")},
            {1: 2},
            3,
        ],
    )
    def test_refused(self, wrong: Any) -> None:
        with pytest.raises(OptionError, match="template_variables"):
            encode(said("a"), template=TURNS, template_variables=wrong)
        if wrong != 3:
            with pytest.raises(RowError, match="chat_template_kwargs") as caught:
                one([user("q")], said("a"), variables=wrong, template=TURNS)
            assert caught.value.reason is Reason.BAD_TYPE

    def test_without_a_template(self) -> None:
        with pytest.raises(OptionError, match="there is no chat template"):
            encode("a", "q", template=None, template_variables={"x": 1})

    def test_those_that_a_template_does_not_read_are_named(self) -> None:
        found = one([user("q")], said("a"), variables={"mood": "x", "mod": "y"}, template=self.ASKS)
        assert found.laid.unread == ("chat_template_kwargs 'mod'",)

    @pytest.mark.parametrize(
        ("template", "variables", "expected"),
        [
            ("{{ strftime_now('%d %b %Y') }}", {"date_string": "2024-07-26"}, "26 Jul 2024"),
            ("{{ strftime_now('%Y-%m-%d') }}", {"date_string": "26 Jul 2024"}, "2024-07-26"),
            ("{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}", {"date_string": "any day"}, "any day"),
        ],
    )  # fmt: skip
    def test_the_date(self, template: str, variables: dict[str, Any], expected: str) -> None:
        found = encode(said("a"), template=template + "|" + TURNS, template_variables=variables)
        assert found.sides[0].prompt.startswith(expected + "|")

    def test_a_date_that_the_template_cannot_use(self) -> None:
        with pytest.raises(OptionError, match="date_string"):
            encode(
                said("a"), template="{{ strftime_now('%d') }}" + TURNS, template_variables={"date_string": "any day"}
            )
