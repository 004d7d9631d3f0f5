"""What a row gives is held by the text, or reported, or the row is refused: random rows, random templates.

Every word of a row is unique and has capital letters and numerals. So the measure is a search for the word, in the text
that the ids decode to.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.encoder import Encoded
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Messages
from ms_prefstream.sample import Note
from tests.encode.faulty_templates import CALLS, CONTENTS, SCHEMAS, THOUGHTS, template_of

pytestmark = pytest.mark.slow

LAW = settings(
    settings.get_profile("cheap"), max_examples=2 * settings.get_profile("cheap").max_examples, derandomize=True
)
TOKENIZER = load_tokenizer("bytes")

templates = st.builds(template_of, *(st.sampled_from(sorted(names)) for names in (CONTENTS, CALLS, SCHEMAS, THOUGHTS)))


def words() -> Iterator[str]:
    return (f"Wo7rd{number}x" for number in itertools.count(100))


def texts(value: Any) -> Iterator[str]:
    """Every word in a value, keys included."""
    if isinstance(value, str):
        yield from (word.strip("<>/") for word in value.replace("think>", " ").split() if word.startswith("Wo7rd"))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


@st.composite
def arguments(draw: Any, word: Iterator[str]) -> Any:
    value = st.sampled_from(["text", "number", "list", "flag", "nested", "odd"])
    kinds = draw(st.lists(value, min_size=1, max_size=3))
    made = {
        "text": lambda: next(word),
        "number": lambda: 3,
        "list": lambda: [next(word), 2.5],
        "flag": lambda: True,
        "nested": lambda: {next(word): next(word)},
        "odd": lambda: f'"{next(word)}\\ é\n<',
    }
    found = {next(word): made[kind]() for kind in kinds}
    return json.dumps(found) if draw(st.booleans()) else found


@st.composite
def rows(draw: Any) -> Completion:
    word = words()

    def content() -> str:
        text = " ".join(next(word) for _ in range(draw(st.integers(1, 3))))
        return draw(st.sampled_from([text, f"  {text}\n", f"{text}\n{next(word)}"]))

    def answer(last: bool) -> Message:
        extra: dict[str, Any] = {}
        text = content()
        if draw(st.booleans()):
            text = f"<think>\n{next(word)}\n</think>\n\n{text}"
        elif draw(st.booleans()):
            extra["reasoning_content"] = content()
        if draw(st.booleans()):
            calls = draw(st.integers(1, 2))
            extra["tool_calls"] = [
                {"type": "function", "function": {"name": next(word), "arguments": draw(arguments(word))}}
                for _ in range(calls)
            ]
            text = draw(st.sampled_from(["", text]))
        if draw(st.integers(0, 3)) == 0:
            extra["remark"] = next(word)
        return Message("assistant", text, extra or None)

    prompt: list[Message] = [Message("system", content())] if draw(st.booleans()) else []
    if draw(st.booleans()):
        prompt += [Message("user", content()), answer(False)]
        if draw(st.booleans()):
            prompt.append(Message("tool", content()))
    prompt.append(Message("user", content()))
    tools = [
        {
            "type": "function",
            "function": {
                "name": next(word),
                "description": next(word),
                "parameters": {
                    "type": "object",
                    "properties": {next(word): {"type": "string", "description": next(word)}},
                },
            },
        }
        for _ in range(draw(st.integers(0, 2)))
    ]
    return Completion(tuple(prompt), (answer(True),), tuple(tools) or None)


def encoded(row: Completion, template: str, **options: Any) -> Encoded | RowError:
    (found,) = build_encoder(TOKENIZER, template=template, **options).encode([row])
    return found if isinstance(found, RowError) else found[-1]


def given_by(row: Completion) -> dict[str, list[str]]:
    """The words of a row by what may happen to them."""
    found: dict[str, list[str]] = {"never": [*texts(list(row.tools or ()))], "prompt": [], "response": [], "remark": []}
    messages: Messages = row.prompt + row.response
    for turn, message in enumerate(messages):
        extra = message.extra or {}
        for call in extra.get("tool_calls", ()):
            function = call["function"]
            values = function["arguments"]
            found["never"] += [function["name"], *texts(json.loads(values) if isinstance(values, str) else values)]
        side = "prompt" if turn < len(row.prompt) else "response"
        found[side] += [*texts(message.content), *texts(extra.get("reasoning_content", ""))]
        found["remark"] += texts(extra.get("remark", ""))
    return found


@LAW
@given(rows(), templates)
def test_held_reported_or_refused(row: Completion, template: str) -> None:
    found, gives = encoded(row, template), given_by(row)
    if isinstance(found, RowError):
        assert found.reason is Reason.TEMPLATE_REFUSED
        return
    text = TOKENIZER.decode(found.ids.tolist())
    missing = {kind: [word for word in gives[kind] if word not in text] for kind in gives}
    assert not missing["never"]
    assert bool(missing["response"]) == bool(found.laid.notes & Note.CONTENT_LOST)
    assert not missing["prompt"] or found.laid.rewritten
    assert set(found.laid.unread) == ({"turn field 'remark'"} if missing["remark"] else set())
    assert "None" not in text
    assert "{'Wo7rd" not in text  # a mapping of arguments in Python's notation
    assert '{\\"Wo7rd' not in text  # arguments that are encoded twice
    for mode, reason in (("drop", False), ("error", True)):
        strict = encoded(row, template, content_lost=mode)
        assert isinstance(strict, RowError) == bool(missing["response"])
        if isinstance(strict, RowError):
            assert (strict.reason, strict.malformed) == (Reason.CONTENT_LOST, reason)


GOOD = {
    "content": ["as it is", "trimmed", "by lines", "indented", "thoughts apart"],
    "calls": [
        "all of them", "one by one", "indented", "made anew", "joined text", "text or mapping", "item by item",
        "printed",
    ],
    "schemas": ["all of them", "one by one", "functions", "described"],
    "thoughts": ["written", "empty"],
}  # fmt: skip


@LAW
@given(rows(), st.tuples(*(st.sampled_from(names) for names in GOOD.values())))
def test_good_templates_lose_nothing(row: Completion, parts: tuple[str, str, str, str]) -> None:
    found, gives = encoded(row, template_of(*parts)), given_by(row)
    if isinstance(found, RowError):
        raise found
    text = TOKENIZER.decode(found.ids.tolist())
    assert [word for kind in ("never", "prompt", "response") for word in gives[kind] if word not in text] == []
    assert not found.laid.notes & Note.CONTENT_LOST


def other_spelling(row: Completion) -> Completion:
    """The same row with arguments as JSON text where they are a mapping, and the other way round."""

    def turned(message: Message) -> Message:
        calls = []
        for call in (message.extra or {}).get("tool_calls", ()):
            values = call["function"]["arguments"]
            values = json.loads(values) if isinstance(values, str) else json.dumps(values, separators=(",", ":"))
            calls.append({**call, "function": {**call["function"], "arguments": values}})
        return message._replace(extra={**(message.extra or {}), "tool_calls": calls}) if calls else message

    return Completion(tuple(map(turned, row.prompt)), tuple(map(turned, row.response)), row.tools)


@LAW
@given(rows(), templates)
def test_both_spellings_of_arguments_are_the_same_text(row: Completion, template: str) -> None:
    found, other = encoded(row, template), encoded(other_spelling(row), template)
    if isinstance(found, RowError):
        assert str(found) == str(other)
        return
    assert not isinstance(other, RowError)
    assert (found.ids.tolist(), found.spans) == (other.ids.tolist(), other.spans)
