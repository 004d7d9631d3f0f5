"""The bundled preference pairs: their shape, their variety and the sizes that a byte tokenizer can afford."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

PAIRS = pathlib.Path(__file__).parents[2] / "ms_prefstream" / "demo" / "pairs.jsonl"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def _bytes(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].encode()) for message in messages)


def _turns(row: Row) -> list[dict[str, str]]:
    return [message for message in row["prompt"] if message["role"] != "system"]


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def _answers(rows: list[Row]) -> list[str]:
    return [row[side][0]["content"] for row in rows for side in ("chosen", "rejected")]


def test_there_are_enough_pairs_and_they_are_distinct(rows: list[Row]) -> None:
    assert len(rows) >= 72
    assert len({json.dumps(row["prompt"], sort_keys=True) for row in rows}) == len(rows)
    answers = _answers(rows)
    assert len(set(answers)) == len(answers)


def test_every_row_has_the_chat_messages_shape(rows: list[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        assert list(row) == ["prompt", "chosen", "rejected"], number
        messages = row["prompt"] + row["chosen"] + row["rejected"]
        assert all(list(message) == ["role", "content"] for message in messages), number
        assert all(message["content"].strip() for message in messages), number
        roles = [message["role"] for message in _turns(row)]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)], number
        assert roles[-1] == "user", number
        assert [message["role"] for message in row["prompt"]].count("system") == len(row["prompt"]) - len(roles), number
        assert row["prompt"][0]["role"] in ("system", "user"), number
        assert len(row["prompt"]) - len(roles) <= 1, number
        assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant"] * 2, number


def test_the_file_is_plain_json_lines() -> None:
    raw = PAIRS.read_bytes()
    assert raw.endswith(b"}\n")
    assert b"\r" not in raw
    assert b"\\u" not in raw, "characters are written as UTF-8, not escaped"
    assert all(line.startswith(b"{") for line in raw.splitlines())


def test_half_is_chinese_half_is_english(rows: list[Row]) -> None:
    chinese = sum(_is_chinese(row["chosen"][0]["content"] + row["prompt"][-1]["content"]) for row in rows)
    assert 0.4 <= chinese / len(rows) <= 0.6


def test_several_turns_and_system_messages_occur_in_both_languages(rows: list[Row]) -> None:
    several = [row for row in rows if len(_turns(row)) > 1]
    system = [row for row in rows if row["prompt"][0]["role"] == "system"]
    assert len(several) >= 16
    assert len(system) >= 8
    assert any(row in several for row in system)
    for some in (several, system):
        chinese = sum(_is_chinese(row["prompt"][-1]["content"]) for row in some)
        assert 3 <= chinese <= len(some) - 3


def test_conversations_are_short(rows: list[Row]) -> None:
    sizes = [_bytes(row["prompt"]) + max(_bytes(row["chosen"]), _bytes(row["rejected"])) for row in rows]
    assert max(sizes) <= 330
    assert sum(60 <= size <= 260 for size in sizes) >= 0.9 * len(sizes)


def test_length_alone_does_not_tell_the_better_side(rows: list[Row]) -> None:
    longer_rejected = sum(_bytes(row["rejected"]) >= _bytes(row["chosen"]) for row in rows)
    assert longer_rejected >= len(rows) // 5


def test_what_tokenizers_stumble_over_occurs(rows: list[Row]) -> None:
    answers = _answers(rows)
    assert sum(answer.endswith(("!", "！")) for answer in answers) >= 4
    assert sum(answer.startswith("\n") for answer in answers) >= 2
    assert sum(answer.startswith("```") for answer in answers) >= 2
    assert sum(any(ord(char) > 0xFFFF for char in answer) for answer in answers) >= 3, "emoji"
    mixed = [
        answer
        for answer in answers
        if _is_chinese(answer) and any(char.isascii() and char.isalpha() for char in answer)
    ]
    assert len(mixed) >= 5


def test_code_answers_that_define_something_are_valid_python(rows: list[Row]) -> None:
    code = [row["chosen"][0]["content"] for row in rows if row["chosen"][0]["content"].startswith(("\n", "```python"))]
    assert len(code) >= 4
    for text in code:
        body = text.split("```python\n")[1].split("```")[0] if "```" in text else text
        compile(body, "<pair>", "exec")
