"""What batching rules and layouts say of options that they refuse, in full, and the widths that small cases get."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ms_prefstream import DPO, KTO, RLHF, Bucket, Pack, Pad, Reward
from ms_prefstream.batch import causal_mask, make_layout
from ms_prefstream.batch.best_widths import batch_maxima, best_widths
from ms_prefstream.batch.layouts.packed import PackedLayout
from ms_prefstream.errors import OptionError
from ms_prefstream.sample import Block, Loaded, Sample, Sequence
from tests.helpers import error_of


def block(*ids: int, spans: tuple[tuple[int, int], ...] = ((0, 1),), **more: Any) -> Block:
    """One sample with a sequence of so many tokens for each number."""
    sides = tuple(Sequence(np.ones(count, np.int32), spans) for count in ids)
    return Block.of([Loaded(Sample(sides, **more), None)])


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: Pad(0),
        "Pad: batch_size is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: Pad(8, length=0),
        "Pad: length is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: Pad(8, length=2**24 + 1),
        "Pad: length is 16777217; expected a whole number in 1..16777216.",
    ),
    (
        lambda: Pad(8, length=512).widths(1024),
        "Pad: length is 512, but the task lets sequences of up to 1024 tokens through. Give length=1024 or "
        "more, leave length out, or lower the task's own length to 512.",
    ),
    (
        lambda: Bucket(8, max_tokens=9),
        "Bucket: batch_size is 8 and max_tokens is 9; expected one of the two. Say how many samples a step "
        "has, such as Bucket(batch_size=8), or how many tokens, such as Bucket(max_tokens=16384).",
    ),
    (
        lambda: Bucket(),
        "Bucket: batch_size is None and max_tokens is None; expected one of the two. Say how many samples a "
        "step has, such as Bucket(batch_size=8), or how many tokens, such as Bucket(max_tokens=16384).",
    ),
    (
        lambda: Bucket(8, multiple_of=8, max_shapes=3),
        "Bucket: multiple_of and max_shapes are both given; each of them decides the allowed lengths by "
        "itself. Keep one of multiple_of, boundaries and max_shapes.",
    ),
    (
        lambda: Bucket(8, multiple_of=8, boundaries=(9,)),
        "Bucket: multiple_of and boundaries are both given; each of them decides the allowed lengths by "
        "itself. Keep one of multiple_of, boundaries and max_shapes.",
    ),
    (
        lambda: Bucket(8, round_to=8),
        "Bucket: round_to is 8, but it only rounds the lengths that max_shapes chooses. Give max_shapes as "
        "well, or use multiple_of.",
    ),
    (
        lambda: Bucket(8, extra=-1),
        "Bucket: extra is -1; expected a whole number in 0..16777216.",
    ),
    (
        lambda: Bucket(8, extra=None),
        "Bucket: extra is None (NoneType); expected a whole number in 0..16777216.",
    ),
    (
        lambda: Bucket(8, round_to=None),
        "Bucket: round_to is None (NoneType); expected a whole number in 1..16777216.",
    ),
    (
        lambda: Bucket(8, max_shapes=2, round_to=0),
        "Bucket: round_to is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: Bucket(max_tokens=0),
        "Bucket: max_tokens is 0; expected a whole number of at least 1.",
    ),
    (
        lambda: Bucket(8, boundaries=()),
        "Bucket: boundaries is (); expected whole numbers in ascending order, none of them twice. Give "
        "boundaries=(128, 256, 1024), for example.",
    ),
    (
        lambda: Bucket(8, boundaries=7),
        "Bucket: boundaries is 7; expected whole numbers in ascending order, none of them twice. Give "
        "boundaries=(128, 256, 1024), for example.",
    ),
    (
        lambda: Bucket(8, boundaries=(64, 32, 64)),
        "Bucket: boundaries is (64, 32, 64); expected whole numbers in ascending order, none of them twice. "
        "Give boundaries=(32, 64), for example.",
    ),
    (
        lambda: Bucket(8, boundaries=(32, 0)),
        "Bucket: boundaries[1] is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: Bucket(8, boundaries=(100, 300)).widths(301),
        "Bucket: the last of boundaries is 300, but the task lets sequences of up to 301 tokens through. Add "
        "a boundary of 301 or more, or lower the task's own length to 300.",
    ),
    (
        lambda: Bucket(8, max_shapes=4).widths(64),
        "Bucket: max_shapes=4 chooses the allowed lengths from the lengths of the rows, and none are known. "
        "Build a length index, or give multiple_of or boundaries instead.",
    ),
    (
        lambda: Bucket(8, multiple_of=8, extra=1).width_for(17, (9, 17)),
        "ms_prefstream, internal error while building a batch: a sequence has 17 tokens, but the largest "
        "width holds 16. Rows and options are checked before this point, so please report it together with "
        "the row.",
    ),
    (
        lambda: best_widths(np.array([1, 9]), 8, 2, 4),
        "ms_prefstream, internal error while building a batch: lengths run from 1 to 9 tokens, but the task "
        "gives 1 to 8 tokens. Rows and options are checked before this point, so please report it together "
        "with the row.",
    ),
    (
        lambda: best_widths(np.array([0, 8]), 8, 2, 4),
        "ms_prefstream, internal error while building a batch: lengths run from 0 to 8 tokens, but the task "
        "gives 1 to 8 tokens. Rows and options are checked before this point, so please report it together "
        "with the row.",
    ),
    (
        lambda: Pad(1).layout(KTO(64)),
        "KTO(max_length=64, kl=True, max_prompt_length=None, truncation='prompt_left') joins the rows of a "
        "step and needs 2 of them on each rank at least, a fixed number; found a batch_size of 1. Give "
        "batch_size=2 or more, or pass kl=False to the task.",
    ),
    (
        lambda: Bucket(max_tokens=999).layout(KTO(64)),
        "KTO(max_length=64, kl=True, max_prompt_length=None, truncation='prompt_left') joins the rows of a "
        "step and needs 2 of them on each rank at least, a fixed number; found a budget of tokens. Give "
        "batch_size=2 or more, or pass kl=False to the task.",
    ),
    (
        lambda: Pack(1),
        "Pack: tokens is 1; expected a whole number in 2..16777216.",
    ),
    (
        lambda: Pack(64, max_segments=1),
        "Pack: max_segments is 1; expected a whole number in 2..16777216.",
    ),
    (
        lambda: Pack(64, batch_size=0),
        "Pack: batch_size is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: Pack(64).check(DPO(33)),
        "Pack: tokens is 64, but the task's max_length is 33, so a pair may take 66. Give tokens=66 or more, "
        "or lower max_length to 32.",
    ),
    (
        lambda: Pack(64).check(RLHF(16, 65)),
        "Pack: tokens is 64, but the task's seq_length is 65, which one sample may take. Give tokens=65 or "
        "more, or lower seq_length to 64.",
    ),
    (
        lambda: Pack(64, max_segments=2).check(DPO(16)),
        "Pack: max_segments is 2, but a pair takes two and the row's end another one. Give max_segments=3 or more.",
    ),
    (
        lambda: Pack(64).check(Reward(16)),
        "Pack: the reward layout 'mindformers' scores one sequence a row at end_ind, which its reader "
        "compares between the two halves of a batch, so its rows cannot be shared. Pass Reward(..., "
        "layout='reward_token'), or use Pad or Bucket.",
    ),
    (
        lambda: make_layout("padded"),
        "layout is 'padded'; it must be one of paired, concat, mindformers, reward_token, rlhf, kto, "
        "process_reward, prompts.",
    ),
    (
        lambda: make_layout("concat", with_ref_logps=True),
        "layout 'concat' has no place for with_ref_logps=True; these have: paired, kto.",
    ),
    (
        lambda: make_layout("paired", max_prompt_length=4),
        "layout 'paired' has no place for max_prompt_length=4; these have: rlhf.",
    ),
    (
        lambda: make_layout("rlhf"),
        "layout 'rlhf' needs max_prompt_length, the number of columns of prompt_ids.",
    ),
    (
        lambda: Bucket(8, boundaries=(100, 200, 300)).widths(301),
        "Bucket: the last of boundaries is 300, but the task lets sequences of up to 301 tokens through. Add "
        "a boundary of 301 or more, or lower the task's own length to 300.",
    ),
    (
        lambda: make_layout("reward_token").build(block(3, 3), 4, 0, True),
        "ms_prefstream, internal error while building a batch: shifted labels were requested from the layout "
        "'reward_token', which only has unshifted ones. Rows and options are checked before this point, so "
        "please report it together with the row.",
    ),
    (
        lambda: make_layout("prompts", repeat=1, padding_side="left").build(block(3), 4, 0, True),
        "ms_prefstream, internal error while building a batch: shifted labels were requested from the layout "
        "'prompts', which only has unshifted ones. Rows and options are checked before this point, so please "
        "report it together with the row.",
    ),
    (
        lambda: make_layout("process_reward", values=False).build(block(3), 4, 0, True),
        "ms_prefstream, internal error while building a batch: shifted labels were requested from the layout "
        "'process_reward', which only has unshifted ones. Rows and options are checked before this point, so "
        "please report it together with the row.",
    ),
    (
        lambda: make_layout("process_reward", values=False).build(block(3, scores=(1.0, 0.0)), 4, 0),
        "ms_prefstream, internal error while building a batch: a sample of 3 tokens has the steps ((0, 1),) "
        "and the scores (1.0, 0.0). Rows and options are checked before this point, so please report it "
        "together with the row.",
    ),
    (
        lambda: make_layout("process_reward", values=False).build(block(3, spans=((3, 4),), scores=(1.0,)), 4, 0),
        "ms_prefstream, internal error while building a batch: a sample of 3 tokens has the steps ((3, 4),) "
        "and the scores (1.0,). Rows and options are checked before this point, so please report it together "
        "with the row.",
    ),
    (
        lambda: make_layout("kto").build(block(3), 4, 0, True),
        "ms_prefstream, internal error while building a batch: shifted labels were requested from the layout "
        "'kto', which only has unshifted ones. Rows and options are checked before this point, so please "
        "report it together with the row.",
    ),
    (
        lambda: make_layout("kto").build(block(3, ref_logps=(1.0,)), 4, 0),
        "ms_prefstream, internal error while building a batch: samples have reference log-probabilities, for "
        "which this layout 'kto' has no column. Rows and options are checked before this point, so please "
        "report it together with the row.",
    ),
    (
        lambda: make_layout("paired", with_ref_logps=True).build(block(3, 3), 4, 0),
        "ms_prefstream, internal error while building a batch: 1 of 1 samples have no reference log-"
        "probabilities. Rows and options are checked before this point, so please report it together with the"
        " row.",
    ),
    (
        lambda: make_layout("paired").build(block(3, 3, ref_logps=(1.0, 2.0)), 4, 0),
        "ms_prefstream, internal error while building a batch: samples have reference log-probabilities, for "
        "which this layout 'paired' has no column. Rows and options are checked before this point, so please "
        "report it together with the row.",
    ),
    (
        lambda: make_layout("concat").build(block(3), 4, 0),
        "ms_prefstream, internal error while building a batch: a sample of the batch has no sequence number "
        "1; a pair has two. Rows and options are checked before this point, so please report it together with"
        " the row.",
    ),
    (
        lambda: make_layout("concat").build(block(3, 5), 4, 0),
        "ms_prefstream, internal error while building a batch: the sequences have [3 5] tokens, but an array "
        "of 4 columns holds 1 to 4. Rows and options are checked before this point, so please report it "
        "together with the row.",
    ),
    (
        lambda: make_layout("concat").build(block(3, 2, spans=((1, 3),)), 4, 0),
        "ms_prefstream, internal error while building a batch: a span ends after the last token of a sequence"
        " of 2 tokens. Rows and options are checked before this point, so please report it together with the "
        "row.",
    ),
    (
        lambda: make_layout("concat").build(block(3, 3), 4, 0, True),
        "ms_prefstream, internal error while building a batch: a span begins at token 0, which shifted labels"
        " cannot predict. Rows and options are checked before this point, so please report it together with "
        "the row.",
    ),
    (
        lambda: make_layout("concat", columns={"margin": "float32"}).build(block(3, 3), 4, 0),
        "ms_prefstream, internal error while building a batch: 1 of 1 samples have no margin. Rows and "
        "options are checked before this point, so please report it together with the row.",
    ),
    (
        lambda: make_layout("mindformers").build(block(3, 3), 4, 0),
        "ms_prefstream, internal error while building a batch: both sides of a pair have the same tokens; "
        "such a row is dropped before it is batched. Rows and options are checked before this point, so "
        "please report it together with the row.",
    ),
    (
        lambda: make_layout("rlhf", max_prompt_length=4).build(block(3), 4, 0),
        "ms_prefstream, internal error while building a batch: 1 of 1 samples have no prompt. Rows and "
        "options are checked before this point, so please report it together with the row.",
    ),
    (
        lambda: PackedLayout(tokens=8, max_segments=3).build([block(5, 4)], 0),
        "ms_prefstream, internal error while building a batch: a pack has 2 sequences of 9 tokens, but a row "
        "holds 1 to 2 sequences, none of them empty, of 8 tokens. Rows and options are checked before this "
        "point, so please report it together with the row.",
    ),
    (
        lambda: PackedLayout(tokens=8, max_segments=2).build([block(3, 4)], 0),
        "ms_prefstream, internal error while building a batch: a pack has 2 sequences of 7 tokens, but a row "
        "holds 1 to 1 sequences, none of them empty, of 8 tokens. Rows and options are checked before this "
        "point, so please report it together with the row.",
    ),
    (
        lambda: PackedLayout(tokens=8, max_segments=3).build([block(3, 4, ref_logps=(1.0, 2.0))], 0),
        "ms_prefstream, internal error while building a batch: a pack has no samples, or some with reference "
        "log-probabilities it has no room for. Rows and options are checked before this point, so please "
        "report it together with the row.",
    ),
    (
        lambda: PackedLayout(tokens=8, max_segments=3).build([block(3, 4, spans=((2, 4),))], 0),
        "ms_prefstream, internal error while building a batch: a span ends after its sequence; the spans of "
        "the batch are [((2, 4),), ((2, 4),), ()]. Rows and options are checked before this point, so please "
        "report it together with the row.",
    ),
    (
        lambda: PackedLayout(tokens=8, max_segments=3, scores=True).build([block(3, 4)], 0, True),
        "ms_prefstream, internal error while building a batch: shifted labels were requested from the layout "
        "'reward_token', which only has unshifted ones. Rows and options are checked before this point, so "
        "please report it together with the row.",
    ),
    (
        lambda: causal_mask(np.ones((2, 3), np.int32), visible=2),
        "causal_mask: visible is 2; expected 0 (masked is 1) or 1 (masked is 0).",
    ),
    (
        lambda: causal_mask({"input_ids": 1, "labels": 2}),
        "causal_mask: the batch has no segment_ids; found columns: input_ids, labels. Only batches of "
        "mps.Pack have them; padded batches have an attention mask or a loss mask.",
    ),
    (
        lambda: causal_mask({}),
        "causal_mask: the batch has no segment_ids; found columns: none. Only batches of mps.Pack have them; "
        "padded batches have an attention mask or a loss mask.",
    ),
    (
        lambda: causal_mask(np.ones(3, np.int32)),
        "causal_mask: segment_ids are (3,) int32; expected whole numbers, (rows, columns).",
    ),
    (
        lambda: causal_mask(np.ones((2, 3), np.float32)),
        "causal_mask: segment_ids are (2, 3) float32; expected whole numbers, (rows, columns).",
    ),
]


@pytest.mark.parametrize(("call", "said"), ERRORS)
def test_options_that_are_refused(call: Callable[[], Any], said: str) -> None:
    assert error_of(call, (OptionError, RuntimeError)) == said


def test_small_cases_get_the_widths_that_they_had() -> None:
    """Where several choices pad equally little, one of them is part of saved states."""
    draw, found = random.Random(7), []
    for window, batch, sort in itertools.product((1, 3, 64), (1, 4, 9), (False, True)):
        for _ in range(9):
            lengths = np.array([1 + int(draw.random() ** 2 * 60) for _ in range(4 + int(draw.random() * 60))])
            maxima = batch_maxima(lengths, batch, window, int(draw.random() * 2**32), sort)
            shapes, round_to = 1 + int(draw.random() * 6), 1 + int(draw.random() * 9)
            found.append([maxima.tolist(), best_widths(maxima, 61 + int(draw.random() * 9), shapes, round_to)])
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest() == (
        "cc23e7be4cefcb7f7004a99ec62d959ca98411049b4ae234bd0ea1278cca9843"
    )


class Factory:
    """Returns how it is asked to cut an epoch into steps."""

    task = DPO(16)

    def by_rows(self, batch_size: int, sort: bool) -> Any:
        return ("rows", batch_size, sort)

    def by_tokens(self, max_tokens: int, extra: int) -> Any:
        return ("tokens", max_tokens, extra)

    def by_packs(self, rows: int, tokens: int, max_samples: int) -> Any:
        return ("packs", rows, tokens, max_samples)


def test_steps_are_sorted_where_widths_differ() -> None:
    factory = Factory()
    assert Pad(8).steps(factory, (64, 128)) == ("rows", 8, False)
    assert Bucket(8).steps(factory, (64,)) == ("rows", 8, False)
    assert Bucket(8).steps(factory, (64, 128)) == ("rows", 8, True)
    assert Bucket(max_tokens=99, extra=2).steps(factory, (64, 128)) == ("tokens", 99, 2)
    assert Pack(64, batch_size=3, max_segments=7).steps(factory, (64,)) == ("packs", 3, 64, 3)


def test_layouts_have_the_columns_that_task_and_cache_bring() -> None:
    for rule in (Pad(4), Bucket(4)):
        assert "chosen_ref_logps" in rule.layout(DPO(16), True).columns
        assert "chosen_ref_logps" not in rule.layout(DPO(16)).columns
    assert "margin" in Pack(64).layout(DPO(16, margin=True)).columns
    assert Pack(64, max_segments=3).layout(DPO(16)).max_segments == 3, "room for one pair"
    assert Bucket(8, boundaries=(100, 200, 400)).widths(300) == (100, 200, 400)


def test_whole_numbers_of_samples_stay_exact() -> None:
    samples = block(3, 3)
    samples.columns["number"] = np.array([2**53 + 1])
    samples.columns["text"] = np.array(["a"], object)
    found = make_layout("paired", columns={"number": "int64", "text": "text"}).build(samples, 4, 0)
    assert found["number"].tolist() == [2**53 + 1]
    assert found["text"].tolist() == ["a"]


@pytest.mark.parametrize("name", ["paired", "concat", "mindformers", "reward_token"])
def test_labels_are_unshifted_unless_asked_for(name: str) -> None:
    samples = Block.of([Loaded(Sample((_sequence(5, 6, 7), _sequence(5, 8))), None)])
    layout = make_layout(name)
    for column, array in layout.build(samples, 4, 0).items():
        np.testing.assert_array_equal(array, layout.build(samples, 4, 0, False)[column])


def _sequence(*ids: int) -> Sequence:
    return Sequence(np.array(ids, np.int32), ((1, len(ids)),))


def test_lengths_are_drawn_from_few_rows_several_times_and_from_many_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.arange(1, 11)
    assert batch_maxima(lengths, 11, 4, 0, True).tolist() == lengths.tolist(), "too few for a batch"
    assert batch_maxima(lengths, 10, 4, 0, True).tolist() == [10] * 16
    assert len(batch_maxima(lengths, 3, 2, 0, True)) == 16 * 2, "the short window is left out"
    monkeypatch.setattr("ms_prefstream.batch.best_widths._ROWS", 25)
    assert len(batch_maxima(lengths, 2, 9, 0, True)) == 2 * 5
    assert len(batch_maxima(np.arange(1, 27), 2, 9, 0, True)) == 12 // 9 * 9
