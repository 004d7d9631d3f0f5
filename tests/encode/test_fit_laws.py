"""Laws of truncation, for every shape of template and for rows that came as ids."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ms_prefstream.encode.cut_points import EncodedCutMap
from ms_prefstream.encode.layout import merged
from ms_prefstream.encode.truncate import Budget, Flat, Uncut, fit, token_cut_map
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Messages, Pair
from ms_prefstream.sample import Block, Sequence
from tests.encode.field import encode_pair, encoder_of
from tests.encode.oracle import assistant, system, user

SLACK = settings(
    settings.get_profile("costly"), derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = [
    "bread",
    " tea",
    "你好",
    "天气",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "\n",
    " ",
    "a",
    "The quick brown fox",
    "1234",
    "ç",
    "\n\n",
    "ß",
]

# family -> (what must stay in front of a cut prompt, what must stay at its end); {s} is the system message
FRAMES = {
    "chatml": ("<|im_start|>system\n{s}<|im_end|>\n", "<|im_start|>assistant\n"),
    "qwen2.5": ("<|im_start|>system\n{s}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{s}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama2": ("<s>[INST] <<SYS>>\n{s}\n<</SYS>>\n\n", " [/INST]"),
    "vicuna": ("A chat.", " ASSISTANT:"),
    "alpaca": ("", "### Response:\n"),
    "deepseek": ("<｜begin▁of▁sentence｜>{s}", "<｜Assistant｜>"),
    "no prompt": ("<|im_start|>system\n{s}<|im_end|>\n", "<|im_start|>assistant\n"),
}  # fmt: skip

texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=25).map("".join)
answers = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map("".join).filter(str.strip)


@st.composite
def pairs(draw: st.DrawFn, turns: int = 3, with_system: bool = True) -> Pair:
    prompt: list[Any] = [system(draw(answers).strip())] if with_system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, turns - 1))):
        prompt += [user(draw(texts)), assistant(draw(answers))]
    prompt.append(user(draw(texts)))
    chosen, rejected = draw(answers), draw(answers)
    assume(chosen.strip() != rejected.strip())
    return Pair(tuple(prompt), (assistant(chosen),), (assistant(rejected),))


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    length = draw(st.integers(4, 150))
    limit = draw(st.none() | st.integers(1, length - 1))
    truncation = draw(st.sampled_from(["prompt_left", "response_right", "drop"]))
    return Budget(max_length=length, max_prompt_length=limit, truncation=truncation, reserve=draw(st.integers(0, 1)))


Sides: TypeAlias = tuple[tuple[int, ...], ...]
sides_of_a_task = st.sampled_from([((0, 1),), ((0,), (1,))])  # both sides of a pair at once; a prompt, then the whole


def check(flats: list[Flat], budget: Budget, floors: list[int]) -> list[Any] | None:
    """What holds whatever the row is made of; the sequences, or None if the row was dropped with a good reason."""
    fits = all(len(f.ids) <= budget.room and f.prompt <= budget.prompt_room for f in flats)
    try:
        sequences = fit(flats, budget)
    except RowError as error:
        check_reason(error.reason, fits, budget, floors)
        return None
    assert fits or budget.truncation != "drop"
    for flat, sequence, floor in zip(flats, sequences, floors, strict=True):
        ids, spans, truncated, question_cut = sequence
        assert len(ids) <= budget.room
        prompt = spans[0][0]
        assert truncated == (prompt < flat.prompt or _tokens(spans) < _tokens(flat.spans))
        assert question_cut <= truncated
        if budget.truncation == "prompt_left":
            assert question_cut == (floor == prompt < flat.prompt)
        assert prompt <= budget.prompt_room
        assert _tokens(spans) >= 1
        response = flat.ids[flat.prompt :]
        np.testing.assert_array_equal(ids[prompt:], response[: len(ids) - prompt])
        if fits:
            assert not truncated
            assert spans == flat.spans
        if budget.truncation == "response_right" and flat.prompt <= budget.prompt_room:
            np.testing.assert_array_equal(ids[:prompt], flat.ids[: flat.prompt])
        if len(ids) - prompt < len(response):  # the response was cut, which is the last resort
            assert spans[-1][1] == len(ids) or flat.spans[-1][1] < len(flat.ids)
            assert budget.truncation != "prompt_left" or prompt <= floor
        else:
            assert [b - a for a, b in spans] == [b - a for a, b in flat.spans]
    return list(sequences)


def check_reason(reason: Reason, fits: bool, budget: Budget, floors: list[int]) -> None:
    """A row is only given up where it must be."""
    assert not fits
    if budget.truncation == "drop":
        assert reason is Reason.TOO_LONG
    elif reason is Reason.TOO_LONG:
        assert any(floor > budget.prompt_room or floor >= budget.room for floor in floors)
    else:
        assert reason is Reason.NO_RESPONSE_TOKENS


class TestTemplates:
    @SLACK
    @given(pair=pairs(), budget=budgets())
    @pytest.mark.parametrize("family", FRAMES)
    def test_laws(self, field: pathlib.Path, family: str, pair: Pair, budget: Budget) -> None:
        tokenizer, encoder = encoder_of(field / family)
        sides = encode_pair(encoder, pair)
        flats = [Flat(s.ids, s.prompt, s.spans, functools.partial(EncodedCutMap, encoder, s)) for s in sides]
        sequences = check(flats, budget, [EncodedCutMap(encoder, side).least for side in sides])
        if sequences is None:
            return
        shared = []
        for sequence, flat in zip(sequences, flats, strict=True):
            begin, end = sequence.spans[0][0], sequence.spans[-1][1]
            prompt = tokenizer.decode(sequence.ids[:begin].tolist())
            assert "\ufffd" not in tokenizer.decode(sequence.ids.tolist())
            whole = tokenizer.decode(flat.ids[: flat.prompt].tolist())
            head, tail = frame(family, pair.prompt)
            if family != "alpaca":  # has no control tokens: see below
                assert prompt.startswith(head)
            assert whole.startswith(head)
            # A token that straddles the border takes a bit of the header with it to the response.
            assert prompt.endswith(tail) or sides[0].differs or sides[1].differs or family == "llama2"
            response_cut = len(sequence.ids) - begin < len(flat.ids) - flat.prompt
            closing = sequence.ids[end - 1] in tokenizer.special.values()
            assert closing != (response_cut and end < begin + flat.spans[-1][1] - flat.prompt) or family == "alpaca"
            shared.append(prompt)
        common = min(map(len, shared))
        assert shared[0][:common] == shared[1][:common]
        if not sides[0].differs and not sides[1].differs:
            assert shared[0] == shared[1]

    @SLACK
    @given(pair=pairs(with_system=False), budget=budgets())
    def test_whole_turns_go_first(self, field: pathlib.Path, pair: Pair, budget: Budget) -> None:
        """What is left of the prompt is its end, from the beginning of a turn or with one turn's text shortened."""
        tokenizer, encoder = encoder_of(field / "chatml")
        sides = encode_pair(encoder, pair)
        flats = [Flat(s.ids, s.prompt, s.spans, functools.partial(EncodedCutMap, encoder, s)) for s in sides]
        try:
            sequences = fit(flats, budget)
        except RowError:
            return
        for sequence in sequences:
            prompt = tokenizer.decode(sequence.ids[: sequence.spans[0][0]].tolist())
            turns = prompt.split("<|im_start|>")
            assert turns[0] == ""
            given = [f"{m.role}\n{m.content}<|im_end|>\n" for m in pair.prompt]
            kept = turns[1:-1]
            if kept:
                assert len(kept) % 2 == 1
                assert kept[1:] == [_nfc(text) for text in given[len(given) - len(kept) + 1 :]]
                first = _nfc(given[len(given) - len(kept)])
                assert kept[0].startswith("user\n")
                assert first.endswith(kept[0][len("user\n") :])
                assert kept[0] != "user\n<|im_end|>\n" or kept[0] == first  # no empty shell of a turn is left
                if len(kept) > 1:
                    assert kept[0] == first  # text is cut only when no whole turn is left to go


class TestPlain:
    @SLACK
    @given(pair=pairs(turns=1, with_system=False), budget=budgets())
    @pytest.mark.parametrize("family", ["chatml", "llama2"])
    def test_laws(self, field: pathlib.Path, family: str, pair: Pair, budget: Budget) -> None:
        tokenizer, encoder = encoder_of(field / family, template=None)
        sides = encode_pair(encoder, pair)
        flats = [Flat(s.ids, s.prompt, s.spans, functools.partial(EncodedCutMap, encoder, s)) for s in sides]
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        if any(not flat.prompt for flat in flats):
            return
        sequences = check(flats, budget, [len(bos)] * 2)
        if sequences is None:
            return
        tails = []
        for sequence, flat in zip(sequences, flats, strict=True):
            begin, end = sequence.spans[0][0], sequence.spans[-1][1]
            assert sequence.ids[: len(bos)].tolist() == bos
            text = tokenizer.decode(sequence.ids[len(bos) :].tolist())
            assert "\ufffd" not in text
            assert (sequence.ids[end - 1] == tokenizer.eos_id) == (
                len(sequence.ids) - begin == len(flat.ids) - flat.prompt
            )
            tails.append(len(tokenizer.decode(flat.ids[len(bos) :].tolist())) - len(text))
        if all(len(s.ids) - s.spans[0][0] == len(f.ids) - f.prompt for s, f in zip(sequences, flats, strict=True)):
            assert tails[0] == tails[1]  # the same characters are gone on both sides

    @pytest.mark.parametrize("swap", [False, True])
    @pytest.mark.parametrize("room", range(2, 14))
    def test_a_place_that_only_one_side_has(self, field: pathlib.Path, room: int, swap: bool) -> None:
        """ "br" + "own" makes a token over the border, "br" + "ight" does not: the cut is where both sides have one."""
        tokenizer, encoder = encoder_of(field / "chatml", template=None)
        responses = ["own fox", "ight fox"][:: -1 if swap else 1]
        pair = Pair((user("The quick br"),), (assistant(responses[0]),), (assistant(responses[1]),))
        sides = encode_pair(encoder, pair)
        assert sides[0].prompt != sides[1].prompt
        flats = [Flat(s.ids, s.prompt, s.spans, functools.partial(EncodedCutMap, encoder, s)) for s in sides]
        longest = max(len(flat.ids) - flat.prompt for flat in flats)
        kept = fit(flats, Budget(max_length=longest + room))
        cut = [
            len(tokenizer.decode(flat.ids.tolist())) - len(tokenizer.decode(sequence.ids.tolist()))
            for flat, sequence in zip(flats, kept, strict=True)
        ]
        whole = [len(s.ids) - s.spans[0][0] == len(f.ids) - f.prompt for s, f in zip(kept, flats, strict=True)]
        assert all(whole)
        if any(s.spans[0][0] for s in kept):  # something of the prompt stays
            assert cut[0] == cut[1]


class TestIds:
    @SLACK
    @given(
        prompt=st.lists(st.integers(0, 9), max_size=40),
        sides=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=2, max_size=2),
        budget=budgets(),
    )
    def test_laws(self, prompt: list[int], sides: list[list[int]], budget: Budget) -> None:
        flats = [
            Flat(
                (ids := np.array(prompt + side, np.int32)),
                len(prompt),
                ((len(prompt), len(ids)),),
                functools.partial(token_cut_map, ids, len(prompt)),
            )
            for side in sides
        ]
        sequences = check(flats, budget, [0, 0])
        if sequences is None:
            return
        begins = [s.spans[0][0] for s in sequences]
        assert begins[0] == begins[1]
        assert sequences[0].ids[: begins[0]].tolist() == prompt[len(prompt) - begins[0] :]
        longest = max(map(len, sides))
        if budget.truncation == "prompt_left":
            assert begins[0] == max(0, min(len(prompt), budget.prompt_room, budget.room - longest))


class TestUncut:
    """Many rows at a time are cut as each of them is alone."""

    @SLACK
    @given(rows=st.lists(pairs(), max_size=6), budget=budgets(), also=budgets(), sides=sides_of_a_task)
    @pytest.mark.parametrize("family", ["chatml", "llama2"])
    def test_texts(
        self, field: pathlib.Path, family: str, rows: list[Pair], budget: Budget, also: Budget, sides: Sides
    ) -> None:
        _, encoder = encoder_of(field / family)
        found = encoder.encode(rows)
        flats = [
            [Flat(s.ids, s.prompt, s.spans, functools.partial(EncodedCutMap, encoder, s)) for s in one] for one in found
        ]
        uncut = Uncut(*found.block(), lambda row, side: flats[row][side].cuts())
        assert_cut_alike(uncut, flats, [budget, also], sides)

    @SLACK
    @given(
        rows=st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=30)] * 3), max_size=8),
        refused=st.sets(st.integers(0, 7), max_size=2),
        budget=budgets(),
        also=budgets(),
        sides=sides_of_a_task,
    )
    @example(  # a refused row whose prompt was too long
        rows=[([1] * 9, [2], [3])],
        refused={0},
        budget=Budget(max_length=20, max_prompt_length=4),
        also=Budget(max_length=20),
        sides=((0, 1),),
    )
    def test_ids(
        self,
        rows: list[tuple[list[int], ...]],
        refused: set[int],
        budget: Budget,
        also: Budget,
        sides: Sides,
    ) -> None:
        """Also responses of several spans, responses without a token under the loss, and rows refused before."""
        block, prompts = Block.empty(len(rows), 2), np.zeros((len(rows), 2), np.int64)
        flats: list[list[Flat]] = []
        for row, (prompt, *responses) in enumerate(rows):
            flats.append([])
            for side, response in enumerate(responses):
                ids, begin = np.array(prompt + response, np.int32), len(prompt)
                middle = begin + len(response) // 2
                spans = merged([(begin, middle), (middle + side, len(ids))])
                block.replace([(row, side, Sequence(ids, spans))])
                prompts[row, side] = begin
                flats[-1].append(Flat(ids, begin, spans, functools.partial(token_cut_map, ids, begin)))
            if row in refused:
                block.refuse(row, RowError(Reason.TIE, "both sides are equally good"))
        assert_cut_alike(Uncut(block, prompts, lambda row, side: flats[row][side].cuts()), flats, [budget, also], sides)


def assert_cut_alike(uncut: Uncut, flats: list[list[Flat]], budgets: list[Budget], sides: Sides) -> None:
    """Cutting groups of sides, each to its budget, gives what `fit` gives row by row; the first error is kept."""
    block, expected = uncut.block, [[Sequence(flat.ids, flat.spans) for flat in one] for one in flats]
    errors = dict(block.errors)
    for budget, group in zip(budgets, sides, strict=False):
        uncut.fit(budget, *group)
        for row, one in enumerate(flats):
            try:
                if row not in errors:
                    for side, cut in zip(group, fit([one[side] for side in group], budget), strict=True):
                        expected[row][side] = cut
            except RowError as error:
                errors[row] = error
    assert block.good.tolist() == [row not in errors for row in range(len(flats))]
    for row, one in enumerate(expected):
        if row in errors:
            assert (block.errors[row].reason, str(block.errors[row])) == (errors[row].reason, str(errors[row]))
            assert not block.lengths[row].any()
            continue
        for side, sequence in enumerate(one):
            assert block.arrays(side)[row].tolist() == sequence.ids.tolist()
            assert block.spans_of(row, side) == sequence.spans
            assert block.lost[row, side] == sequence.lost


def frame(family: str, prompt: Messages) -> tuple[str, str]:
    """What must stay in front of a prompt and behind it, whatever is cut."""
    head, tail = FRAMES[family]
    if prompt[0].role == "system":
        written = _nfc(head.format(s=prompt[0].content))
        # This template strips the system message and the first user message as one text.
        return written.rstrip() if family == "llama2" and not prompt[1].content.strip() else written, tail
    if family == "qwen2.5":
        return head.format(s="You are a helper."), tail
    if family == "llama3":
        return "<|begin_of_text|>", tail
    if family == "deepseek":
        return "<｜begin▁of▁sentence｜>", tail
    return ("<s>[INST] " if family == "llama2" else "A chat." if family == "vicuna" else ""), tail


def _tokens(spans: tuple[tuple[int, int], ...]) -> int:
    return sum(end - begin for begin, end in spans)


def _nfc(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)
