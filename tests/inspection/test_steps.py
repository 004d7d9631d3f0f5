"""A step as the trainer gets it: every column of every row is context, under the loss, or padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError
from ms_prefstream.inspection.steps import Strip, parts_of, step_of
from tests.helpers import pairs

ROWS = pairs(24)
REWARD = {"layout": "reward_token", "reward_token": 300}


def stream(task: Any, batching: Any = None, rows: Any = None, **options: Any) -> mps.Stream:
    batching = batching or mps.Bucket(4, multiple_of=16)
    given = {"tokenizer": "bytes", "vocab_size": 512, "verbose": False, **options}
    return mps.stream(ROWS if rows is None else rows, task=task, batching=batching, **given)


def row_of(strip: Strip) -> int:
    (origin,) = strip.origins
    return int(origin.split()[1])  # row 3 of list


@pytest.mark.parametrize("layout", ["paired", "concat"])
@pytest.mark.parametrize("labels", ["unshifted", "shifted"])
def test_pairs(layout: str, labels: str) -> None:
    task = mps.DPO(320, layout=layout, labels=labels)
    found = step_of(stream(task), 1)
    assert (found.epoch, found.rank, found.world) == (0, 0, 1)
    assert [strip.side for strip in found.strips] == ["chosen", "rejected"] * 4
    for strip in found.strips:
        side = mps.encode(ROWS[row_of(strip)], task=task, tokenizer="bytes").sides[strip.side == "rejected"]
        before, trained, tokens = side.tokens
        assert strip.ids[:tokens] == side.ids
        assert strip.counts == (tokens - trained, trained, found.width - tokens)
        (under,) = [piece for piece in strip.pieces if piece.trained]
        assert under.begin == before - (labels == "shifted")
        assert under.end - under.begin == trained
        assert (strip.pieces[0].begin, strip.pieces[-1].end) == (0, found.width)
        assert all(one.end == other.begin for one, other in zip(strip.pieces, strip.pieces[1:], strict=False))


def test_reward_models() -> None:
    found = step_of(stream(mps.Reward(320, **REWARD)), 0)
    for strip in found.strips:
        side = mps.encode(ROWS[row_of(strip)], task=mps.Reward(320, **REWARD), tokenizer="bytes", vocab_size=512).sides
        tokens = side[strip.side == "rejected"].tokens[2]
        assert strip.counts == (tokens - 1, 1, found.width - tokens)
    found = step_of(stream(mps.Reward(320)), 0)  # one mask for both sides: from where they divide, but not on padding
    for strip in found.strips:
        chosen, rejected = mps.encode(ROWS[row_of(strip)], task=mps.Reward(320), tokenizer="bytes").sides
        side = rejected if strip.side == "rejected" else chosen
        assert strip.counts == (chosen.tokens[0], side.tokens[2] - chosen.tokens[0], found.width - side.tokens[2])


def test_rollouts() -> None:
    found = step_of(stream(mps.RLHF(96, 256)), 0)
    assert [strip.side for strip in found.strips] == ["prompt", "response"] * 4
    for strip in found.strips:
        row = mps.encode(ROWS[row_of(strip)], task=mps.RLHF(96, 256), tokenizer="bytes")
        assert row.sample is not None
        assert row.sample.prompt is not None
        tokens = len(row.sample.prompt) if strip.side == "prompt" else row.sides[0].tokens[2]
        assert len(strip.ids) - strip.counts[2] == tokens
        assert strip.counts[1] == (0 if strip.side == "prompt" else row.sides[0].tokens[1])


@pytest.mark.parametrize("options", [{}, REWARD])
def test_packs(options: dict[str, Any]) -> None:
    task = mps.Reward(160, **options) if options else mps.DPO(160)
    packed = stream(task, mps.Pack(tokens=400, batch_size=2), steps_per_epoch=4)
    found = step_of(packed, 2)
    batch = list(packed.batches())[2]
    rows = iter(packed.rows(0, 2).tolist())
    for at, strip in enumerate(found.strips):
        assert strip.side == "pack"
        assert strip.ids == tuple(batch["input_ids"][at].tolist())
        lengths = []
        for origin in strip.origins:
            row = next(rows)
            assert origin == f"row {row} of list"
            sides = mps.encode(ROWS[row], task=task, tokenizer="bytes", vocab_size=512).sides
            lengths += [("chosen", sides[0].tokens), ("rejected", sides[1].tokens)]
        for number, (side, (before, trained, tokens)) in enumerate(lengths, 1):
            pieces = [piece for piece in strip.pieces if piece.segment == number]
            assert {piece.side for piece in pieces} == {side}
            assert pieces[-1].end - pieces[0].begin == tokens
            (under,) = [piece for piece in pieces if piece.trained]
            assert (under.begin - pieces[0].begin, under.end - under.begin) == (before, trained)
        assert strip.counts[2] == 400 - sum(tokens for _, (_, _, tokens) in lengths)
    assert found.padding == pytest.approx(float(np.mean(batch["segment_ids"] == 0)))


def test_parts_have_the_texts_of_the_batch() -> None:
    opened = stream(mps.DPO(320))
    for strip in step_of(opened, 0).strips:
        parts = list(parts_of(opened, strip))
        side = mps.encode(ROWS[row_of(strip)], task=mps.DPO(320), tokenizer="bytes").sides[strip.side == "rejected"]
        assert "".join(part.text for part in parts) == side.prompt + "".join(side.trained) + side.rest
        assert [part.text for part in parts if part.trained] == [side.trained[0][:-10], "<|im_end|>"]
        assert all("".join(part.texts) == part.text and len(part.texts) == len(part.ids) for part in parts)


def test_ranks_epochs_and_sources_in_one_pass() -> None:
    task = mps.DPO(320)
    shares = [step_of(stream(task, num_shards=2, shard_id=rank), 4) for rank in (0, 1)]  # 3 steps an epoch
    assert [(one.epoch, one.rank, one.world) for one in shares] == [(1, 0, 2), (1, 1, 2)]
    assert not {strip.origins for strip in shares[0].strips} & {strip.origins for strip in shares[1].strips}
    found = step_of(stream(task, rows=lambda: iter(ROWS), steps_per_epoch=2), 1)
    assert {strip.origins for strip in found.strips} == {()}
    with pytest.raises(OptionError, match="step is -1"):
        step_of(stream(task), -1)
