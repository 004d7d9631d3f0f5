"""What a resume costs: one window of tokenising at most, and no skipped row is parsed or formatted."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.sources import lines
from tests.helpers import pairs, rows_in, token_pairs
from tests.kinds import source_of

N, B, W = 60, 2, 5  # 30 steps, 6 windows of 10 rows
KINDS = ["list", "json lines", "gz", "generator function"]


class Counter:
    """How many rows were loaded, and how many of them as text were encoded, since the last `reset`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded = self.encoded = 0
        samples, encode = SampleLoader.samples, ConversationEncoder.encode

        def counting_samples(loader: SampleLoader, found: Any, *origin: Any) -> Any:
            self.loaded += len(found)
            return samples(loader, found, *origin)

        def counting_encode(encoder: ConversationEncoder, records: Any) -> Any:
            self.encoded += len(records)
            return encode(encoder, records)

        monkeypatch.setattr(SampleLoader, "samples", counting_samples)
        monkeypatch.setattr(ConversationEncoder, "encode", counting_encode)

    def reset(self) -> None:
        self.loaded = self.encoded = 0


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def make(source: Any, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(B, multiple_of=16), "window": W}
    return mps.stream(source, **settings | options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_tokenises_one_window_at_most(kind: str, counter: Counter, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(N))
    reference = make(source)
    for step in range(0, 60, 3):
        stream = make(source).resume(reference.state(step))
        counter.reset()
        next(stream.batches())
        assert counter.encoded == counter.loaded == W * B


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_sorted_only_the_step_itself(kind: str, counter: Counter, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(N))
    reference = make(source, batching=mps.Pad(B))
    for step in range(0, 60, 7):
        stream = make(source, batching=mps.Pad(B)).resume(reference.state(step))
        counter.reset()
        next(stream.batches())
        assert counter.encoded == counter.loaded == B


def test_a_rank_tokenises_its_own_share_only(counter: Counter) -> None:
    for rank in range(2):
        stream = make(pairs(N), batching=mps.Bucket(1, multiple_of=16), num_shards=2, shard_id=rank)
        counter.reset()
        list(stream.batches())
        assert counter.loaded == N // 2


@pytest.mark.mindspore
def test_through_mindspore_nothing_before_the_window_is_read(counter: Counter) -> None:
    stream = make(pairs(N)).resume(make(pairs(N)).state(30 + 17))
    counter.reset()
    iterator = stream.dataset().create_dict_iterator(num_epochs=1, output_numpy=True)
    delivered = [rows_in(batch) for batch in iterator]
    assert len(delivered) == 13
    assert counter.loaded == 3 * W * B  # windows 3, 4 and 5 of the epoch, the third being the step's own


def test_asking_for_rows_tokenises_one_window_or_none(counter: Counter) -> None:
    stream, unsorted = make(pairs(N)), make(pairs(N), batching=mps.Pad(B))
    counter.reset()
    unsorted.rows(1, 17)
    assert counter.loaded == 0
    stream.rows(1, 17)
    assert counter.loaded == W * B
    stream.rows(1, 16)
    assert counter.loaded == W * B  # the same window


def test_making_a_stream_reads_no_row(counter: Counter) -> None:
    stream = make(pairs(N))
    assert (stream.steps_per_epoch, stream.column_names[0], len(stream.shapes)) == (30, "chosen_input_ids", 8)
    stream.state(3)
    assert counter.loaded == 0


def test_skipped_lines_are_not_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    source = source_of("gz", tmp_path, pairs(N))
    state = make(source, steps_per_epoch=30).state(17)
    parsed = []

    class Counting:
        JSONDecodeError = lines.orjson.JSONDecodeError

        @staticmethod
        def loads(line: Any) -> Any:
            parsed.append(line)
            return real(line)

    real = lines.orjson.loads
    monkeypatch.setattr(lines, "orjson", Counting)
    stream = make(source, steps_per_epoch=30).resume(state)
    next(stream.batches())
    assert len(parsed) == W * B


def test_skipped_rows_are_not_formatted() -> None:
    formatted = []

    def fmt(row: Any) -> Any:
        formatted.append(row)
        return row

    state = make(lambda: iter(pairs(N)), format=fmt, steps_per_epoch=30).state(17)
    formatted.clear()
    stream = make(lambda: iter(pairs(N)), format=fmt, steps_per_epoch=30).resume(state)
    next(stream.batches())
    assert len(formatted) == W * B


def test_the_windows_of_an_epoch_are_tokenised_once(counter: Counter) -> None:
    stream = make(pairs(N))
    counter.reset()
    list(stream.batches())
    assert counter.loaded == N


@pytest.mark.mindspore
def test_two_interleaved_iterators_do_not_tokenise_every_window_anew(counter: Counter) -> None:
    stream = make(pairs(N))
    left, right = stream.batches(0), stream.batches(1)
    counter.reset()
    for _ in zip(left, right, strict=True):
        pass
    assert counter.loaded == 2 * N


def test_a_resume_far_inside_a_large_source_is_immediate(counter: Counter) -> None:
    """100 million rows that nobody holds: finding a step takes no memory and no time that grows with them."""

    class Huge:
        def __len__(self) -> int:
            return 10**8

        def __getitem__(self, row: int) -> Any:
            return token_pairs(1)[0] | {"prompt_ids": [row % 1000]}

    options = {"tokenizer": None, "pad_token_id": 0, "batching": mps.Bucket(8, multiple_of=4), "task": mps.DPO(20)}
    state = make(Huge(), **options).state(3 * 12_500_000 + 11_111_111)
    counter.reset()
    stream = make(Huge(), **options).resume(state)
    batch = next(stream.batches())
    assert counter.loaded == W * 8
    assert batch["chosen_input_ids"].dtype == np.int32


def test_a_source_is_asked_for_each_row_of_the_window_once() -> None:
    class Rows:
        def __init__(self) -> None:
            self.rows, self.asked = pairs(N), list[int]()

        def __len__(self) -> int:
            return N

        def __getitem__(self, row: int) -> Any:
            self.asked.append(row)
            return self.rows[row]

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("a source with random access is not read through")

    source = Rows()
    stream = make(source).resume(make(source).state(30 + 17))
    source.asked.clear()
    next(stream.batches())
    assert len(source.asked) == len(set(source.asked)) == W * B
