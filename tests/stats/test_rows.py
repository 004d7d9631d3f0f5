"""Every kind of source and of row: the same counts however rows arrive, and sensible ones where rows are no pairs."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.html.build import stats_report
from ms_prefstream.stats import collect, run
from tests.helpers import Row, json_lines, pairs, token_pairs
from tests.kinds import SOURCES, source_of

ROWS = [*pairs(20), {**pairs(1)[0], "prompt": "#3# why?"}]


def counts(found: mps.Stats) -> dict[str, Any]:
    """Everything but where the rows come from."""
    return {name: value for name, value in found.to_dict().items() if name not in ("source", "origins")}


@functools.cache
def expected() -> dict[str, Any]:
    return counts(mps.stats(ROWS, tokenizer="bytes", against=ROWS[:2]))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(tmp_path: pathlib.Path, kind: str) -> None:
    found = mps.stats(source_of(kind, tmp_path, ROWS), tokenizer="bytes", against=ROWS[:2])
    assert counts(found) | {"against": None} == expected() | {"against": None}
    assert found.against is not None
    assert (found.against.rows, found.against.shared, found.against.first) == (2, 2, (0, 1))


def test_an_iterator_is_read_once() -> None:
    assert counts(mps.stats(iter(ROWS), tokenizer="bytes", against=ROWS[:2])) == expected()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path: pathlib.Path, workers: int) -> None:
    rows = [*pairs(700), {"x": 1}, {"prompt": "q", "chosen": "", "rejected": "b"}, *pairs(9)]
    path = json_lines(tmp_path / "rows.jsonl", rows)
    options: dict[str, Any] = {"tokenizer": "bytes", "limits": (40, 70), "against": pairs(20, 690)}
    found = mps.stats(path, workers=workers, **options)
    assert found == mps.stats(path, **options)
    assert found.dropped == {"missing_field": 1, "empty_response": 1}
    assert found.against is not None
    assert found.against.shared == 10


def test_a_mix_is_all_its_parts(tmp_path: pathlib.Path) -> None:
    other = [{"question": "q", "good": "yes", "bad": "no"}] * 3
    fields = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    mix = mps.mix([(pairs(5), 1.0), mps.Part(other, 1.0, fields=fields)])
    found = mps.stats(mix)
    assert (found.rows, found.kinds, found.dropped) == (8, {"pairs": 8}, {})
    assert found.prompts.repeated.rows == 3


def test_rows_of_one_response() -> None:
    """KTO: the label says on which side a response counts. A prompt alone has none."""
    rows: list[Row] = [
        {"prompt": "one", "completion": "good one", "label": True},
        {"prompt": "two", "completion": "bad", "label": False},
        {"prompt": "three", "completion": "plain"},
        {"prompt": "four"},
        {"prompt": "five", "chosen": "yes", "rejected": "no"},
    ]
    found = mps.stats(rows, tokenizer="bytes", template=None)
    assert found.kinds == {"responses": 3, "prompts": 1, "pairs": 1}
    assert found.dropped == {}
    assert (found.characters.prompt.count, found.characters.prompt.max) == (5, 5)
    assert (found.characters.chosen.count, found.characters.chosen.max) == (3, 8)
    assert (found.characters.rejected.count, found.characters.rejected.max) == (2, 3)
    assert found.sequences is not None
    assert (found.sequences.chosen.count, found.sequences.rejected.count) == (5, 1)
    assert found.gap.pairs == 1
    assert "responses 3   prompts 1   pairs 1" in str(found)

    refused = mps.stats(rows, tokenizer="bytes", task=mps.DPO(64))
    assert refused.dropped == {"missing_field": 4}
    assert (refused.usable, refused.characters.prompt.count) == (1, 5)
    for task in (mps.RLHF(30, 64), mps.RLHF(64, 64)):
        alone = mps.stats(rows, tokenizer="bytes", task=task)
        assert alone.dropped == {}
        assert alone.sequences is not None
        assert (alone.sequences.chosen.count, alone.sequences.rejected.count) == (5, 0)


def test_rows_of_token_ids() -> None:
    rows = token_pairs(30)
    found = mps.stats([*rows, rows[3], *pairs(2)])
    assert found.kinds == {"tokenized pairs": 31, "pairs": 2}
    assert found.characters.prompt.count == 2
    assert found.tokens is not None
    assert found.sequences is not None
    assert (found.tokens.chosen.count, found.tokens.chosen.max) == (31, 12)
    assert (found.sequences.chosen.count, found.sequences.longer.max) == (31, 16)
    assert found.prompts.repeated == dataclasses.replace(found.prompts.repeated, rows=2, groups=1, first=((3, 30),))
    assert found.padding["pad"].steps == 3


def test_samples_of_a_cache(tmp_path: pathlib.Path) -> None:
    stream = mps.stream(pairs(12), task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(1), verbose=False)
    mps.write_cache(stream, tmp_path / "cache", workers=0, progress=False)
    found = mps.stats(tmp_path / "cache")
    plain = mps.stats(pairs(12), tokenizer="bytes")
    assert found.kinds == {"cached": 12}
    assert found.sequences == plain.sequences
    assert found.padding == plain.padding
    assert found.prompts.distinct == 0
    assert (found.cut, found.formats) == ((), ()), "they were cut, and read by a format, before"
    stats_report(tmp_path / "stats.html", found.to_dict(), tmp_path / "cache", {"tokenizer": None, "task": None})
    assert b'"rows":12' in (tmp_path / "stats.html").read_bytes()


BAD: dict[str, Row] = {
    "empty_response": {"prompt": "q", "chosen": " ", "rejected": "b"},
    "identical": {"prompt": "q", "chosen": "a", "rejected": "a"},
    "missing_field": {"x": "a"},
    "bad_type": {"prompt": "q", "chosen": 3, "rejected": "a"},
}


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
def test_bad_rows_are_counted_with_or_without_a_tokenizer(tmp_path: pathlib.Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [*pairs(5), *BAD.values(), *[BAD["identical"]] * 9]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "{torn\n", "utf-8")
    found = mps.stats(path, tokenizer=tokenizer)
    assert found.rows == 19
    assert found.usable == 5
    assert found.dropped == {"identical": 10} | dict.fromkeys([*BAD, "bad_json"], 1) | {"identical": 10}
    assert next(iter(found.dropped)) == "identical"
    assert found.origins["empty_response"] == (f"{path}:6",)
    assert found.origins["identical"] == tuple(f"{path}:{line}" for line in (7, 10, 11, 12, 13))
    assert "identical 10 (rows.jsonl:7, :10, :11 …)" in str(found)
    stream = mps.stream(path, task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(1), on_bad_row="drop")
    list(stream.batches())
    assert stream.report.dropped == found.dropped


def test_texts_that_no_tokenizer_accepts() -> None:
    rows = [*pairs(3), {"prompt": "q", "chosen": "a\ud800", "rejected": "b"}]
    found = mps.stats(rows, tokenizer="bytes")
    assert found.dropped == {"bad_type": 1}
    assert found.tokens is not None
    assert (found.tokens.prompt.count, found.tokens.chosen.count, found.tokens.rejected.count) == (4, 3, 4)
    assert found.characters.chosen.count == 4


def test_no_chat_template_judges_without_a_tokenizer() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "content": "3"}
    rows = [{"prompt": [*turns, result], "chosen": "yes", "rejected": "no"}]
    assert mps.stats(rows, tokenizer="bytes").dropped == {"template_refused": 1}
    found = mps.stats(rows)
    assert (found.dropped, found.unread, found.usable) == ({}, {}, 1)


def test_unread_fields() -> None:
    found = mps.stats([{**row, "rationale": "because"} for row in pairs(4)])
    assert found.unread == {"rationale": 4}
    assert found.origins["unread rationale"][0] == "row 0 of list"
    assert "rationale 4" in str(found)


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
def test_carried_fields_are_read_and_rows_without_them_are_dropped(tokenizer: Any) -> None:
    rows = [{**row, "rationale": "because"} for row in pairs(4)]
    del rows[2]["rationale"]
    found = mps.stats(rows, tokenizer=tokenizer, carry={"rationale": "text"}, against=pairs(2))
    assert (found.unread, found.dropped, found.usable) == ({}, {"missing_field": 1}, 3)
    assert found.against is not None
    assert found.against.shared == 2  # other data need no such field
    with pytest.raises(mps.OptionError, match="float7"):
        mps.stats(rows, carry={"rationale": "float7"})


def test_fields_formats_and_functions() -> None:
    rows = [{"question": "q" * n, "good": "yes", "bad": "no"} for n in range(1, 5)]
    fields = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    named = mps.stats(rows, fields=fields)
    mapped = mps.stats(rows, format=lambda row: {name: row[field] for name, field in fields.items()})
    assert named.characters == mapped.characters
    assert named.characters.prompt.max == 4
    nectar = [{"prompt": "q", "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("abc", 1)]}]
    assert mps.stats(nectar, format=mps.formats.nectar()).kinds == {"pairs": 3}


def test_against_counts_rows_here() -> None:
    here = [*pairs(6), pairs(6)[2]]
    found = mps.stats(here, against=[pairs(6)[2], {"prompt": "Another question."}]).against
    assert found is not None
    assert (found.rows, found.shared, found.shared_prompts, found.first) == (2, 2, 1, (2, 6))


def test_near_duplicates_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_installed", lambda: False)
    found = mps.stats(ROWS, against=ROWS[:2])
    assert found.prompts.near is None
    assert found.against is not None
    assert found.against.near is None
    assert found.prompts.repeated.rows == 2
    assert 'not counted: pip install "ms-prefstream[report]"' in str(found)


def test_types_of_rows() -> None:
    assert collect.type_of({"pos_type": "a", "neg_type": "b"}) == "a>b"
    for row in (
        {},
        None,
        3,
        [],
        "x",
        {"pos_type": "a"},
        {"pos_type": 1, "neg_type": "b"},
        {"pos_type": "", "neg_type": ""},
    ):
        assert collect.type_of(row) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limits": "512"}, "limits is '512'; expected numbers of tokens"),
        ({"limits": [3]}, r"limits\[0\]"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"tokenizer": "/nowhere"}, "no tokenizer called"),
        ({"against": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"task": "dpo"}, "task is 'dpo'"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(mps.PrefStreamError, match=said):
        mps.stats(ROWS, **options)


def test_no_rows(tmp_path: pathlib.Path) -> None:
    with pytest.raises(mps.SourceError, match="found no rows"):
        mps.stats(lambda: iter([]))
    only_bad = mps.stats([{"x": 1}], tokenizer="bytes")
    assert (only_bad.rows, only_bad.usable, only_bad.padding, only_bad.suggested) == (1, 0, {}, None)
    assert "missing_field 1" in str(only_bad)
