# ruff: noqa: E501 - Jinja reads best a tag at a time
"""Templates that ask questions about contents: a layout learned for an outcome is that of the full rendering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.encode.encoder import ConversationEncoder, Encoded, build_encoder
from ms_prefstream.encode.jinja import TemplateRefusal
from ms_prefstream.encode.template import PROOFS, ChatTemplate, LaidOut, TemplateOptions, schema_list
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Messages
from tests.encode.chat_templates import FAMILIES

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
        self, prompt: Messages, response: Messages, tools: Any = None, variables: Mapping[str, Any] | None = None
    ) -> LaidOut:
        try:
            return self._template._in_full(prompt + response, len(prompt), schema_list(tools))
        except TemplateRefusal as refusal:
            raise RowError(Reason.TEMPLATE_REFUSED, str(refusal), "") from None


def both(template: str, **options: Any) -> tuple[ConversationEncoder, ConversationEncoder]:
    """An encoder that learns layouts, and one that renders each row in full."""
    full = Full(ChatTemplate(template, TOKENIZER, TemplateOptions(inference=options.get("boundary") == "inference")))
    return build_encoder(TOKENIZER, template=template, **options), ConversationEncoder(
        TOKENIZER.encoder, full, options.get("boundary", "joint")
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
def conversations(draw: Any) -> Completion:
    turns = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 1))):
        turns += [Message("user", draw(texts)), Message("assistant", draw(texts))]
    turns.append(Message("user", draw(st.one_of(texts, st.sampled_from(["", " "])))))
    return Completion(tuple(turns), (Message("assistant", draw(texts)),))


@pytest.mark.parametrize("boundary", ["joint", "inference"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_in_full(name: str, boundary: str) -> None:
    learning, full = both(TEMPLATES[name], boundary=boundary)

    @LAW
    @given(conversations())
    def law(row: Completion) -> None:
        assert seen(learning, row) == seen(full, row)

    law()


def test_an_outcome_that_is_known_is_not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(FAMILIES["qwen3"].template, TOKENIZER, TemplateOptions())
    rendered: list[Any] = []
    monkeypatch.setattr(template, "_render", lambda *given, own=template._render: rendered.append(given) or own(*given))  # type: ignore[func-returns-value]
    for number in range(20):
        template.lay_out((Message("user", f"q {number}"),), (Message("assistant", f"a {number}"),))
        if number == PROOFS:
            assert rendered
            rendered.clear()
    assert not rendered
    template.lay_out((Message("user", "q"),), (Message("assistant", "<think>b</think>a"),))
    assert rendered
