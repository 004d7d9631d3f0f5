"""A batch of conversations as arrays: the same tokens as one by one, whatever their layouts are and however many."""

from __future__ import annotations

import functools
import itertools
import operator
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ms_prefstream.encode import columns
from ms_prefstream.encode import encoder as encoder_module
from ms_prefstream.encode.backends.base import FlatIds, Place, TextEncoder
from ms_prefstream.encode.encoder import ConversationEncoder, build_encoder
from ms_prefstream.encode.encodings import Encoded
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Messages, Pair
from ms_prefstream.sample import Ids, Note
from tests.encode.chat_templates import FAMILIES
from tests.encode.field import encoder_of
from tests.encode.oracle import assistant, system, user
from tests.encode.test_templates import CONVERSATIONS
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
    import dataclasses

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
