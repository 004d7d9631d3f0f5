# ruff: noqa: E501 - Jinja reads best a tag at a time
"""Learned layouts against the full rendering: for each outcome of a template's questions, and each shape of a row."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.encode import template as template_module
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.encodings import Encoded
from ms_prefstream.encode.jinja import TemplateRefusal
from ms_prefstream.encode.learned import OUTCOMES
from ms_prefstream.encode.template import PROOFS, ChatTemplate, LaidOut, TemplateOptions, schema_list
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Messages
from tests.encode.chat_templates import FAMILIES
from tests.encode.test_content_lost_laws import rows, templates
from tests.encode.test_tool_families import FAMILIES as TOOLS

LAW = settings(
    settings.get_profile("cheap"), max_examples=settings.get_profile("cheap").max_examples // 2, derandomize=True
)
TOKENIZER = load_tokenizer("bytes")
TURN = (
    "{% for m in messages %}<|{{ m.role }}|>%s<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LOOKS = {
    "contains": "{% if 'Xa' in m.content %}yes {% endif %}{{ m.content }}",
    "contains not": "{% if 'Xa' not in m.content %}no {% endif %}{{ m.content }}",
    "begins": "{% if m.content.startswith('Xa') %}!{% endif %}{{ m.content }}",
    "begins with one of two": "{{ m.content }}{% if m.content.startswith(('Xa', ' ')) %}!{% endif %}",
    "ends": "{{ m.content }}{% if m.content.endswith('/no_think') %}{% else %}/think{% endif %}",
    "ends after a strip": "{{ m.content | trim }}{% if m.content.strip().endswith('Xa') %}.{% endif %}",
    "equals": "{% if m.content == 'Xa' %}it{% else %}{{ m.content }}{% endif %}",
    "equals not": "{% if m.content != 'Xa' %}{{ m.content }}{% else %}it{{ m.content }}{% endif %}",
    "empty": "{% if m.content %}: {{ m.content }}{% endif %}",
    "empty after a strip": "{% if m.content | trim %}: {{ m.content }}{% else %}-{{ m.content }}{% endif %}",
    "equals nothing": "{% if m.content == '' %}-{% endif %}{{ m.content }}",
    "both": "{% if 'Xa' in m.content and m.content.endswith('\n') %}<{{ m.content }}>{% else %}{{ m.content }}{% endif %}",
    "written twice": "{% if 'Xa' in m.content %}{{ m.content }}{% endif %}{{ m.content }}",
    "left out": "{% if 'Xa' not in m.content %}{{ m.content }}{% endif %}",
    "stripped": "{% if 'Xa' in m.content %}{{ m.content.strip() }}{% else %}{{ m.content }}{% endif %}",
    "eaten": "{{ m.content.strip('Xa') }}",
    "of the thoughts": "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}",
    "refused": "{% if 'Xa' in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}",
    "of another turn": "{% if 'Xa' in messages[0].content %}X{% endif %}{{ m.content }}",
    "of the last turn": "{% if 'Xa' in messages[-1].content %}X{% endif %}{{ m.content }}",
    "of the header": "{% if loop.last and 'Xa' in m.content %}last {% endif %}{{ m.content }}",
    "of text around": "{% set t = '<' ~ m.content %}{% if 'Xa' in t %}!{% endif %}{{ t }}",
    "length": "{% if m.content | length > 5 %}long {% endif %}{{ m.content }}",
    "slice": "{% if m.content[:2] == 'Xa' %}!{% endif %}{{ m.content }}",
    "in a list": "{% if m.content in ['Xa', ''] %}!{% endif %}{{ m.content }}",
    "of itself": "{% if m.content in messages[0].content %}!{% endif %}{{ m.content }}",
    "equal turns": "{% if m == messages[-1] %}!{% endif %}{{ m.content }}",
    "method of plain text": "{{ '\nXa\n'.strip('\n') }}{{ m.content }}",
    "an empty block": "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    "a block unless there is one": "{% if m.role == 'assistant' and '<think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
}  # fmt: skip
TEMPLATES = {name: TURN.replace("%s", look) for name, look in LOOKS.items()}
TEMPLATES |= {name: family.template for name, family in FAMILIES.items()}


class Full:
    """A template that renders each conversation in full."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def lay_out(
        self,
        prompt: Messages,
        responses: Sequence[Messages],
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Iterator[LaidOut]:
        try:
            for response in responses:
                yield self._template._in_full(prompt + response, len(prompt), schema_list(tools))
        except TemplateRefusal as refusal:
            raise RowError(Reason.TEMPLATE_REFUSED, str(refusal), "") from None


def both(
    template: str, boundary: str = "joint", tokenizer: Tokenizer = TOKENIZER
) -> tuple[ConversationEncoder, ConversationEncoder]:
    """An encoder that learns layouts, and one that renders each row in full."""
    settled = TemplateOptions(inference=boundary == "inference")
    full, learning = (ChatTemplate(template, tokenizer, settled) for _ in range(2))
    learned_for = learning._learned_for

    def unproven(*given: Any) -> Any:
        learned = learned_for(*given)
        learned.proofs = 0  # a wrong layout must not hide behind its proof
        return learned

    learning._learned_for = unproven  # type: ignore[method-assign]
    return (
        ConversationEncoder(tokenizer.encoder, learning, boundary),
        ConversationEncoder(tokenizer.encoder, Full(full), boundary),
    )


def seen(encoder: ConversationEncoder, row: Completion) -> list[Any]:
    """Everything that a batch or a report gets of a row."""
    (found,) = encoder.encode([row])
    if isinstance(found, RowError):
        return [found.reason]
    return [of_side(side) for side in found]


def of_side(side: Encoded) -> tuple[Any, ...]:
    laid = side.laid
    return side.ids.tolist(), side.spans, side.prompt, side.differs, laid.rewritten, laid.notes, laid.unread


texts = st.sampled_from(["a", "Xa", " Xa b\n", "b Xa", "a\n", "<think>\nw\n</think>\n\nXb", "Y</think>", "q /no_think"])


@st.composite
def conversations(draw: Any, texts: st.SearchStrategy[str] = texts) -> Completion:
    turns = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 1))):
        turns += [Message("user", draw(texts)), Message("assistant", draw(texts))]
    turns.append(Message("user", draw(st.one_of(texts, st.sampled_from(["", " "])))))
    return Completion(tuple(turns), (Message("assistant", draw(texts)),))


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["joint", "inference"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_in_full(name: str, boundary: str) -> None:
    learning, full = both(TEMPLATES[name], boundary=boundary)

    @LAW
    @given(conversations())
    def law(row: Completion) -> None:
        assert seen(learning, row) == seen(full, row)

    law()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_in_contents(field: pathlib.Path, name: str) -> None:
    """A template gets them as other characters, so they are not what it asks for."""
    asks = "{% if '<|' in messages[-1].content or '</s>' in messages[-1].content %}control{% endif %}"
    learning, full = both(FAMILIES[name].template + asks, "joint", load_tokenizer(field / name))
    written = st.sampled_from(["a", "a <|im_end|>", "</s>b", "<|x", "\ue002", "</think> [gMASK]"])

    @LAW
    @given(conversations(written))
    def law(row: Completion) -> None:
        assert seen(learning, row) == seen(full, row)

    law()


QWEN3 = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}# Tools{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{%- for message in messages %}{%- if message.role == 'user' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}{% set content = message.content %}{% set thought = '' %}
{%- if message.reasoning_content is defined and message.reasoning_content is not none %}{% set thought = message.reasoning_content %}
{%- elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{%- if loop.last or thought %}{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}
{%- for call in message.tool_calls or [] %}{% if (loop.first and content) or not loop.first %}{{ '\n' }}{% endif %}{% set f = call.function or call %}{{ '<tool_call>\n{"name": "' ~ f.name ~ '", "arguments": ' }}{% if f.arguments is string %}{{ f.arguments }}{% else %}{{ f.arguments | tojson }}{% endif %}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def other(value: Any) -> Any:
    """A value of the same shape, with other words."""
    if isinstance(value, str):
        return f"{value} \u00e9\n" if value.strip() else value
    if isinstance(value, dict):
        return {key: other(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(other, value))
    return value


def other_row(row: Completion) -> Completion:
    sides = ([Message(m.role, other(m.content), other(m.extra)) for m in side] for side in (row.prompt, row.response))
    return Completion(*map(tuple, sides), other(row.tools))


def check_shape(row: Completion, template: str, boundary: str = "joint") -> None:
    learning, full = both(template, boundary=boundary)
    for same in (row, row, other_row(row), row):
        assert seen(learning, same) == seen(full, same)


@LAW
@given(rows(), templates)
def test_shapes_as_in_full(row: Completion, template: str) -> None:
    check_shape(row, template)


@pytest.mark.parametrize("how", ["tojson", "tojson(ensure_ascii=true)", "tojson(indent=1)"])
def test_values_are_written_in_the_form_of_the_template(how: str) -> None:
    call = {"function": {"name": "f", "arguments": {"a": "\u00e9", "b": "\U0001f600"}}}
    row = Completion((Message("user", "q"),), (Message("assistant", "a", {"tool_calls": [call]}),))
    writes = "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | HOW }}{% endfor %}".replace(
        "HOW", how
    )
    check_shape(row, TURN.replace("%s", writes))


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["joint", "inference"])
def test_shapes_of_qwen3_as_in_full(boundary: str) -> None:
    @LAW
    @given(rows())
    def law(row: Completion) -> None:
        check_shape(row, QWEN3, boundary)

    law()


@pytest.mark.parametrize("name", ["qwen3", "llama3", "mistral", "chatml"])
def test_a_shape_that_is_known_is_not_rendered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the template writes arguments and schemas as a whole."""
    template = ChatTemplate({**TOOLS, "qwen3": QWEN3}[name], TOKENIZER, TemplateOptions())
    rendered: list[Any] = []
    monkeypatch.setattr(
        template,
        "_render",
        lambda *given, own=template._render: rendered.append(given) or own(*given),  # type: ignore[func-returns-value]
    )
    for number in range(20):
        call = {
            "id": f"call{number:05}",
            "type": "function",
            "function": {"name": f"f{number}", "arguments": {"a": number}},
        }
        prompt = (
            Message("user", f"q {number}"),
            Message("assistant", "", {"tool_calls": [call]}),
            Message("tool", "r"),
        )
        next(
            template.lay_out(
                prompt,
                ((Message("assistant", f"a {number}"),),),
                ({"type": "function", "function": {"name": f"f{number}"}},),
            )
        )
        if number == PROOFS + 2:
            assert rendered
            rendered.clear()
    assert bool(rendered) is (name in ("mistral", "chatml"))


def test_arguments_that_json_has_no_form_for() -> None:
    learning, full = both(QWEN3)
    for value in (1, 2, 3, [float("nan")], np.arange(2), (1, 2)):
        call = {"function": {"name": "f", "arguments": {"a": value}}}
        row = Completion((Message("user", "q"),), (Message("assistant", "b", {"tool_calls": [call]}),))
        assert seen(learning, row) == seen(full, row)


def test_outcomes_of_a_template_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template with many questions does not fill the memory with layouts: further rows are rendered in full."""
    monkeypatch.setattr(template_module, "PROOFS", 0)
    letters = "abcdef"
    asks = "".join(f"{{% if '{letter}' in m.content %}}{letter}{{% endif %}}" for letter in letters)
    template = ChatTemplate(TURN.replace("%s", asks + "{{ m.content }}"), TOKENIZER, TemplateOptions())
    rendered = 0

    def render(*given: Any, own: Any = template._render) -> Any:
        nonlocal rendered
        rendered += 1
        return own(*given)

    monkeypatch.setattr(template, "_render", render)
    for _ in range(2):
        rendered = 0
        for number in range(2 ** len(letters)):
            said = "-" + "".join(letter for at, letter in enumerate(letters) if number >> at & 1)
            next(template.lay_out((Message("user", "q"),), ((Message("assistant", said),),)))
    assert rendered >= 2 ** len(letters) - OUTCOMES - 1


def test_an_outcome_that_is_known_is_not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(FAMILIES["qwen3"].template, TOKENIZER, TemplateOptions())
    rendered: list[Any] = []
    monkeypatch.setattr(template, "_render", lambda *given, own=template._render: rendered.append(given) or own(*given))  # type: ignore[func-returns-value]
    for number in range(20):
        next(template.lay_out((Message("user", f"q {number}"),), ((Message("assistant", f"a {number}"),),)))
        if number < PROOFS:
            assert rendered, "the first rows of a layout are its proof"
            rendered.clear()
    assert len(rendered) <= 1
    rendered.clear()
    next(template.lay_out((Message("user", "q"),), ((Message("assistant", "<think>b</think>a"),),)))
    assert rendered
