"""What a stream holds in memory for each row of its source, for each kind of plan."""

from __future__ import annotations

import gc
import itertools
import pathlib
import tracemalloc

import pytest

import ms_prefstream as mps

FEW, MANY = 30_000, 120_000
MOST = {"no index": 4.5, "buckets": 11.0, "token budget": 12.5, "packs": 13.5}  # bytes a row


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, pathlib.Path]:
    """Files of so many tokenized rows, each with a length index; one row in ten has two equal sides."""
    rows = itertools.cycle(
        f'{{"prompt_ids":[1],"chosen_ids":[2{",3" * (number % 7)}],"rejected_ids":[{4 - 2 * (number == 0)}]}}\n'
        for number in range(10)
    )
    lines, found = list(itertools.islice(rows, MANY)), {}
    for count in (FEW, MANY):
        found[count] = tmp_path_factory.mktemp("memory") / f"{count}.jsonl"
        found[count].write_text("".join(lines[:count]))
        made = mps.stream(found[count], task=mps.DPO(16), tokenizer=None, pad_token_id=0, batching=mps.Pad(1))
        assert made.build_index().usable == count * 9 // 10
    return found


def held(path: pathlib.Path, kind: str) -> int:
    """Bytes that are allocated while a stream is open and has planned steps of two epochs."""
    batching: mps.Bucket | mps.Pack = mps.Bucket(4, multiple_of=4)
    if kind == "token budget":
        batching = mps.Bucket(max_tokens=256, multiple_of=4)
    elif kind == "packs":
        batching = mps.Pack(64, batch_size=2)
    index = None if kind == "no index" else "auto"
    tracemalloc.start()
    try:
        made = mps.stream(
            path, task=mps.DPO(16), tokenizer=None, pad_token_id=0, batching=batching, index=index, window=2
        )
        for epoch, step in itertools.product(range(2), (0, made.steps_per_epoch - 1)):
            next(made.batches(epoch, step))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOST)
def test_bytes_a_row(kind: str, paths: dict[int, pathlib.Path]) -> None:
    few, many = held(paths[FEW], kind), held(paths[MANY], kind)
    assert (many - few) / (MANY - FEW) < MOST[kind]
