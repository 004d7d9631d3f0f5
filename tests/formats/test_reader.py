from __future__ import annotations

import copy
import datetime
import json
import pickle
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats import PRESETS, ManyRecords, OneRecord
from ms_prefstream.formats.reader import CountingReader, RowReader, reader
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import resolve_format
from ms_prefstream.formats.unread import Probe, is_harmless
from ms_prefstream.load.records import formats_of

from .conversations import assistant, raw, refusal, system, user
from .test_auto import ROWS

U, A, B = user("Hi"), assistant("Hello"), assistant("What")
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "What"}
TURNS = [{"role": "user", "content": "Another"}]


def read(row: Any, format: Any = "auto", **options: Any) -> Any:
    return reader(resolve_format(format), **options)(row)


def unread(row: Any, format: Any = "auto", **options: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = read(row, format, **options).unread
    return found


# What presets leave unread.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("notes", "text"),
        ("notes", TURNS),
        ("notes", {"inner": {"deeper": ["", "text"]}}),
        ("notes", np.array(["text"], object)),
        ("notes", b"\x89PNG"),
        ("notes", np.str_("text")),
        ("notes", object()),
        ("response", "text"),
        ("completion", "text"),
        ("output", "text"),
        ("history_text", "text"),
        ("messages_before", TURNS),
        ("functions", [{"name": "f"}]),
        ("rejected_response", "text"),
    ],
)
def test_a_field_that_holds_something_and_that_nothing_reads_is_named(name: str, value: Any) -> None:
    assert unread({**PAIR, name: value}) == (name,)


@pytest.mark.parametrize(
    "value",
    [
        *(None, 5, 2.5, True, float("nan"), "", " \n", [], {}, [[], {"a": ""}], [1, 2.5, None], np.zeros((2, 3))),
        *(datetime.date(2024, 1, 1), np.float32(1), np.datetime64("2024-01-01"), {"id": "x", "lang": "en"}),
    ],
)
def test_numbers_dates_and_empty_values_hold_nothing(value: Any) -> None:
    assert unread({**PAIR, "notes": value}) == ()


@pytest.mark.parametrize(
    "name",
    [
        *("id", "ID", "prompt_id", "questionId", "conversation_hash", "source", "data-source", "dataset", "language"),
        *("lang", "score", "chosen_scores", "created_at", "timestamp", "chosen_model", "url", "pos_type", "split"),
    ],
)
def test_ids_sources_scores_languages_dates_and_hashes_are_harmless(name: str) -> None:
    assert is_harmless(name)
    assert unread({**PAIR, name: "x"}) == ()


@pytest.mark.parametrize("name", ["context", "text", "identity", "idea", "updates", "sourced", "scored", ""])
def test_other_names_are_not(name: str) -> None:
    assert not is_harmless(name)


def test_general_fields_are_read() -> None:
    row = {**PAIR, "system": "Be brief.", "tools": [{"name": "f"}], "chat_template_kwargs": {"thinking": False}}
    found = read(row)
    assert (found.unread, found.variables) == ((), {"thinking": False})
    assert unread({**PAIR, "history": [["a", "b"]], "margin": 2}) == ()
    refusal(Reason.BAD_TYPE, read, {**PAIR, "chat_template_kwargs": "x"})


def test_fields_that_are_read_only_to_compare_or_to_refuse_are_not_read() -> None:
    assert unread({**PAIR, "response": "x"}, "strings") == ("response",)
    assert unread({**PAIR, "response": "x"}) == ("response",)
    assert unread({"instruction": "Hi", "output": "x", "chosen": "a", "rejected": "b"}) == ("output",)
    assert unread({"prompt": raw(U), "chosen": raw(A), "rejected": raw(B), "messages": TURNS}) == ("messages",)
    whole = {"chosen": raw(U, A), "rejected": raw(U, B)}
    assert unread({**whole, "messages": TURNS}) == ("messages",)


@pytest.mark.parametrize("name", ["messages", "prompt"])
def test_a_known_field_that_repeats_the_conversation_is_not_lost(name: str) -> None:
    scores = {"score_chosen": 2.0, "score_rejected": 1.0}
    whole = {"prompt": "Hi", "chosen": raw(U, A), "rejected": raw(U, B), "messages": raw(U, A), **scores}
    assert unread(whole) == ()
    mixed = {"question": "Hi", "prompt": "Hi", "chosen": raw(U, A), "rejected": raw(U, B)}
    assert unread(mixed) == ()
    assert unread({**mixed, "prompt": "Another"}) == ("prompt",)


def test_a_prompt_beside_text_that_nobody_reads() -> None:
    found = read({"prompt": "Hi", "answer": "Hello"})
    assert (found.response, found.unread) == ((), ("answer",))


def test_every_record_of_a_row_names_them() -> None:
    row = {"prompt": "Hi", "responses": [{"content": c, "score": ord(c)} for c in "abc"], "notes": "x"}
    format = reader(mps.formats.ranked())
    assert isinstance(format, CountingReader)
    assert format.count(row) == 3
    found = format(row)
    assert isinstance(found, tuple)
    assert [one.unread for one in found] == [("notes",)] * 3


def test_a_filtered_row_teaches_nothing() -> None:
    format = reader(mps.formats.cvalues(types=["hard"]))
    row = {"prompt": "a", "pos_resp": "b", "neg_resp": "c", "pos_type": "x", "neg_type": "y", "tools": [{"name": "f"}]}
    assert format(row) == ()
    found = format({**row, "pos_type": "拒绝&正向建议", "neg_type": "拒绝为主"})
    assert isinstance(found, tuple)
    assert found[0].unread == ()


@given(st.data())
@settings(settings.get_profile("cheap"))
def test_what_a_preset_reads_depends_on_names_and_types_alone(data: st.DataObject) -> None:
    """So that what is learned from one row holds for all rows of its shape, in any order."""
    name, row = data.draw(st.sampled_from(ROWS))
    known = sorted({field for preset in PRESETS.values() for one in preset.patterns for field in one.fields})
    extra = st.sampled_from(["", "x", 0, 1, None, [], raw(U), {"role": "user", "content": "x"}, [1.0]])
    row = {**row, **data.draw(st.dictionaries(st.sampled_from([*known, "notes", "system", "history"]), extra))}
    other = {field: data.draw(st.sampled_from(SAME.get(type(value), [value]))) for field, value in row.items()}
    try:
        entry = mps.formats.auto().decide(row)
        probes = [Probe(row), Probe(other)]
        for probe in probes:
            entry.read(probe)
    except RowError:
        return
    assert probes[0].read & row.keys() == probes[1].read & row.keys(), name


SAME: dict[type, list[Any]] = {str: ["", "x", "\n\nHuman: x"], int: [0, 1], list: [[], raw(U), raw(U, A), [1]]}


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4]), min_size=1, max_size=12), st.randoms())
@settings(settings.get_profile("cheap"))
def test_unread_rows_do_not_depend_on_the_order(kinds: list[int], random: Any) -> None:
    rows = [
        [PAIR, {**PAIR, "a": "x"}, {**PAIR, "a": ""}, {**PAIR, "a": 5}, {"prompt": "Hi", "a": "x"}][k] for k in kinds
    ]
    alone = sorted(unread(row) for row in rows)
    random.shuffle(rows)
    format = reader(resolve_format("auto"))
    assert sorted(format(row).unread for row in rows) == alone  # type: ignore[union-attr]


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.one_of(
            *(
                st.none(),
                st.integers(),
                st.text(max_size=3),
                st.binary(max_size=2),
                st.lists(st.integers(), max_size=2),
            ),
            st.lists(st.text(max_size=2), max_size=2),
            st.dictionaries(st.sampled_from(["id", "x"]), st.text(max_size=2), max_size=2),
        ),
    ),
    st.sampled_from([row for name, row in ROWS if name != "tokenized"]),
    st.sampled_from([None, "image", "videos"]),
)
@settings(settings.get_profile("cheap"))
def test_what_a_row_gives_is_read_reported_or_refused(
    extra: dict[str, Any], row: dict[str, Any], media: str | None
) -> None:
    """Of random further fields, exactly those that hold something are named."""
    whole = {**extra, **row} | ({} if media is None else {media: ["x.png"]})
    if media is not None:
        refusal(Reason.BAD_TYPE, read, whole)
        return
    found = read(whole)
    assert set(found.unread) == {name for name, value in extra.items() if name not in row and something(value)}
    assert set(read(whole, lambda row: dict(row)).unread) == set(found.unread)
    assert set(read(whole, lambda given: {name: given[name] for name in row}).unread) == set(found.unread)


def something(value: Any) -> bool:
    if isinstance(value, dict):
        return something(value.get("x"))
    if isinstance(value, list):
        return any(map(something, value))
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, bytes) and value != b""


# Media.


@pytest.mark.parametrize("name", ["image", "images", "video", "videos", "audio", "audios"])
@pytest.mark.parametrize("value", ["cat.png", ["cat.png"], [{"bytes": b"x", "path": None}], np.zeros((2, 2, 3))])
def test_media_beside_text_are_refused(name: str, value: Any) -> None:
    for row in (PAIR, {"prompt": "Hi"}, {"conversations": raw(U), "chosen": raw(A)[0], "rejected": raw(B)[0]}):
        said = refusal(Reason.BAD_TYPE, read, {**row, name: value})
        assert f"field {name!r}" in said
        assert "Only text is supported" in said
    refusal(Reason.BAD_TYPE, lambda row: read(row, lambda r: {"prompt": r["prompt"]}), {"prompt": "Hi", name: value})
    refusal(Reason.BAD_TYPE, lambda row: read(row, dict), {"prompt": "Hi", name: value})


@pytest.mark.parametrize("value", [None, "", [], {}, "[]", [None], {"bytes": None, "path": None}, False, 3])
def test_empty_media_are_fine(value: Any) -> None:
    assert read({**PAIR, "images": value}).unread == ()


def test_media_that_something_reads_are_accepted() -> None:
    row = {"image": "a picture of a cat", "chosen": "Hello", "rejected": "What"}
    assert read(row, fields={"prompt": "image"}).prompt == (user("a picture of a cat"),)
    found = read(
        row, lambda row: {"prompt": f"See {row['image']}", "chosen": row["chosen"], "rejected": row["rejected"]}
    )
    assert (found.prompt, found.unread) == ((user("See a picture of a cat"),), ())


# Functions of the user.


READ_ALL: list[Callable[[Any], Any]] = [
    dict,
    lambda row: {**row},
    lambda row: row.copy(),
    copy.copy,
    copy.deepcopy,
    lambda row: dict(row.items()),
    lambda row: {name: row[name] for name in row},
    lambda row: row | {},
    lambda row: {} | row,
    lambda row: pickle.loads(pickle.dumps(row)),
    lambda row: (lambda **given: given)(**row),
    lambda row: row,
    lambda row: row.values() and dict(row),
]


@pytest.mark.parametrize("function", READ_ALL)
def test_a_function_that_reads_the_whole_row(function: Callable[[Any], Any]) -> None:
    """The row that it returns then has unread fields of its own."""
    assert read(PAIR, function) == Pair((U,), (A,), (B,))
    assert unread({**PAIR, "notes": "x"}, function) == ("notes",)


READ_NOTES: list[Callable[[Any], Any]] = [
    lambda row: row["notes"],
    lambda row: row.get("notes"),
    lambda row: "notes" in row,
    lambda row: row.pop("notes"),
    lambda row: row.setdefault("notes"),
    lambda row: list(row),
    lambda row: list(row.items()),
    lambda row: "{notes}".format_map(row),
    lambda row: "{notes}".format(**row),
    lambda row: row.__delitem__("notes"),
    lambda row: row == {},
]


@pytest.mark.parametrize("look", READ_NOTES)
def test_a_function_that_looks_at_a_field(look: Callable[[Any], Any]) -> None:
    def function(row: dict[str, Any]) -> dict[str, Any]:
        kept = {name: row[name] for name in PAIR}
        look(row)
        return kept

    assert unread({**PAIR, "notes": "x"}, function) == ()
    assert unread({**PAIR, "notes": "x", "more": "y"}, lambda row: {name: row[name] for name in PAIR}) == (
        "notes",
        "more",
    )


def test_a_function_may_read_other_fields_of_every_row() -> None:
    def function(row: dict[str, Any]) -> dict[str, Any]:
        better, worse = ("a", "b") if row["best"] == "a" else ("b", "c")
        return {"prompt": row["q"], "chosen": row[better], "rejected": row[worse]}

    format = reader(resolve_format(function))
    row = {"q": "x", "a": "1", "b": "2", "c": "3"}
    assert format({**row, "best": "a"}).unread == ("c",)  # type: ignore[union-attr]
    assert format({**row, "best": "b"}).unread == ("a",)  # type: ignore[union-attr]


def test_a_function_gets_a_dict_that_it_may_change() -> None:
    def function(row: Any) -> Any:
        assert isinstance(row, dict)
        row["prompt"] += "!"
        del row["system"]
        return row

    row = {**PAIR, "system": "s"}
    assert read(row, function).prompt == (user("Hi!"),)
    assert row == {**PAIR, "system": "s"}


def test_a_function_may_return_records_and_read_rows_of_its_own_kind() -> None:
    found = read({"q": "Hi", "notes": "x"}, lambda row: Pair((user(row["q"]),), (A,), (B,)))
    assert found == Pair((U,), (A,), (B,), unread=("notes",))
    assert read("Hi", lambda row: {**PAIR, "prompt": row}) == Pair((U,), (A,), (B,))


def test_a_callable_with_count() -> None:
    class Twice:
        def count(self, row: Mapping[str, Any]) -> int:
            return 2

        def __call__(self, row: Mapping[str, Any]) -> list[Any]:
            return [{**PAIR, "prompt": row["q"]}, {**PAIR, "prompt": row["q"], "more": "x"}]

    format = reader(resolve_format(Twice()))
    row = {"q": "Hi", "notes": "x"}
    assert format.count(row) == 2  # type: ignore[attr-defined]
    found = format(row)
    assert isinstance(found, tuple)
    assert [one.unread for one in found] == [("notes",), ("more", "notes")]


class Lazy(Mapping[str, Any]):
    """A mapping that is no dict, with a method of its own."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row

    def __getitem__(self, name: str) -> Any:
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)

    def question(self) -> str:
        return str(self.row["prompt"])


@pytest.mark.parametrize("kind", [Lazy, UserDict, OrderedDict, MappingProxyType])
def test_rows_of_other_mappings(kind: Callable[[dict[str, Any]], Any]) -> None:
    row = kind({**PAIR, "notes": "x"})
    assert read(row) == Pair((U,), (A,), (B,), unread=("notes",))
    assert unread(row, lambda row: {name: row[name] for name in PAIR}) == ("notes",)
    assert unread(row, lambda row: {**row, "notes": ""}) == ()
    renamed = kind({"q": "Hi", "chosen": "Hello", "rejected": "What"})
    assert read(renamed, fields={"prompt": "q"}) == Pair((U,), (A,), (B,))


def test_methods_of_other_mappings() -> None:
    assert read(Lazy(PAIR), lambda row: {**PAIR, "prompt": row.question()}).prompt == (U,)
    refusal(Reason.BAD_TYPE, lambda row: read(row, lambda row: row.no_such_thing), Lazy(PAIR))


# The contract of a format.


def test_it_is_a_format_like_the_inner_one() -> None:
    for name in ("auto", "strings", "cvalues"):
        inner = resolve_format(name)
        assert (reader(inner).name, repr(reader(inner))) == (inner.name, repr(inner))
        assert not hasattr(reader(inner), "count")
    many = reader(mps.formats.nectar())
    assert hasattr(many, "count")
    assert repr(many) == repr(mps.formats.nectar())
    for format in (many, reader(resolve_format("auto"), {"prompt": "q"}, True)):
        again = pickle.loads(pickle.dumps(format))
        assert (repr(again), type(again)) == (repr(format), type(format))
    assert again({"q": "Hi", "chosen": "Hello", "rejected": "What"}) == Pair((U,), (A,), (B,))


def test_the_memory_of_shapes_is_bounded() -> None:
    format = RowReader(resolve_format("auto"))
    for number in range(1500):
        format({"prompt": "Hi", f"extra {number}": 1})
    assert len(format._ways) <= 1024


def test_a_shape_is_read_once_with_a_probe() -> None:
    kinds: list[type] = []
    format = reader(OneRecord("mine", lambda row: kinds.append(type(row)) or Pair((U,), (A,), (B,))))  # type: ignore[func-returns-value]
    for row in (PAIR, PAIR, {**PAIR, "margin": 1}, PAIR):
        format(row)
    assert kinds == [Probe, dict, Probe, dict]


def test_rows_that_are_no_rows() -> None:
    refusal(Reason.BAD_TYPE, read, ["x"])
    said = refusal(Reason.BAD_TYPE, read, [{"prompt": "Hi"}])
    assert "Save one big array as .json" in said
    refusal(Reason.BAD_TYPE, lambda row: read(row, fields={"prompt": "q"}), "x")


# The option fields.


def test_fields_give_standard_names() -> None:
    row = {"question": "Hi", "good": {"text": "Hello", "id": 3}, "answers": [{"text": "What"}]}
    fields = {"prompt": "question", "chosen": "good.text", "rejected": "answers.0.text"}
    assert read(row, fields=fields) == Pair((U,), (A,), (B,))
    assert read({**row, "answers": '[{"text": "What"}]'}, fields=fields) == Pair((U,), (A,), (B,))
    assert read({**row, "answers": np.array([{"text": "What"}], object)}, fields=fields) == Pair((U,), (A,), (B,))
    dotted = {"good.text": "Hello", "question": "Hi", "rejected": "What"}
    assert read(dotted, fields={"prompt": "question", "chosen": "good.text"}) == Pair((U,), (A,), (B,))


def test_a_renamed_field_hides_the_one_that_has_its_name() -> None:
    row = {**PAIR, "good": "Hello", "chosen": "hidden"}
    assert read(row, fields={"chosen": "good"}) == Pair((U,), (A,), (B,), unread=("chosen",))
    assert read(row, fields={"chosen": "rejected", "rejected": "chosen"}).chosen == (B,)
    assert unread(row, fields={"chosen": "rejected", "rejected": "chosen"}) == ("good",)
    function = resolve_format(lambda row: {name: row[name] for name in PAIR})
    assert reader(function, {"chosen": "good"})(row).unread == ("chosen",)  # type: ignore[union-attr]


def test_neighbours_of_a_dotted_path_are_fields_of_their_own() -> None:
    row = {
        "q": "Hi",
        "a": {"b": {"role": "assistant", "text": "Hello", "tools": ["t"]}, "note": "x", "id": "y"},
        "c": "What",
    }
    fields = {"prompt": "q", "chosen": "a.b.text", "rejected": "c"}
    assert sorted(unread(row, fields=fields)) == ["a.b.tools", "a.note"]
    assert sorted(unread({**row, "a": json.dumps(row["a"])}, fields=fields)) == ["a.b.tools", "a.note"]
    assert unread(row, fields={**fields, "tools": "a.b.tools"}) == ("a.note",)
    repeated = {**row, "a": {"b": {"text": "Hello", "prompt": "Hi", "tools": None}}}
    assert unread(repeated, fields=fields) == ()


def test_named_fields_count_as_read() -> None:
    assert unread({**PAIR, "notes": "x"}, fields={"notes": "notes"}) == ()
    assert unread({**PAIR, "notes": "x"}, fields={"input": "notes"}) == ()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("qestion", "takes 'prompt' from 'qestion', but there is no 'qestion'; found fields: answers, good, question"),
        ("good.txt", "from 'good.txt', but there is no 'good.txt'"),
        ("answers.1", "from 'answers.1', but 'answers' has 1 items"),
        ("answers.first", "but 'answers' is list"),
        ("question.text", "but 'question' is str 'Hi'"),
    ],
)
def test_a_path_that_leads_nowhere(path: str, said: str) -> None:
    row = {"question": "Hi", "good": {"text": "Hello"}, "answers": ["What"]}
    assert said in refusal(Reason.MISSING_FIELD, lambda row: read(row, fields={"prompt": path}), row)
    assert "Did you mean 'question'?" in refusal(
        Reason.MISSING_FIELD, lambda row: read(row, fields={"prompt": "qestion"}), row
    )


def test_an_optional_field_may_be_missing_under_its_own_name_too() -> None:
    assert read(PAIR, fields={"system": "sys"}) == Pair((U,), (A,), (B,))
    assert read({**PAIR, "meta": None}, fields={"system": "meta.system"}) == Pair((U,), (A,), (B,))
    assert read({**PAIR, "sys": "s"}, fields={"system": "sys"}).prompt == (system("s"), U)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "expected a mapping"),
        ("prompt=question", "expected a mapping"),
        ([("prompt", "q")], "expected a mapping"),
        ({"prompt": 5}, "expected the names of two fields"),
        ({5: "q"}, "expected the names of two fields"),
        ({"prompt": ""}, "expected the names of two fields"),
        ({"prompt": "a..b"}, "expected the names of two fields"),
        ({"": "q"}, "expected the names of two fields"),
        ({"chozen": "good"}, "Did you mean 'chosen'?"),
    ],
)
def test_fields_are_checked(fields: Any, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        formats_of(None, "auto", fields)
    assert said in str(caught.value)


def test_a_function_may_ask_for_any_name() -> None:
    function = resolve_format(lambda row: {**PAIR, "prompt": row["anything"]})
    assert reader(function, {"anything": "q"})({"q": "Hi"}).prompt == (U,)  # type: ignore[union-attr]


def test_fields_are_part_of_the_text_of_a_format() -> None:
    one, other = {"prompt": "q", "chosen": "g"}, {"chosen": "g", "prompt": "q"}
    texts = [repr(reader(resolve_format("auto"), fields)) for fields in (one, other)]
    assert texts[0] == texts[1] == "auto() with fields {'chosen': 'g', 'prompt': 'q'}"


def test_each_part_of_a_mix_has_its_own() -> None:
    first, second = [{"q": "Hi", "g": "Hello", "b": "What"}], [{"ask": "Hi", "g": "Hello", "b": "What"}]
    mixed = mps.mix([mps.Part(first), mps.Part(second, fields={"prompt": "ask", "chosen": "g", "rejected": "b"})])
    formats = formats_of(mixed, "auto", {"prompt": "q", "chosen": "g", "rejected": "b"})
    assert formats[0](first[0]) == formats[1](second[0]) == Pair((U,), (A,), (B,))


# Every door.


def test_streams_encode_and_inspect_agree(tmp_path: Any) -> None:
    rows = [{"q": f"{n}?", "good": "a" * n, "bad": "b", "notes": "x" if n % 3 else ""} for n in range(1, 13)]
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    options: dict[str, Any] = {"task": mps.DPO(64), "tokenizer": "bytes", "fields": fields, "template": None}
    sources: list[Any] = [rows, lambda: iter(rows), mps.mix([rows])]
    for source in sources:
        for workers in (0, 2):
            stream = mps.stream(source, **options, batching=mps.Pad(4), workers=workers, window=3)
            list(stream.batches())
            assert dict(stream.report.unread) == {"notes": 8}
            stream.data.close() if hasattr(stream.data, "close") else None
    assert mps.encode(rows[0], **options).unread == ("notes",)


def test_presets_keep_their_records() -> None:
    for name, row in ROWS:
        preset = PRESETS[name]
        plain = preset.factory(**preset.auto_options)
        assert isinstance(plain, (OneRecord, ManyRecords))
        format = reader(plain)
        assert format(row) == format(row) == plain(row)


def test_what_stands_beside_a_path_is_unread() -> None:
    fields = {"prompt": "q", "chosen": "a.0.text", "rejected": "a.1.text"}
    row = {"q": "Hi", "a": [{"text": "Hello", "score": 1}, {"text": "What", "why": "rude", "id": "x"}]}
    assert unread(row, fields=fields) == ("a.1.why",)
    assert unread({**row, "a": [*row["a"], {"text": "Third"}]}, fields=fields) == ("a.1.why", "a.2")
    assert unread({**row, "a": [*row["a"][:1], {"text": "What", "why": " "}]}, fields=fields) == ()
    assert unread({**row, "a": json.dumps(row["a"])}, fields=fields) == ("a.1.why",)
    assert unread(row, lambda one: {name: one[name] for name in fields}, fields=fields) == ("a.1.why",)


def test_a_field_that_is_also_taken_as_a_whole_is_read() -> None:
    row = {"q": {"text": "Hi", "more": "x"}, "chosen": "Hello", "rejected": "What"}
    assert unread(row, lambda one: {**PAIR, "x": ""}, fields={"prompt": "q.text", "all": "q"}) == ()


def test_the_address_of_a_picture_is_not_harmless() -> None:
    assert unread({**PAIR, "image_url": "https://example.org/cat.png"}) == ("image_url",)
    assert unread({**PAIR, "page_url": "https://example.org"}) == ()


def test_values_too_deep_to_read() -> None:
    deep: Any = "text"
    for _ in range(sys.getrecursionlimit()):  # two levels each; other libraries raise the limit
        deep = {"a": [deep]}
    for format in ("auto", lambda row: row):
        assert "too deep" in refusal(Reason.BAD_TYPE, lambda row, f=format: read(row, f), {**PAIR, "notes": deep})
    text = "[" * 100_000
    assert "field 'tools' is str" in refusal(Reason.BAD_TYPE, read, {**PAIR, "tools": text})
    called = {"prompt": "Hi", "chosen": [{"from": "function_call", "value": text}], "rejected": "What"}
    assert "expected JSON text of a call" in refusal(Reason.BAD_TYPE, read, called)
