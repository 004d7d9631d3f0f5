"""Long runs and many streams: nothing is held for each step that was made, and streams do not touch each other."""

from __future__ import annotations

import gc
import itertools
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.plan import indexed
from tests.helpers import Batch, assert_same_batches, json_lines, token_pairs

RULES: dict[str, Any] = {
    "bucket": mps.Bucket(2, multiple_of=4),
    "pack": mps.Pack(64, batch_size=1),
    "tokens": mps.Bucket(max_tokens=96, multiple_of=8),
}
STEPS = 100


def stream_of(source: Any, rule: Any, **options: Any) -> mps.Stream:
    given: dict[str, Any] = {"task": mps.DPO(16), "tokenizer": None, "pad_token_id": 0, "window": 4, "verbose": False}
    return mps.stream(source, batching=rule, **given | options)


def without_end(stream: mps.Stream) -> Iterator[Batch]:
    return itertools.chain.from_iterable(stream.batches(epoch) for epoch in itertools.count())


@pytest.mark.slow
@pytest.mark.parametrize("index", [None, "build"], ids=["no index", "index"])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_holds_nothing_for_each_step(
    rule: str, index: str | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "_CACHED_ROWS", 64)  # a cache of steps that is full at once
    if index is None and rule == "tokens":
        pytest.skip("a token budget needs an index")
    path = json_lines(tmp_path / "rows.jsonl", token_pairs(40))
    packs = 4 if rule == "pack" and index is None else None
    batches = without_end(stream_of(path, RULES[rule], index=index, steps_per_epoch=packs))
    objects, files = [], []
    for _ in range(5):
        for _ in range(STEPS):
            next(batches)
        gc.collect()
        objects.append(sys.getallocatedblocks())
        files.append(len(os.listdir("/proc/self/fd")))
    assert min(np.diff(objects)) < STEPS // 2  # caches fill at times; what is held for each step grows all the time
    assert len(set(files)) == 1


@pytest.mark.parametrize("in_threads", [False, True], ids=["by turns", "in threads"])
def test_streams_of_one_process_do_not_touch_each_other(in_threads: bool, tmp_path: pathlib.Path) -> None:
    rows = token_pairs(8 * 24)
    paths = [json_lines(tmp_path / f"{n}.jsonl", rows[24 * n : 24 * n + 24]) for n in range(8)]
    rules = itertools.cycle([RULES["bucket"], mps.Pad(2)])
    made = [(path, rule, n) for n, (path, rule) in enumerate(zip(paths, rules, strict=False))]
    alone = [list(stream_of(path, rule, seed=n).batches(0)) for path, rule, n in made]
    streams = [stream_of(path, rule, seed=n) for path, rule, n in made]
    before, found = threading.active_count(), [list[Batch]() for _ in streams]
    if in_threads:
        threads = [
            threading.Thread(target=lambda n=n: found[n].extend(streams[n].batches(0)))  # type: ignore[misc]
            for n in range(len(streams))
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    else:
        for step in zip(*(stream.batches(0) for stream in streams), strict=True):
            [batches.append(batch) for batches, batch in zip(found, step, strict=True)]
    assert threading.active_count() <= before  # threads of earlier tests may have ended
    for batches, expected in zip(found, alone, strict=True):
        assert_same_batches(batches, expected)
