"""Real rows and a real tokenizer: every row once an epoch, in another order, and in the same order again."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest

import ms_prefstream as mps
from tests.fixtures_tokenizers import fastest
from tests.helpers import Batch, flat, through_mindspore

pytestmark = pytest.mark.mindspore
DEMOS = ["data/dpo_zh_demo.json", "data/dpo_en_demo.json"]
CVALUES = ["data/cvalues_like_2k.jsonl"]
BATCH = 16


class Job(NamedTuple):
    """One of the three tasks on its data."""

    files: list[str]
    task: Any
    rows: int
    format: str


JOBS = {
    "dpo": Job(DEMOS, mps.DPO(1024), 600, "sharegpt"),
    "reward": Job(CVALUES, mps.Reward(512), 2000, "cvalues"),
    "rlhf": Job(CVALUES, mps.RLHF(128, 512), 2000, "cvalues"),
}


@pytest.fixture(scope="module")
def qwen(shared: pathlib.Path) -> Any:
    """Qwen2.5's tokenizer, loaded once."""
    from ms_prefstream.encode.tokenizer import load_tokenizer

    return load_tokenizer(shared / "tokenizers/qwen2_5")


def make(source: Any, job: str, qwen: Any, **options: Any) -> mps.Stream:
    settings = {"seed": 42, "window": 16, "format": JOBS[job].format, "batching": mps.Bucket(BATCH, multiple_of=64)}
    return mps.stream(source, task=JOBS[job].task, tokenizer=qwen, **settings | options)


def texts(batch: Batch) -> list[bytes]:
    """What each row of a batch holds without its padding: a row is the same text in any batch."""
    if "prompt_ids" in batch:
        sides = [(batch["pretrain_ids"], batch["loss_mask"])]
    elif "chosen_input_ids" in batch:
        sides = [(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]) for side in ("chosen", "rejected")]
    else:
        both = np.split(batch["input_ids"], 2), np.split(batch["attention_mask"], 2)
        sides = list(zip(*both, strict=True))
    ends = [[int(np.flatnonzero(row)[-1]) + 1 for row in mask] for _, mask in sides]
    cut = [
        [row[:end].tobytes() for row, end in zip(ids, end, strict=True)]
        for (ids, _), end in zip(sides, ends, strict=True)
    ]
    return [b"|".join(row) for row in zip(*cut, strict=True)]


def epochs(stream: mps.Stream) -> list[list[bytes]]:
    """The rows of two epochs through one MindSpore iterator, in order."""
    size = stream.steps_per_epoch
    steps = [texts(batch) for batch in through_mindspore(stream.dataset(), 2)]
    assert len(steps) == 2 * size
    return [flat(steps[:size]), flat(steps[size:])]


def check(source: Any, job: str, qwen: Any, rows: int) -> None:
    stream = make(source, job, qwen)
    assert stream.dataset().get_dataset_size() == stream.steps_per_epoch == rows // BATCH
    orders = epochs(stream)
    plain = make(source, job, qwen, shuffle=False, drop_remainder=False)
    by_row = [text for batch in plain.batches() for text in texts(batch)]  # row id -> what it holds
    for epoch, order in enumerate(orders):
        ids = [int(row) for step in range(stream.steps_per_epoch) for row in stream.rows(epoch, step, resolved=True)]
        assert [by_row[row] for row in ids] == order
        repeats = len(ids) - len(set(ids))
        assert repeats <= sum(stream.report.dropped.values())
        assert len(ids) == rows - rows % BATCH == rows - stream.report.remainder_per_epoch
    assert sum(stream.report.dropped.values()) < 0.02 * rows
    assert orders[0] != orders[1]
    assert epochs(make(source, job, qwen)) == orders
    other = make(source, job, qwen, seed=43)
    assert [text for batch in other.batches() for text in texts(batch)] not in orders


@pytest.mark.parametrize("job", JOBS)
def test_some_rows(job: str, shared: pathlib.Path, qwen: Any) -> None:
    path = shared / JOBS[job].files[0]
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    check(rows[:72], job, qwen, 72)


@pytest.mark.long
@pytest.mark.parametrize("job", JOBS)
def test_all_rows(job: str, shared: pathlib.Path, qwen: Any) -> None:
    check([shared / file for file in JOBS[job].files], job, qwen, JOBS[job].rows)


@pytest.mark.long
def test_a_tokenizer_is_given_by_its_folder(shared: pathlib.Path) -> None:
    stream = make([shared / file for file in DEMOS], "dpo", shared / "tokenizers/qwen2_5")
    assert stream.tokenizer is not None
    assert stream.tokenizer.backend == fastest("tiktoken")
    (batch,) = (batch for batch, _ in zip(stream.batches(), range(1), strict=False))
    assert batch["chosen_input_ids"].shape in stream.shapes
