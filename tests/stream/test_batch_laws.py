"""For random lengths, settings and tasks: batches hold exactly their rows, in shapes of the closed set.

What a batch must hold is worked out from the raw rows, without any of the package's code. Bad rows are the shortest of
all, so what stands in for one is always longer than the row it replaces.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.errors import NoUsableRowsError, OptionError
from tests.helpers import Batch, Row, json_lines

CHEAP = settings(suppress_health_check=[HealthCheck.too_slow])
LONGEST, SCORE = 24, 300  # tokens of a side, the reward token included; its id
PAD = 0

TASKS: dict[str, Any] = {
    "paired": mps.DPO(LONGEST),
    "shifted": mps.DPO(LONGEST, labels="shifted"),
    "concat": mps.DPO(LONGEST, layout="concat"),
    "mindformers": mps.Reward(LONGEST),
    "reward_token": mps.Reward(LONGEST, layout="reward_token", reward_token=SCORE),
    "rlhf": mps.RLHF(9, LONGEST),
}
PACKABLE = ("paired", "shifted", "reward_token", "rlhf")


class Case(NamedTuple):
    """One drawn setting."""

    name: str
    rows: list[Row]
    batching: Any
    options: dict[str, Any]

    def stream(self, source: Any) -> mps.Stream:
        packs = {"steps_per_epoch": 2} if isinstance(self.batching, mps.Pack) and "index" in self.options else {}
        return mps.stream(
            source,
            task=TASKS[self.name],
            tokenizer=None,
            pad_token_id=PAD,
            batching=self.batching,
            **{**self.options, **packs},
        )


@st.composite
def pairs(draw: st.DrawFn, row: int) -> Row:
    """A pair that names its row in its first token, or a bad one of equal sides, shorter than any other."""
    name = 400 + row
    if draw(st.integers(0, 4)) == 0:
        return {"prompt_ids": [name], "chosen_ids": [1], "rejected_ids": [1]}
    sizes = [draw(st.integers(2, 14)) for _ in range(2)]
    return {
        "prompt_ids": [name] + [2] * draw(st.integers(0, 8)),
        "chosen_ids": [3] * sizes[0],
        "rejected_ids": [4] * sizes[1],
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(sorted(TASKS)))
    indexed = draw(st.booleans())
    widths = draw(
        st.sampled_from(
            [
                {"multiple_of": 5},
                {"multiple_of": 8, "extra": 1},
                {"boundaries": (7, 11, 30)},
                {"max_shapes": 3, "round_to": 3},
            ]
        )
    )
    size = draw(st.integers(1, 4))
    choices = [mps.Pad(size), mps.Bucket(size, **widths)]
    if name in PACKABLE:
        choices.append(mps.Pack(2 * LONGEST + draw(st.integers(0, 40)), max_segments=draw(st.integers(3, 9))))
    if indexed:
        choices.append(mps.Bucket(max_tokens=70 + draw(st.integers(0, 200)), **widths))
    batching = draw(st.sampled_from(choices))
    count = draw(st.integers(8, 30))
    options: dict[str, Any] = {
        "seed": draw(st.integers(0, 99)),
        "window": draw(st.integers(1, 4)),
        "drop_remainder": draw(st.booleans()),
    }
    if not indexed:
        options["index"] = None
    return Case(name, [draw(pairs(row)) for row in range(count)], batching, options)


def expected(name: str, row: Row) -> list[list[int]]:
    """The sequences of a row."""
    end = [SCORE] if name == "reward_token" else []
    sides = ("chosen_ids",) if name == "rlhf" else ("chosen_ids", "rejected_ids")
    return [[*row["prompt_ids"], *row[side], *end] for side in sides]


def held(name: str, batch: Batch) -> list[list[list[int]]]:
    """The sequences of each row in a batch, without the padding behind them."""
    if "segment_ids" in batch:
        return [pair for row in range(len(batch["input_ids"])) for pair in _unpacked(batch, row)]
    if "chosen_input_ids" in batch:
        ids = [batch["chosen_input_ids"], batch["rejected_input_ids"]]
    elif name == "rlhf":
        ids = [batch["pretrain_ids"]]
    else:
        ids = np.split(batch["input_ids"], 2)
    return [[np.trim_zeros(side, "b").tolist() for side in sides] for sides in zip(*ids, strict=True)]


def _unpacked(batch: Batch, row: int) -> list[list[list[int]]]:
    ids, segments, pair_ids = (batch[name][row] for name in ("input_ids", "segment_ids", "pair_ids"))
    assert not ids[segments == 0].any()
    return [
        [ids[segments == number].tolist() for number in sorted(set(segments[pair_ids == pair].tolist()))]
        for pair in range(1, pair_ids.max() + 1)
    ]


@CHEAP
@given(case=cases(), epoch=st.integers(0, 2))
def test_batches_hold_exactly_their_rows_in_shapes_of_the_closed_set(case: Case, epoch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source: Any = case.rows
        try:
            if "index" not in case.options:
                source = json_lines(pathlib.Path(folder, "rows.jsonl"), case.rows)
                case._replace(batching=mps.Pad(1), options={"index": None}).stream(source).build_index()
            stream = case.stream(source)
            batches = list(stream.batches(epoch))
        except (NoUsableRowsError, OptionError):
            assume(False)  # a window without a good row, or fewer rows than a step
            return
        shapes = set(stream.shapes)
        assert len(batches) == stream.steps_per_epoch
        for step, batch in enumerate(batches):
            rows = stream.rows(epoch, step, resolved=True).tolist()
            assert held(case.name, batch) == [expected(case.name, case.rows[row]) for row in rows]
            tokens = "pretrain_ids" if case.name == "rlhf" and "pretrain_ids" in batch else None
            main = batch[tokens or ("chosen_input_ids" if "chosen_input_ids" in batch else "input_ids")]
            assert main.shape in shapes
            assert all(array.flags["C_CONTIGUOUS"] for array in batch.values())
