"""Rows that name themselves, and the laws that hold for every batching mode, source kind and task.

Row 17 has the text ``#17#`` in its prompt and the tokenizer is ``"bytes"``, so the ids of a batch say which rows it
holds: what a stream delivers is compared with what it promises, never one plan with another.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ms_prefstream as mps

Row = dict[str, Any]
Batch = dict[str, NDArray[Any]]

PAD = 259  # of the tokenizer "bytes"
_NAME = re.compile(rb"#(\d+)#")
_FIRST = ("chosen_input_ids", "prompt_ids", "input_ids")  # the column that holds the prompt of every row, by layout


def pairs(count: int, first: int = 0) -> list[Row]:
    """Preference pairs of many lengths (the longest has 99 tokens in ChatML), no two of them alike."""
    return [_pair(row) for row in range(first, first + count)]


class Positioned:
    """So many pairs, with a position of their own."""

    def __init__(self, count: int) -> None:
        self.count, self.row = count, 0

    def __iter__(self) -> Iterator[Row]:
        for row in pairs(self.count)[self.row :]:
            self.row += 1
            yield row

    def state_dict(self) -> dict[str, int]:
        return {"row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.row = state["row"]


def _pair(row: int) -> Row:
    return {
        "prompt": f"#{row}# why?",
        "chosen": "yes " * (1 + row * 7 % 13),
        "rejected": "no " * (1 + row * 5 % 11),
        "margin": row / 2,
    }


def token_pairs(count: int, longest: int = 12) -> list[Row]:
    """The same as token ids: cheap to load, for laws that are tried on many settings."""
    return [
        {
            "prompt_ids": list(b"#%d#" % row),
            "chosen_ids": [120] * (1 + row * 7 % longest),
            "rejected_ids": [121] * (1 + row * 5 % longest),
        }
        for row in range(count)
    ]


def json_lines(path: pathlib.Path, rows: Iterable[Any]) -> pathlib.Path:
    """Write rows as JSON Lines; strings are written as they are, so that a line can be broken."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def error_of(call: Callable[[], Any], kind: type[Exception] | tuple[type[Exception], ...] = mps.PrefStreamError) -> str:
    """Returns the text of the error that a call ends with."""
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


def rows_in(batch: Batch) -> list[int]:
    """The numbers of the rows in a batch, in order, read from its token ids."""
    name = next(name for name in _FIRST if name in batch)
    ids = batch[name]
    if name == "input_ids":
        ids = ids[: len(ids) // 2]  # (2B, L), chosen rows first
    found = [_NAME.search(row[row < 256].astype(np.uint8).tobytes()) for row in ids]
    assert None not in found
    return [int(name[1]) for name in found if name]


def rows_of(batches: Iterable[Batch]) -> list[list[int]]:
    """The rows of each batch."""
    return [rows_in(batch) for batch in batches]


def flat(steps: Iterable[Iterable[Any]]) -> list[Any]:
    """What several steps hold, in order."""
    return [row for step in steps for row in step]


def through_mindspore(dataset: Any, epochs: int = 1) -> Iterator[Batch]:
    """The batches of one iterator over a dataset, as a training loop sees them."""
    iterator = dataset.create_dict_iterator(num_epochs=epochs, output_numpy=True)
    for _ in range(epochs):
        yield from iterator


def assert_same_batches(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    """Equal in number, order, column order, shape, dtype and every bit; never sorted."""
    assert len(found) == len(expected)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert list(one) == list(other), step
        for name in other:
            assert one[name].dtype == other[name].dtype, (step, name)
            assert one[name].shape == other[name].shape, (step, name)
            assert one[name].tobytes() == other[name].tobytes(), (step, name)


def rest(stream: mps.Stream, step: int, epochs: int) -> list[Batch]:
    """What a resumed stream delivers up to the end of the last epoch."""
    batches = list(stream.batches())
    for epoch in range(step // stream.steps_per_epoch + 1, epochs):
        batches += stream.batches(epoch)
    return batches


def rest_through_mindspore(stream: mps.Stream, step: int, epochs: int) -> list[Batch]:
    """The same through one iterator over `stream.dataset()`."""
    return list(through_mindspore(stream.dataset(), epochs - step // stream.steps_per_epoch))


def assert_resumes_everywhere(
    make: Callable[[], mps.Stream],
    epochs: int = 2,
    read: Callable[[mps.Stream, int, int], list[Batch]] = rest,
) -> None:
    """From the state of every step a fresh stream delivers exactly what an uninterrupted one delivers behind it.

    Args:
        make: Makes a fresh stream; called for every step.
        epochs: How many epochs are trained.
        read: Reads the rest of a run from a resumed stream.
    """
    whole = make()
    steps = whole.steps_per_epoch
    assert steps > 1, "a case with a single step proves little"
    expected = [batch for epoch in range(epochs) for batch in whole.batches(epoch)]
    assert len(expected) == epochs * steps
    for step in range(epochs * steps):
        saved = json.dumps(whole.state(step))
        resumed = make().resume(json.loads(saved))
        assert json.dumps(resumed.state(step)) == saved
        assert_same_batches(read(resumed, step, epochs), expected[step:])


def global_steps(
    ranks: Sequence[mps.Stream], epoch: int, start_step: int = 0, *, look_up: bool = True
) -> list[Counter[int]]:
    """The rows of each step over all ranks, as a multiset; every rank adds the same number of them.

    Args:
        ranks: The streams of all ranks.
        epoch: The epoch to read.
        start_step: Its first step to read.
        look_up: Compare what each rank delivers with what `rows` announces (not for one-pass sources).
    """
    count = ranks[0].steps_per_epoch - start_step
    steps: list[Counter[int]] = [Counter() for _ in range(count)]
    for stream in ranks:
        delivered = rows_of(stream.batches(epoch, start_step))
        assert len(delivered) == count
        for step, rows in enumerate(delivered):
            assert len(rows) == ranks[0].batching.batch_size
            if look_up:
                assert rows == stream.rows(epoch, start_step + step, resolved=True).tolist()
            steps[step].update(rows)
    return steps


def assert_epoch_conserves_rows(steps: Sequence[Counter[int]], rows: int, report: Any) -> None:
    """Every row of the source once, up to the remainder or the repeats that the report states."""
    (size,) = {sum(step.values()) for step in steps}
    seen = sum(steps, Counter())
    left_out, repeated = report.remainder_per_epoch, report.repeats_per_epoch
    assert set(seen) <= set(range(rows))
    assert left_out == 0 or repeated == 0
    assert max(left_out, repeated) < size
    assert len(seen) == rows - left_out
    assert sum(seen.values()) - len(seen) == repeated


def assert_same_rows_for_every_world(
    make: Callable[[int, int], mps.Stream],
    worlds: Sequence[int],
    rows: int,
    *,
    epochs: int = 2,
    look_up: bool = True,
) -> None:
    """Each global step holds the same rows on any number of ranks, none missing, none twice, equally many on each.

    Args:
        make: (num_shards, shard_id) -> stream; the global batch must not depend on them.
        worlds: Numbers of ranks.
        rows: Rows of the source, all of them usable.
        epochs: How many epochs are compared.
        look_up: See `global_steps`.
    """
    alone: list[list[Counter[int]]] = []
    for world in worlds:
        ranks = [make(world, rank) for rank in range(world)]
        found = [global_steps(ranks, epoch, look_up=look_up) for epoch in range(epochs)]
        alone = alone or found
        assert found == alone, world
        for steps in found:
            assert_epoch_conserves_rows(steps, rows, ranks[0].report)
