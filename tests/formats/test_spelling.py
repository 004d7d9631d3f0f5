from __future__ import annotations

import copy
import importlib.util
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.errors import Reason
from ms_prefstream.formats.reader import reader
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import resolve_format
from ms_prefstream.formats.spelling import without_filled_nulls
from ms_prefstream.inspection import rows_of
from ms_prefstream.load.records import formats_of
from ms_prefstream.sources.base import fills_nulls
from ms_prefstream.sources.open import open_source

from ..helpers import assert_same_batches, json_lines
from .conversations import assistant, raw, refusal, system, user

U, A, B = user("Hi"), assistant("Hello"), assistant("What")
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "What"}
EXPECTED = Pair((U,), (A,), (B,))
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


def read(row: Any, format: Any = "auto", **options: Any) -> Any:
    return reader(resolve_format(format), **options)(row)


def missing_values() -> list[Any]:
    found: list[Any] = [float("nan"), np.float32("nan"), np.float64("nan"), np.datetime64("NaT")]
    if importlib.util.find_spec("pandas"):
        import pandas

        found += [pandas.NA, pandas.NaT]
    return found


@pytest.mark.parametrize("value", missing_values(), ids=repr)
def test_missing_values_of_tables_are_missing(value: Any) -> None:
    for name in ("system", "tools", "margin", "history", "response", "messages", "images", "notes", "score_chosen"):
        assert read({**PAIR, name: value}) == EXPECTED
    said = refusal(Reason.MISSING_FIELD, read, {**PAIR, "chosen": value})
    assert "found fields: prompt, rejected" in said or "no format fits the fields prompt, rejected" in said
    assert read({"q": "Hi", **PAIR, "sys": value}, fields={"system": "sys"}).prompt == (U,)


def test_a_row_of_a_table() -> None:
    """As `DataFrame.to_dict("records")` has it."""
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "What", "system": float("nan"), "margin": 2.0}
    assert read(row) == Pair((U,), (A,), (B,), 2.0)
    format = reader(resolve_format("auto"))
    assert [format({**row, "margin": m}).margin for m in (2.0, float("nan"), 3.0)] == [2.0, None, 3.0]  # type: ignore[union-attr]
    counted = reader(mps.formats.ranked())
    scores = {"prompt": "Hi", "responses": ["a", "b"], "scores": "[1, 2]", "margin": float("nan")}
    assert counted.count(scores) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name",
    ["system", "tools", "history", "margin", "input", "messages", "images", "score_chosen", "chat_template_kwargs"],
)
def test_empty_text_for_an_optional_field_is_missing(name: str) -> None:
    assert read({**PAIR, name: ""}) == EXPECTED


def test_empty_texts_that_are_texts_stay() -> None:
    assert read({**PAIR, "chosen": ""}).chosen == (assistant(""),)
    assert read({**PAIR, "prompt": ""}).prompt == (user(""),)
    empty = {"system": "", "question": "Hi", "chosen": "Hello", "rejected": "What"}
    assert read(empty, mps.formats.orca(keep_empty_system=True)).prompt == (system(""), U)


def as_text(value: Any) -> str:
    return json.dumps(value)


def test_json_text_where_a_list_or_an_object_is_required() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    turn = {"role": "assistant", "content": "x", "tool_calls": [call]}
    written = {**turn, "tool_calls": as_text([call])}
    for row, other in (
        ({"messages": raw(U, A)}, {"messages": as_text(raw(U, A))}),
        ({"conversations": raw(U, A)}, {"conversations": as_text(raw(U, A))}),
        ({**PAIR, "tools": [call]}, {**PAIR, "tools": as_text([call])}),
        ({**PAIR, "history": [["a", "b"]]}, {**PAIR, "history": as_text([["a", "b"]])}),
        ({"prompt": "Hi", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]},) * 2,
        ({"prompt": "Hi", "completions": ["a", "b"], "scores": [1, 2]},
         {"prompt": "Hi", "completions": as_text(["a", "b"]), "scores": as_text([1, 2])}),
        ({**PAIR, "prompt": raw(U), "chosen": [turn]}, {**PAIR, "prompt": raw(U), "chosen": [written]}),
        ({**PAIR, "chat_template_kwargs": {"a": 1}}, {**PAIR, "chat_template_kwargs": as_text({"a": 1})}),
    ):  # fmt: skip
        assert read(other) == read(row)
    assert "field 'messages' is str 'no JSON'" in refusal(Reason.BAD_TYPE, read, {"messages": "no JSON"})
    refusal(Reason.BAD_TYPE, read, {"messages": "[1, 2"})


def test_json_text_of_prompts_and_responses_is_text() -> None:
    text = as_text(raw(U))
    assert read({"prompt": text, "chosen": text, "rejected": "[]"}) == Pair(
        (user(text),), (assistant(text),), (assistant("[]"),)
    )
    assert read({"prompt": text, "completion": text}).response == (assistant(text),)
    assert read({"prompt": text, "response": text}).response == (assistant(text),)


def test_a_function_gets_the_values_of_its_source() -> None:
    seen: list[Any] = []

    def function(row: dict[str, Any]) -> dict[str, Any]:
        seen.append((row["messages"], row["score"]))
        return {**PAIR, "messages": row["messages"], "margin": row["score"]}

    row = {"messages": as_text(raw(U, A)), "score": float("nan")}
    assert read(row, function).margin is None
    assert seen[0][0] == row["messages"]
    assert seen[0][1] is row["score"]


# Nulls that Arrow fills in.


def test_nulls_go_in_tools_and_calls_alone() -> None:
    row = {
        "notes": {"a": None},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": None, "b": [None, {"c": None}]}}}],
        "messages": [
            {"role": "user", "content": "x", "tool_calls": None},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": None}}}],
            },
        ],
        "prompt_ids": [1, 2],
        "empty": [],
    }
    before = copy.deepcopy(row)
    found = without_filled_nulls(row)
    assert row == before
    assert found["notes"] == {"a": None}
    assert found["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"b": [None, {}]}}}]
    assert found["messages"][1]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]
    assert found["messages"][0] is row["messages"][0]  # type: ignore[index]
    assert found["prompt_ids"] is row["prompt_ids"]
    assert without_filled_nulls(PAIR) is PAIR
    assert without_filled_nulls("x") == "x"


def test_only_rows_of_arrow_lose_nulls() -> None:
    row = {**PAIR, "tools": [{"name": "f", "default": None}]}
    assert read(row).tools == ({"name": "f", "default": None},)
    assert read(row, fills_nulls=True).tools == ({"name": "f"},)
    renamed = {**PAIR, "schemas": row["tools"]}
    assert read(renamed, fields={"tools": "schemas"}, fills_nulls=True).tools == ({"name": "f"},)
    assert read(row, lambda row: dict(row), fills_nulls=True).tools == ({"name": "f"},)


def calls_of(city: str, other: bool) -> dict[str, Any]:
    arguments = {"city": city} if other else {"day": 3, "place": {"country": city}}
    return {"type": "function", "function": {"name": "g" if other else "f", "arguments": arguments}}


def schema(other: bool) -> dict[str, Any]:
    properties = {"city": {"type": "string"}} if other else {"day": {"type": "integer", "minimum": 1}}
    parameters = {"type": "object", "properties": properties, **({"required": ["city"]} if other else {})}
    return {"type": "function", "function": {"name": "g" if other else "f", "parameters": parameters}}


WORDS = st.text("ab é中<", min_size=1, max_size=6)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A pair of turns, some with calls, tools, a system message and a margin; absent keys are absent or null."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": draw(WORDS)}]
    if draw(st.booleans()):
        calls = [calls_of(draw(WORDS), draw(st.booleans())) for _ in range(draw(st.integers(1, 2)))]
        turns.append({"role": "assistant", "content": draw(WORDS), "tool_calls": calls})
        turns.append({"role": "tool", "content": draw(WORDS)})
    better = draw(WORDS)
    row: dict[str, Any] = {
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": better}],
        "rejected": [{"role": "assistant", "content": better + draw(WORDS)}],
    }
    if draw(st.booleans()):
        row["tools"] = [schema(draw(st.booleans())) for _ in range(draw(st.integers(1, 2)))]
    if draw(st.booleans()):
        row["system"] = draw(st.one_of(st.none(), WORDS))
    if draw(st.booleans()):
        row["margin"] = draw(st.floats(0, 9, width=16))
    return row


def in_order(value: Any) -> Any:
    """The same with the keys of all objects in Arrow's order."""
    if isinstance(value, dict):
        return {name: in_order(value[name]) for name in sorted(value)}
    return [in_order(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize("fields", [None, {"tools": "schemas", "chosen": "sides.better"}])
@given(given_rows=st.lists(rows(), min_size=2, max_size=5))
@settings(settings.get_profile("cheap"), max_examples=12)
def test_the_same_rows_from_every_kind_of_source_give_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, str] | None, given_rows: list[dict[str, Any]]
) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("rows")
    if fields is not None:
        for row in given_rows:
            row["sides"] = {"better": row.pop("chosen")}
            if "tools" in row:
                row["schemas"] = row.pop("tools")
    names = dict.fromkeys(name for row in given_rows for name in row)
    given_rows = [
        in_order({name: row.get(name) for name in names}) for row in given_rows
    ]  # as all columns stand in every row
    whole = datasets.Dataset.from_list(copy.deepcopy(given_rows))
    whole.to_parquet(str(folder / "rows.parquet"))
    whole.save_to_disk(str(folder / "saved"))
    sources: list[Any] = [
        given_rows,
        str(json_lines(folder / "rows.jsonl", given_rows)),
        str(folder / "rows.parquet"),
        whole,
        whole.to_iterable_dataset(),
        str(folder / "saved"),
        mps.read(str(folder / "rows.parquet")),
        mps.mix([str(folder / "rows.parquet")]),
    ]
    expected: list[Any] | None = None
    for source in sources:
        stream = mps.stream(
            source,
            task=mps.DPO(2048),
            tokenizer="bytes",
            template=TEMPLATE,
            batching=mps.Pad(len(given_rows)),
            shuffle=False,
            fields=fields,
            index=None,
        )
        found = list(stream.batches())
        expected = found if expected is None else expected
        assert_same_batches(found, expected)


def test_what_fills_nulls(tmp_path: pathlib.Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list([PAIR] * 2)
    whole.to_parquet(str(tmp_path / "rows.parquet"))
    lines = json_lines(tmp_path / "rows.jsonl", [PAIR])
    for source, expected in (
        (whole, True),
        (whole.to_iterable_dataset(), True),
        (str(tmp_path / "rows.parquet"), True),
        ([str(tmp_path / "rows.parquet"), str(lines)], True),
        ([whole, whole.to_iterable_dataset()], True),
        (mps.read(whole), True),
        (mps.read(whole.to_iterable_dataset()), True),
        ([PAIR], False),
        (str(lines), False),
        (lambda: iter([PAIR]), False),
    ):
        assert fills_nulls(open_source(source)) is expected
    parts = mps.mix([whole, str(lines)])
    row = {**PAIR, "tools": [{"name": "f", "a": None}]}
    first, second = formats_of(parts, "auto")
    assert first(row).tools == ({"name": "f"},)  # type: ignore[union-attr]
    assert second(row).tools == ({"name": "f", "a": None},)  # type: ignore[union-attr]


def test_inspect_shows_the_same(tmp_path: pathlib.Path) -> None:
    datasets = pytest.importorskip("datasets")
    given_rows = [in_order({**PAIR, "tools": [schema(other)]}) for other in (True, False)]
    datasets.Dataset.from_list(given_rows).to_parquet(str(tmp_path / "rows.parquet"))
    options: dict[str, Any] = {"task": mps.DPO(2048), "tokenizer": "bytes", "template": TEMPLATE}
    shown = rows_of(str(tmp_path / "rows.parquet"), 2, options)
    for found, row in zip(shown, given_rows, strict=True):
        assert str(found.row) == str(mps.encode(row, **options))


def test_rows_of_pandas_from_parquet_have_no_filled_nulls(tmp_path: pathlib.Path) -> None:
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    calls = [
        [{"type": "function", "function": {"arguments": one, "name": "f"}}] for one in ({"city": "Oslo"}, {"a": "x"})
    ]
    turns = [[{"role": "assistant", "content": "", "tool_calls": one}] for one in calls]
    given_rows = [{"prompt": "Hi", "chosen": one, "rejected": "What", "tools": [schema(True)]} for one in turns]
    given_rows[0]["tools"] = [{"name": "f", "unit": "c"}]
    given_rows[1]["tools"] = [{"name": "f"}]
    given_rows = [in_order(row) for row in given_rows]
    datasets.Dataset.from_list(given_rows).to_parquet(str(tmp_path / "rows.parquet"))
    found = pandas.read_parquet(tmp_path / "rows.parquet").to_dict("records")
    for row, expected in zip(found, given_rows, strict=True):
        for read_row in (read, lambda row: read(row, lambda one: dict(one))):
            assert repr(read_row(row)) == repr(read(expected))
