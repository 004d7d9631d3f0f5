"""A batch of conversations as arrays: the same tokens as one by one, whatever their layouts are and however many."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import pathlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ms_prefstream.encode import columns
from ms_prefstream.encode import encoder as encoder_module
from ms_prefstream.encode.backends.base import FlatIds, Place, TextEncoder
from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.encodings import Encoded
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Messages, Pair
from ms_prefstream.sample import Ids, Note
from tests.encode.chat_templates import FAMILIES
from tests.encode.field import encoder_of
from tests.encode.oracle import assistant, system, user
from tests.encode.test_outcomes import QWEN3
from tests.encode.test_templates import CONVERSATIONS
from tests.encode.test_tool_families import FAMILIES as TOOLS
from tests.fixtures_tokenizers import cached_tokenizer

SLACK = settings(
    settings.get_profile("costly"), derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
boundaries = pytest.mark.parametrize("boundary", ["joint", "inference"])
Records = Sequence[Pair | Completion]


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two conversations are laid out by column."""
    for module in (columns, encoder_module):
        monkeypatch.setattr(module, "ENOUGH", 2)


def assert_block(encoder: ConversationEncoder, records: Records) -> list[tuple[Encoded, ...] | RowError]:
    """The block of a batch holds the conversations that the batch gives one by one, as if each came alone; these."""
    encoder.encode([*records] * 4)  # its layouts are learned and proven then
    encodings = encoder.encode(records)
    block, prompts = encodings.block()
    assert len(block) == len(prompts) == len(records)
    found = list(encodings)
    for row, one in enumerate(found):
        (alone,) = encoder.encode([records[row]])
        assert seen(one) == seen(alone)
        sides: tuple[Encoded, ...] = () if isinstance(one, RowError) else one
        assert block.errors.get(row) is (one if isinstance(one, RowError) else None)
        assert prompts[row].tolist() == [*[side.prompt for side in sides], -1, -1][:2]
        assert block.lengths[row].tolist() == [*[side.length for side in sides], 0, 0][:2]
        for at, side in enumerate(sides):
            assert block.arrays(at)[row].tolist() == side.ids.tolist()
            assert block.spans_of(row, at) == side.spans
        notes = functools.reduce(operator.or_, map(notes_of, sides), Note.NONE)
        assert block.notes[row] == notes
        unread = tuple(dict.fromkeys(itertools.chain(*[side.laid.unread for side in sides])))
        assert block.unread.get(row, ()) == unread
    return found


def seen(found: tuple[Encoded, ...] | RowError) -> list[Any]:
    """Everything that a batch or a report gets of a record."""
    if isinstance(found, RowError):
        return [found.reason, found.problem]
    return [
        (
            side.ids.tolist(),
            side.spans,
            side.prompt,
            side.length,
            notes_of(side),
            side.laid.unread,
            tuple(side.laid.contents),
        )
        for side in found
    ]


def notes_of(side: Encoded) -> Note:
    rewritten = Note.REWRITTEN if side.laid.rewritten else Note.NONE
    return side.laid.notes | rewritten | (Note.BOUNDARY_DIFFERS if side.differs else Note.NONE)


def rows_of(prompt: Messages, response: Messages) -> list[Pair | Completion]:
    """A pair in both directions, the response to the prompt, and the prompt alone."""
    other = (assistant("Or not."),)
    return [
        Pair(prompt, response, other),
        Completion(prompt, response),
        Pair(prompt, other, response),
        Completion(prompt, ()),
    ]


class TestFamilies:
    @pytest.mark.slow
    @boundaries
    @pytest.mark.parametrize("family", FAMILIES)
    def test_layouts_with_few_and_with_many_rows(self, field: pathlib.Path, family: str, boundary: str) -> None:
        _, encoder = encoder_of(field / family, boundary=boundary)
        rows = [rows_of(*conversation) for conversation in CONVERSATIONS.values()]
        for own in rows:
            for count in (1, 3, 5, 9):
                assert_block(encoder, (own * 3)[:count])
        everything = [*itertools.chain(*rows), *itertools.chain(*rows[::-1])]
        found = assert_block(encoder, everything)
        assert sum(not isinstance(one, RowError) for one in found) > len(found) // 2

    @boundaries
    @pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
    @pytest.mark.parametrize("kind", ["bytes", "chatml_dir", "gpt2_dir", "llama2_dir", "sentencepiece_model"])
    def test_without_control_tokens(
        self, kind: str, template: str | None, boundary: str, request: pytest.FixtureRequest
    ) -> None:
        """The answer follows its prompt in one text; SentencePiece does not keep the white space at its end."""
        tokenizer = cached_tokenizer(kind if kind == "bytes" else str(request.getfixturevalue(kind)))
        encoder = build_encoder(tokenizer, template=template, boundary=boundary)
        questions = ["Hi", "The quick br", "", " ", "一", "e", "x\n"]
        answers = ["own fox", "Yes", "\u0301", " a", "\nb", "二"]
        rows: list[Pair | Completion] = []
        for question, answer in itertools.product(questions, answers):
            rows += rows_of((user(question),), (assistant(answer),))
        found = assert_block(encoder, rows)
        assert any(not isinstance(one, RowError) for one in found)

    @pytest.mark.slow
    @SLACK
    @given(st.data())
    @boundaries
    @pytest.mark.parametrize("family", ["chatml", "llama3", "vicuna", "alpaca", "deepseek", "qwen3"])
    def test_answers_of_every_kind(self, field: pathlib.Path, family: str, boundary: str, data: st.DataObject) -> None:
        _, encoder = encoder_of(field / family, boundary=boundary)
        words = [
            "a",
            " b",
            "<|im_end|>",
            "\n",
            "\n\n",
            "\u0301",
            "е́",
            "你",
            "👩‍👩‍👧",
            "<think>\n",
            "</think>\n\n",
            "own",
        ]
        texts = st.lists(st.sampled_from(words), max_size=4).map("".join)
        turns = st.tuples(texts, texts).map(lambda both: (user(both[0]), assistant(both[1])))
        asked = st.tuples(st.lists(turns, max_size=1), texts)
        prompts = asked.map(lambda drawn: (*itertools.chain(*drawn[0]), user(drawn[1])))
        replies = texts.map(lambda text: (assistant(text),))
        records: st.SearchStrategy[Pair | Completion] = st.one_of(
            st.builds(Pair, prompts, replies, replies), st.builds(Completion, prompts, replies)
        )
        assert_block(encoder, data.draw(st.lists(records, max_size=10)))


CALLED = {**{name: (name, template) for name, template in TOOLS.items()}, "qwen3": ("qwen3", QWEN3)}
CALLED["its own"] = ("chatml", "auto")
CALLED["numbers"] = (
    "chatml",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.index }}{{ (c.function or c).name }}{{ (c.function or c).arguments | tojson(ensure_ascii=true) }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{{ (tools or []) | tojson }}",
)
WORDS = ["a", " b\n", "", " ", "<|im_end|>", "</tool_call>", "<tool_call", ">", "\u0301e", '"', "{%s}", "你"]
words = st.lists(st.sampled_from(WORDS), max_size=2).map("".join)
values = st.one_of(
    words,
    st.sampled_from(
        [1, 1.0, True, None, -0.0, float("nan"), [], {}, [1], ["<|im_end|>"], {"a": {"<|im_end|>": 1}}, b"x"]
    ),
)
members = st.dictionaries(st.sampled_from(["a", "b", "<|im_end|>"]), values, max_size=2)
json_texts = st.sampled_from(
    ["", " ", "{}", '{"a": 1}', '{"a": 1, "a": 2}', '["b"]', "no", '{"a": "\\u003c|im_end|>"}']
)
arguments = st.one_of(members, members, json_texts, st.none(), st.sampled_from([[], [1], 5]))
IDS = ["call12345", "call54321", "<|im_end|>"]


@st.composite
def calls(draw: Any) -> Any:
    """The calls of a turn, in the forms of data sets."""
    found = []
    for _ in range(draw(st.integers(0, 2))):
        call: Any = {"name": draw(st.sampled_from(["f", "f", "g", "<|im_end|>", " "])), "arguments": draw(arguments)}
        if draw(st.booleans()):
            call = {"type": "function", "function": call}
        if draw(st.booleans()):
            call = {"id": draw(st.sampled_from(IDS)), **call, "index": draw(st.sampled_from([0, 1, True, 1.5]))}
        found.append(call)
    return found


@st.composite
def called_records(draw: Any) -> Pair | Completion:
    """A record with calls, their results, schemas, further keys, or none of these, on either side."""

    def answers(**extra: Any) -> Message:
        extra = {key: value for key, value in extra.items() if value != []}
        if draw(st.integers(0, 4)) == 0:
            extra["reasoning_content"] = draw(words)
        return Message("assistant", draw(words), extra or None)

    prompt = [system(draw(words))] if draw(st.booleans()) else []
    prompt.append(user(draw(words)))
    if draw(st.booleans()):
        prompt += [answers(tool_calls=draw(calls())), Message("tool", draw(words)), user("q")][
            : draw(st.integers(2, 3))
        ]
    sides = []
    for _ in range(2):
        side = [answers(tool_calls=draw(calls()))]
        if draw(st.integers(0, 3)) == 0:
            side += [Message("tool", draw(words)), answers()]
        sides.append(tuple(side))
    schema = {"type": "function", "function": {"name": "f", "parameters": draw(members)}}
    tools = draw(st.sampled_from([None, (), (schema,), (schema, schema), ('{"name": "f"}',)]))
    if draw(st.integers(0, 3)) == 0:
        return Completion(tuple(prompt), sides[0] if draw(st.booleans()) else (), tools)
    if draw(st.integers(0, 3)) == 0:
        sides[1] = tuple(sides[0])  # the same calls
        if draw(st.booleans()):
            sides[1] = tuple([message._replace(content=message.content + "!") for message in sides[0]])
    return Pair(tuple(prompt), sides[0], sides[1], tools=tools)


LEAVES = [*WORDS, "f", "g", 0, 1, 1.0, 1.5, True, None, [], {"a": 1}, '{"a": 1}']


def varied(value: Any, chance: random.Random) -> Any:
    """The same record, or a part of it, with some other values: often of the same shape, but not always."""
    if isinstance(value, Message):
        extra = varied(value.extra, chance) if isinstance(value.extra, dict) else None
        return Message(value.role, chance.choice(WORDS) if chance.random() < 0.4 else value.content, extra)
    if isinstance(value, (Pair, Completion)):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value)(**{k: varied(it, chance) if isinstance(it, tuple) else it for k, it in found.items()})
    if isinstance(value, dict):
        return {key: item if key == "type" else varied(item, chance) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([varied(item, chance) for item in value])
    return chance.choice(LEAVES) if chance.random() < 0.2 else value


def of_one_shape(number: int) -> Pair:
    """A record of a shape that all numbers have, with values of its own."""
    asked = Message("assistant", "", {"tool_calls": [called(f"f{number}", {"n": number, "text": "t" * (number % 3)})]})
    prompt = (system("Be brief."), user(f"q {number}"), asked, Message("tool", f"r {number}"))
    schema = {"type": "function", "function": {"name": f"f{number % 2}", "description": "d", "parameters": {"n": {}}}}
    right = Message("assistant", "", {"tool_calls": [called("g", {"right": number})]})
    return Pair(prompt, (right,), (assistant(f"no {number}"),), tools=(schema,))


def called(name: str, arguments: Any) -> Any:
    return {"id": "call12345", "type": "function", "function": {"name": name, "arguments": arguments}}


def called_encoder(field: pathlib.Path, name: str, boundary: str = "joint", **options: Any) -> ConversationEncoder:
    family, template = CALLED[name]
    return encoder_of(field / family, template=template, boundary=boundary, **options)[1]


WRITING = "{% for m in messages %}<|im_start|>{{ m.role }}\nWRITES<|im_end|>{% endfor %}"
WRITING += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


class TestShapes:
    """Records with calls, schemas and further keys by column: as each of them alone."""

    @pytest.mark.slow
    @SLACK
    @given(st.data())
    @pytest.mark.parametrize(("name", "boundary"), [*[(name, "joint") for name in CALLED], ("qwen3", "inference")])
    def test_values_of_every_kind(self, field: pathlib.Path, name: str, boundary: str, data: st.DataObject) -> None:
        encoder = called_encoder(field, name, boundary)
        drawn = data.draw(st.lists(called_records(), min_size=1, max_size=2))
        chance = random.Random(data.draw(st.integers(0, 2**32)))
        assert_block(encoder, [*drawn, *[varied(one, chance) for one in drawn for _ in range(4)]])

    @pytest.mark.parametrize("name", ["numbers", "qwen3", "llama3"])
    def test_records_that_differ_in_one_thing(self, field: pathlib.Path, name: str) -> None:
        """Each of them has a shape of its own, or the same one with another value."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "index": 0}
        found: list[Any] = [[call], [call, call], [], call, None]
        found += [[{**call, "index": index}] for index in (1, True, 1.0, -0.0, None, "x", " ", [0], {"a": 0})]
        found += [[dict(reversed(call.items()))], [call["function"]], [{**call, "function": "f"}]]
        for arguments in ({}, {"b": 1}, "{}", '{"a": 2}', "no", " ", [1], None, 5, {"a": {"<|im_end|>": "<|im_end|>"}}):
            found.append([{**call, "function": {"name": "f", "arguments": arguments}}])
        found += [[{**call, "function": {"name": value, "arguments": {"a": 1}}}] for value in ("g", " ", "<|im_end|>")]
        rows: list[Pair | Completion] = []
        for calls in found:
            answer = Message("assistant", "a", {"tool_calls": calls} if calls is not None else None)
            rows += rows_of((user("q"),), (answer,))[:2]
        assert_block(called_encoder(field, name), rows * 2)

    @pytest.mark.parametrize("content", ["error", "allow"])
    @SLACK
    @given(st.data())
    def test_where_control_tokens_are_refused_or_allowed(
        self, field: pathlib.Path, content: str, data: st.DataObject
    ) -> None:
        encoder = called_encoder(field, "its own", special_tokens_in_content=content)
        assert_block(encoder, data.draw(st.lists(called_records(), min_size=2, max_size=6)))

    def test_keys_that_a_template_does_not_write_are_named_for_each_row(self, field: pathlib.Path) -> None:
        rows = [
            Pair((user(f"q {n}"),), (Message("assistant", f"a {n}", {"thought": f"t {n}"}),), (assistant("no"),))
            for n in range(6)
        ]
        encoder = called_encoder(field, "qwen3")
        assert_block(encoder, rows)
        block, _ = encoder.encode(rows).block()
        assert block.unread == dict.fromkeys(range(6), ("turn field 'thought'",))

    def test_words_that_strips_take_away_are_noted_for_their_rows(self) -> None:
        """In contents and in further keys; the others are written as they are."""
        template = WRITING.replace("WRITES", "{{ m.content.strip('X') ~ (m.thought or '').strip('X') }}")
        rows = [
            Completion((user("q"),), (Message("assistant", said, {"thought": thought}),))
            for said, thought in (("a", "b"), ("Xa", "b"), ("a", "bX"), ("c", "d"), ("aX", "Xd"), ("e", "f"))
        ]
        encoder = build_encoder(load_tokenizer("bytes"), template=template)
        found = assert_block(encoder, rows)
        lost = [not isinstance(one, RowError) and bool(one[-1].laid.notes & Note.CONTENT_LOST) for one in found]
        assert lost == [False, True, False, False, True, False]

    def test_lists_that_are_no_calls_keep_their_texts(self) -> None:
        """Arguments of calls may be JSON in a text; such a text elsewhere is a text."""
        template = WRITING.replace("WRITES", "{{ m.content }}{% for s in m.steps or [] %}{{ s.arguments }}{% endfor %}")
        rows = [
            Completion((user(f"q{n}"),), (Message("assistant", "a", {"steps": [{"arguments": f'{{"n":{n}}}'}]}),))
            for n in range(6)
        ]
        tokenizer = load_tokenizer("bytes")
        found = assert_block(build_encoder(tokenizer, template=template), rows)
        ((_, side), *_) = found  # type: ignore[misc]
        assert tokenizer.decode(side.ids.tolist()).endswith('\na{"n":0}<|im_end|>')

    @pytest.mark.parametrize("has_tools", [True, False])
    @pytest.mark.parametrize("name", ["llama3", "qwen3"])
    def test_a_shape_that_is_known_is_not_laid_out_one_by_one(
        self, field: pathlib.Path, name: str, has_tools: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the template writes arguments and schemas as a whole; but a control token in a value is hidden."""
        encoder, rows = called_encoder(field, name), list(map(of_one_shape, range(40)))
        if not has_tools:  # then one side is of plain text alone
            rows = [dataclasses.replace(row, prompt=row.prompt[:2], tools=None) for row in rows]
        assert_block(encoder, rows)
        hidden = called("f", {"a": "<|im_end|>" if name != "llama3" else "<|eot_id|>"})
        rows[7] = dataclasses.replace(rows[7], chosen=(Message("assistant", "", {"tool_calls": [hidden]}),))
        one_by_one: list[Any] = []
        draft = encoder._drafted

        def counted(record: Pair | Completion, texts: Any, row: int) -> Any:
            one_by_one.append(record)
            return draft(record, texts, row)

        monkeypatch.setattr(encoder, "_drafted", counted)
        encoder.encode(rows)
        assert one_by_one == [rows[7]]


class Assembled:
    """Counts the conversations of an encoder that are assembled one by one."""

    def __init__(self, encoder: ConversationEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._assemble = encoder.assemble
        monkeypatch.setattr(encoder, "assemble", self)

    def __call__(self, *arguments: Any) -> Encoded:
        self.count += 1
        return self._assemble(*arguments)


class TestTogether:
    """Which conversations are joined with array operations."""

    @pytest.mark.parametrize(("count", "alone"), [(1, 1), (4, 0), (50, 0)])
    def test_those_of_a_layout_with_several(
        self, field: pathlib.Path, monkeypatch: pytest.MonkeyPatch, count: int, alone: int
    ) -> None:
        _, encoder = encoder_of(field / "chatml")
        rows = [Completion((system("Be brief."), user(f"Question {n}?")), ()) for n in range(count)]
        assert_block(encoder, rows)  # the layout is learned
        assembled = Assembled(encoder, monkeypatch)
        encoder.encode(rows).block()
        assert assembled.count == alone

    def test_records_that_are_refused_among_others(self, field: pathlib.Path) -> None:
        _, encoder = encoder_of(field / "chatml")
        good = Pair((user("q"),), (assistant("a"),), (assistant("b"),))
        refused = [
            Pair((user("q"),), (assistant("a"),), (assistant("a"),)),
            Pair((user("q"),), (assistant("a"),), (assistant(" \n"),)),
            Pair((user("q"),), (user("a"),), (user("b"),)),
            Completion((user("q"),), (assistant(""),)),
        ]
        found = assert_block(encoder, [row for bad in refused for row in (good, bad, bad, good)])
        assert [isinstance(one, RowError) for one in found] == [False, True, True, False] * len(refused)

    @pytest.mark.parametrize(("boundary", "alone"), [("joint", 1), ("inference", 20)])
    def test_but_an_answer_that_changes_its_head_is_assembled_alone(
        self, field: pathlib.Path, monkeypatch: pytest.MonkeyPatch, boundary: str, alone: int
    ) -> None:
        """With the inference boundary, every answer has two texts."""
        tokenizer, encoder = encoder_of(field / "chatml", boundary=boundary)
        head = tokenizer.encoder.encode(["assistant\n"])[0].tolist()
        texts = [f"Answer {n}" for n in range(19)] + ["\n\nAnswer"]
        changes = [tokenizer.encoder.encode(["assistant\n" + text])[0].tolist()[: len(head)] != head for text in texts]
        assert changes == [False] * 19 + [True]
        rows = [Completion((user("Hi"),), (assistant(text),)) for text in texts]
        found = assert_block(encoder, rows)
        assert [one[1].differs for one in found if not isinstance(one, RowError)] == changes
        assembled = Assembled(encoder, monkeypatch)
        block, _ = encoder.encode(rows).block()
        assert assembled.count == alone
        assert (block.notes == [Note.BOUNDARY_DIFFERS if changed else 0 for changed in changes]).all()


class Nothing:
    """A text encoder without a token for some answers."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> Sequence[Ids]:
        found = self._encoder.encode(texts, place)
        return [ids[: 0 if "nothing" in text else None] for text, ids in zip(texts, found, strict=True)]


def test_answers_without_any_token() -> None:
    tokenizer = load_tokenizer("bytes")
    tokenizer = dataclasses.replace(tokenizer, encoder=Nothing(tokenizer.encoder))  # type: ignore[arg-type]
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    encoder = build_encoder(tokenizer, template=template)
    for texts in (["nothing"] * 6, ["nothing", "some"] * 6):
        found = assert_block(encoder, [Completion((user("nothing"),), (assistant(text),)) for text in texts])
        lengths = [one[1].length for one in found if not isinstance(one, RowError)]
        assert lengths == [4 if text == "nothing" else 8 for text in texts]


arrays = st.lists(st.lists(st.integers(0, 9), max_size=4).map(lambda ids: np.array(ids, np.int32)), max_size=8)


def listed(flat: Sequence[Ids]) -> list[list[int]]:
    return [ids.tolist() for ids in flat]


@given(arrays, st.data())
def test_ids_of_some_texts_are_replaced(given_: list[Ids], data: st.DataObject) -> None:
    flat = FlatIds.of(given_)
    assert FlatIds.of(flat) is flat
    assert len(flat) == len(given_)
    assert flat.ids.dtype == np.int32
    expected = listed(given_)
    for _ in range(2):
        places = data.draw(st.lists(st.sampled_from(range(len(given_))), unique=True)) if given_ else []
        new = [np.array(data.draw(st.lists(st.integers(10, 19), max_size=4)), np.int32) for _ in places]
        before = listed(flat)
        replaced = flat.replaced(places, FlatIds.of(new) if data.draw(st.booleans()) else new)
        assert listed(flat) == before
        for place, ids in zip(places, new, strict=True):
            expected[place] = ids.tolist()
        assert listed(replaced) == expected
        assert replaced.ids.dtype == np.int32
        flat = replaced


TURNS = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("response", [" ", "j"])
def test_the_prompt_is_judged_before_the_response(response: str) -> None:
    """A row with two defects has the reason of the first: a malformed row must not pass as one that is dropped."""
    encoder = build_encoder(load_tokenizer("bytes"), template=TURNS)
    prompt = (user("q"), Message("tool", "t"), user("q"))
    (found,) = encoder.encode([Completion(prompt, (assistant(response),))])
    assert isinstance(found, RowError)
    assert found.reason is Reason.TEMPLATE_REFUSED


def test_the_chosen_side_is_judged_before_the_rejected_one() -> None:
    encoder = build_encoder(load_tokenizer("bytes"), template=TURNS)
    broken = (Message("system", "half \ud83d of a pair"), user("q"))
    (found,) = encoder.encode([Pair(broken, (assistant("a"),), (assistant("b"), Message("tool", "t")))])
    assert isinstance(found, RowError)
    assert found.reason is Reason.BAD_TYPE
