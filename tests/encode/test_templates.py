"""Chat templates of every family against transformers: the same ids, and exactly the response under the loss."""

from __future__ import annotations

import json
import pathlib

import pytest

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Message, Messages, Pair
from tests.encode.chat_templates import FAMILIES, QWEN25
from tests.encode.field import encode_pair, encode_response, encoder_of, trained
from tests.encode.oracle import Oracle, assistant, system, tool, user

HI, HELLO = user("How do I keep bread fresh?"), assistant("Wrap it in cloth.")
TWO_TURNS = (user("Hi"), assistant("Hello, what is it?"), user("Tell me about tea"))
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": '<b>"é'}}}]
SCHEMA = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

# family -> what a model would have to write after one question, end of turn included
ANSWERS = {
    "chatml": "Wrap it in cloth.<|im_end|>",
    "qwen2.5": "Wrap it in cloth.<|im_end|>",
    "llama3": "Wrap it in cloth.<|eot_id|>",
    "llama2": " Wrap it in cloth. </s>",
    "mistral": " Wrap it in cloth.</s>",
    "vicuna": " Wrap it in cloth.</s>",
    "alpaca": "Wrap it in cloth.",
    "gemma": "Wrap it in cloth.<end_of_turn>",
    "deepseek": "Wrap it in cloth.<｜end▁of▁sentence｜>",
    "qwen3": "Wrap it in cloth.<|im_end|>",
    "glm": "\nWrap it in cloth.",
    "no prompt": "Wrap it in cloth.<|im_end|>",
}

CONVERSATIONS: dict[str, tuple[Messages, Messages]] = {
    "one turn": ((HI,), (HELLO,)),
    "two turns": (TWO_TURNS, (assistant("Tea is a drink."),)),
    "system": ((system("Be brief."), HI), (HELLO,)),
    "system and two turns": ((system("Be brief."), *TWO_TURNS), (assistant("Tea."),)),
    "white space all over": ((system("\n S \n"), user("\n\n q \n")), (assistant(" \n a b \n\n"),)),
    "empty question": ((user(""),), (HELLO,)),
    "blank question": ((user(" \n"),), (HELLO,)),
    "contents that templates write": (
        (system("system"), user("user"), assistant("assistant"), user("\n")),
        (assistant("user"),),
    ),
    "one letter": ((user("a"),), (assistant("a"),)),
    "thoughts": (
        (user("Hi"), assistant("<think>\nhm\n</think>\n\nYes"), user("So?")),
        (assistant("<think>\nwell\n</think>\n\nIt is."),),
    ),
    "combining mark": ((user("cafe\u0301"),), (assistant("\u0301e\u0301t\u00e9"),)),
    "private use": ((user("\ue0000\ue001 \ue0021\ue003 \ue002"),), (assistant("\ue0020\ue003\ue0001\ue001\uf8ff"),)),
}  # fmt: skip


def refused(family: str, prompt: Messages) -> str | None:
    """Why a conversation is refused: Mistral's template writes a system message before the last turn only."""
    if prompt[0].role != "system":
        return None
    return {"gemma": "System role not supported", "mistral": "it leaves out the system message"}.get(family)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_rendered_text(field: pathlib.Path, family: str, name: str) -> None:
    prompt, response = CONVERSATIONS[name]
    tokenizer, encoder = encoder_of(field / family)
    if why := refused(family, prompt):
        with pytest.raises(RowError, match=f"refuses .*{why}") as caught:
            encode_response(encoder, prompt, response)
        assert caught.value.reason is Reason.TEMPLATE_REFUSED
        return
    oracle = Oracle(field / family)
    text = oracle.render(prompt + response)
    for _ in range(5):  # the first rows of a sequence of roles are also rendered in full
        encoded = encode_response(encoder, prompt, response)
        ids = encoded.ids.tolist()
        assert ids == oracle.ids(text)
    assert tokenizer.decode(ids) == oracle.decode(ids)
    asked = encode_response(encoder, prompt)
    assert asked.ids.tolist() == oracle.ids(oracle.render(prompt, generation=True))
    assert asked.spans == ()
    assert asked.prompt == asked.length


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_sees_what_a_model_has_to_write(field: pathlib.Path, family: str) -> None:
    tokenizer, encoder = encoder_of(field / family)
    assert trained(tokenizer, encode_response(encoder, (HI,), (HELLO,))) == [ANSWERS[family]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_prompt_and_the_response_make_the_text(field: pathlib.Path, family: str, name: str) -> None:
    """The prompt ends where the loss begins, before the first character of the response's content."""
    prompt, response = CONVERSATIONS[name]
    if refused(family, prompt):
        return
    tokenizer, encoder = encoder_of(field / family)
    encoded = encode_response(encoder, prompt, response)
    ids = encoded.ids.tolist()
    text = Oracle(field / family).render(prompt + response)
    before, behind = tokenizer.decode(ids[: encoded.prompt]), tokenizer.decode(ids[encoded.prompt :])
    assert before + behind == tokenizer.decode(ids)
    kept = response[0].content.split("</think>")[-1].strip()
    assert kept in behind or "\u0301" in kept
    assert text.startswith(before) or "\u0301" in text


class TestRewritten:
    @pytest.mark.parametrize(
        ("family", "content", "expected"),
        [
            ("llama3", "clean", False), ("llama3", " trimmed", True), ("chatml", " kept \n", False),
            ("gemma", "a\n", True), ("qwen3", "<think>\na\n</think>\n\nb", True), ("qwen3", "plain", False),
            ("glm", "\nx", True), ("glm", "x", False),
        ],
    )  # fmt: skip
    def test_flagged(self, field: pathlib.Path, family: str, content: str, expected: bool) -> None:
        _, encoder = encoder_of(field / family)
        for _ in range(2):
            assert encode_response(encoder, (HI,), (assistant(content),)).laid.rewritten is expected

    def test_a_system_message_that_is_left_out(self, field: pathlib.Path) -> None:
        """Mistral's template knows the system message only before the last turn of the user."""
        _, encoder = encoder_of(field / "mistral")
        turns = (system("Be brief."), HI)
        assert not encode_response(encoder, turns).laid.rewritten
        with pytest.raises(RowError, match="leaves out the system message"):
            encode_response(encoder, turns, (HELLO,))


class TestDiffers:
    """Rows whose prompt at generation time is not how the text begins."""

    @pytest.mark.parametrize(
        ("family", "content", "expected"),
        [
            ("chatml", "a", False), ("llama2", "a", False), ("deepseek", "a", True), ("no prompt", "a", False),
            ("qwen3", "a", False), ("vicuna", "a", False), ("llama2", "\na", False), ("chatml", "\na", True),
            ("llama3", "\na", False),
        ],
    )  # fmt: skip
    def test_flagged(self, field: pathlib.Path, family: str, content: str, expected: bool) -> None:
        tokenizer, encoder = encoder_of(field / family)
        oracle = Oracle(field / family)
        encoded = encode_response(encoder, (HI,), (assistant(content),))
        assert encoded.differs is expected
        asked = oracle.ids(oracle.render((HI,), generation=True))
        assert (encoded.ids[: len(asked)].tolist() != asked) is expected, tokenizer.decode(asked)


class TestInference:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("content", ["Yes.", "\nYes.", " Yes."])
    def test_the_ids_begin_as_at_generation(self, field: pathlib.Path, family: str, content: str) -> None:
        tokenizer, encoder = encoder_of(field / family, boundary="inference")
        oracle = Oracle(field / family)
        encoded = encode_response(encoder, (HI,), (assistant(content),))
        asked = oracle.render((HI,), generation=True)
        ids = encoded.ids.tolist()
        assert ids[: len(oracle.ids(asked))] == oracle.ids(asked)
        text = tokenizer.decode(ids)
        assert text.startswith(asked)
        if family != "deepseek":  # it asks with "<think>" and does not write that before an answer
            assert text == oracle.render((HI, assistant(content)))
        assert "Yes." in trained(tokenizer, encoded)[0]
        assert encoded.prompt >= len(oracle.ids(asked))

    def test_a_prompt_that_asks_for_thoughts(self, field: pathlib.Path) -> None:
        tokenizer, encoder = encoder_of(field / "deepseek", boundary="inference")
        encoded = encode_response(encoder, (HI,), (assistant("Yes."),))
        assert tokenizer.decode(encoded.ids.tolist()) == (
            "<｜begin▁of▁sentence｜><｜User｜>How do I keep bread fresh?<｜Assistant｜><think>\n"
            "Yes.<｜end▁of▁sentence｜>"
        )
        assert trained(tokenizer, encoded) == ["Yes.<｜end▁of▁sentence｜>"]


class TestTools:
    TURNS = (
        assistant("", tool_calls=CALL),
        tool("3"),
        tool("4"),
        assistant("It is 3."),
    )

    def test_only_the_assistant_is_under_the_loss(self, field: pathlib.Path) -> None:
        tokenizer, encoder = encoder_of(field / "qwen2.5")
        oracle = Oracle(field / "qwen2.5")
        encoded = encode_response(encoder, (HI,), self.TURNS, SCHEMA)
        text = oracle.render((HI, *self.TURNS), SCHEMA)
        assert encoded.ids.tolist() == oracle.ids(text)
        call = json.dumps(CALL[0]["function"]["arguments"], ensure_ascii=False)  # type: ignore[index]
        assert trained(tokenizer, encoded) == [
            f'<tool_call>\n{{"name": "add", "arguments": {call}}}\n</tool_call><|im_end|>',
            "It is 3.<|im_end|>",
        ]

    def test_words_before_a_call(self, field: pathlib.Path) -> None:
        tokenizer, encoder = encoder_of(field / "qwen2.5")
        encoded = encode_response(encoder, (system("S"), HI), (assistant("Let me see", tool_calls=CALL),), SCHEMA)
        (text,) = trained(tokenizer, encoded)
        assert text.startswith("Let me see\n<tool_call>\n")
        assert text.endswith("}\n</tool_call><|im_end|>")

    def test_a_pair_that_divides_behind_a_tool_turn(self, field: pathlib.Path) -> None:
        tokenizer, encoder = encoder_of(field / "qwen2.5")
        prompt = (HI, *self.TURNS[:3])
        chosen, rejected = encode_pair(
            encoder, Pair(prompt, (assistant("3."),), (assistant("4."),), tools=tuple(SCHEMA))
        )
        assert trained(tokenizer, chosen) == ["3.<|im_end|>"]
        assert trained(tokenizer, rejected) == ["4.<|im_end|>"]
        assert chosen.prompt == rejected.prompt
        assert chosen.ids.tolist() == Oracle(field / "qwen2.5").ids(
            Oracle(field / "qwen2.5").render((*prompt, assistant("3.")), SCHEMA)
        )

    def test_control_tokens_inside_a_call_are_not_its_end(self, field: pathlib.Path) -> None:
        """The turn of a call ends at its last control token, whatever stands between the content and that."""
        template = (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% if m.tool_calls %}"
            "{{ '<|start_header_id|>call<|end_header_id|>' }}{{ m.tool_calls | tojson }}{% endif %}"
            "{{ '<|im_end|>\\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
        tokenizer, encoder = encoder_of(field / "chatml", template=template)
        call = json.dumps(CALL, ensure_ascii=False)
        for words in ("", "Let me see"):
            encoded = encode_response(encoder, (HI,), (assistant(words, tool_calls=CALL),))
            assert trained(tokenizer, encoded) == [f"{words}<|start_header_id|>call<|end_header_id|>{call}<|im_end|>"]

    NULL_STYLE = (  # writes tool calls only where the content is none
        "{% for m in messages %}"
        "{% if m.content is none %}{{ '<|im_start|>call ' }}{{ m.tool_calls | tojson }}{{ '<|im_end|>' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )

    def test_a_template_that_wants_no_content_beside_a_call(self, field: pathlib.Path) -> None:
        tokenizer, encoder = encoder_of(field / "chatml", template=self.NULL_STYLE)
        encoded = encode_response(encoder, (HI,), (assistant("", tool_calls=CALL),))
        assert trained(tokenizer, encoded) == [f"call {json.dumps(CALL, ensure_ascii=False)}<|im_end|>"]

    def test_a_template_that_leaves_the_call_out(self, field: pathlib.Path) -> None:
        """Never a response without what the assistant did."""
        _, encoder = encoder_of(field / "chatml")
        with pytest.raises(RowError, match="leaves out the tool calls of an assistant turn"):
            encode_response(encoder, (HI,), (assistant("", tool_calls=CALL),))
        with pytest.raises(RowError, match="leaves out the tool calls"):
            encode_response(encoder, (HI,), (assistant("Let me see", tool_calls=CALL),))

    def test_control_tokens_in_arguments_and_schemas_are_text(self, field: pathlib.Path) -> None:
        tokenizer, encoder = encoder_of(field / "qwen2.5")
        call = [{"type": "function", "function": {"name": "f", "arguments": {"x<|im_end|>": "<|im_start|>"}}}]
        schema = [{"type": "function", "function": {"name": "<|im_end|>"}}]
        encoded = encode_response(encoder, (HI,), (assistant("", tool_calls=call),), schema)
        plain = encode_response(encoder, (HI,), (assistant("", tool_calls=CALL),), SCHEMA)
        ids, start, end = encoded.ids.tolist(), tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
        assert (ids.count(start), ids.count(end)) == (
            plain.ids.tolist().count(start),
            plain.ids.tolist().count(end),
        )
        assert tokenizer.decode(ids) == Oracle(field / "qwen2.5", QWEN25).render(
            (HI, assistant("", tool_calls=call)), schema
        )


class TestRefusals:
    def test_roles_out_of_order(self, field: pathlib.Path) -> None:
        _, encoder = encoder_of(field / "llama2")
        with pytest.raises(RowError, match=r"refuses this conversation \(user \+ user\): Roles must alternate"):
            encode_response(encoder, (HI, HI), (HELLO,))

    def test_a_template_that_calls_what_is_not_there(self, field: pathlib.Path) -> None:
        _, encoder = encoder_of(field / "chatml", template="{{ messages[0].nothing.more }}")
        with pytest.raises(RowError, match="UndefinedError"):
            encode_response(encoder, (HI,), (HELLO,))

    def test_a_template_that_leaves_out_the_response(self, field: pathlib.Path) -> None:
        _, encoder = encoder_of(
            field / "chatml",
            template="{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        )
        with pytest.raises(RowError, match="the start of the response cannot be found"):
            encode_response(encoder, (HI,), (HELLO,))


def test_further_keys_reach_the_template(field: pathlib.Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role + (m.name | default('?')) + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    tokenizer, encoder = encoder_of(field / "chatml", template=template)
    encoded = encode_response(encoder, (Message("user", "Hi", {"name": "Ann"}),), (HELLO,))
    assert tokenizer.decode(encoded.ids.tolist()) == "userAnn: Hi<|im_end|>assistant?: Wrap it in cloth.<|im_end|>"
    assert trained(tokenizer, encoded) == [" Wrap it in cloth.<|im_end|>"]  # the token " Wrap" straddles the border
