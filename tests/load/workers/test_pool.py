"""Worker processes give what one process gives, wherever rows come from and whatever program starts them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, PrefStreamError, SourceError
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats import resolve_format
from ms_prefstream.lengths.index import measure
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.records import MixedRecords
from ms_prefstream.load.workers.parent_rows import ParentRows, is_read_in_parent
from ms_prefstream.load.workers.pool import CHUNK, LoaderPool
from ms_prefstream.load.workers.recipe import pack_recipe, unpack_recipe
from ms_prefstream.sources import open_source
from tests.pools import gone, pairs, plain, recipe, shuffled, together, wait_ready, write

ROOT = pathlib.Path(__file__).parents[3]
COUNT = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("pool") / "pairs.jsonl", pairs(COUNT))


@pytest.fixture(scope="module", params=[1, 2])
def pool(request: pytest.FixtureRequest, data: str, chatml_dir: pathlib.Path) -> Iterator[LoaderPool]:
    with LoaderPool(recipe(data, tokenizer=chatml_dir), request.param) as pool:
        wait_ready(pool)
        yield pool


def test_every_number_of_workers_gives_the_same_samples_errors_and_notes(
    pool: LoaderPool, data: str, chatml_dir: pathlib.Path
) -> None:
    local = recipe(data, tokenizer=chatml_dir).loader()
    rows = [*shuffled(COUNT), 3, 3, 0]
    expected = local.load(rows)
    assert sum(one.sample is not None for one in expected) > 150
    assert {one.error.reason for one in expected if one.error} >= {"identical", "missing_field", "bad_type"}
    assert plain(pool.load(rows)) == plain(expected)
    assert len(pool.load([])) == 0
    tasks = [pool.spread(rows[begin : begin + 7]) for begin in range(0, 70, 7)]
    for begin, found in reversed(list(zip(range(0, 70, 7), tasks, strict=True))):
        assert plain(pool.collect(found)) == plain(expected.take(range(begin, begin + 7)))


def test_records_can_be_sent_instead_of_row_ids(pool: LoaderPool, data: str, chatml_dir: pathlib.Path) -> None:
    made = recipe(data, tokenizer=chatml_dir)
    assert made.records is not None
    found = made.records.read(range(COUNT))
    assert any(isinstance(record, RowError) for record in found)
    assert plain(pool.collect(pool.spread_records(found))) == plain(made.loader().samples(found))


def test_rows_are_measured_where_they_are_loaded(pool: LoaderPool, data: str, chatml_dir: pathlib.Path) -> None:
    chunks = [range(begin, begin + 20) for begin in range(0, COUNT, 20)]
    loader = recipe(data, tokenizer=chatml_dir).loader()
    found = list(pool.measured(chunks))
    assert len(found) == len(chunks)
    for one, chunk in zip(found, chunks, strict=True):
        expected = measure(loader.load(chunk))
        for array, wanted in zip(one[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(array, wanted, strict=True)
        assert [(at, error.args) for at, error in one.errors] == [(at, error.args) for at, error in expected.errors]


def test_cancelled_tasks_cost_nothing_and_others_stay_right(pool: LoaderPool) -> None:
    tasks = pool.spread([*range(COUNT)] * 20)
    pool.cancel(tasks[1:])
    assert set(pool._tasks._waiting) <= {tasks[0]}
    assert len(pool.collect(tasks[:1])) == CHUNK
    with pytest.raises(CancelledError):
        pool.collect(tasks[-1:])
    abandoned = pool.measured(range(begin, begin + 10) for begin in range(0, COUNT, 10))
    next(abandoned)
    abandoned.close()
    assert not pool._tasks._waiting
    assert len(pool.load(range(130))) == 130


class Counted:
    """Two records for every second row, none for every fifth."""

    def __init__(self) -> None:
        self.suffix = "!"

    def __call__(self, row: Any) -> list[Any]:
        return [{**row, "prompt": f"{row['prompt']}{self.suffix}{k}"} for k in range(self.count(row))]

    def count(self, row: Any) -> int:
        number = int(row["margin"] * 7 + 0.5)
        return 0 if number % 5 == 0 else 1 + number % 2


class Guarded:
    """Rows of the user's own class, which can be read in this process alone."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.lock = threading.Lock()
        self.rows = rows
        self.readers: set[int] = set()
        self.broken = -1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        with self.lock:
            self.readers.add(os.getpid())
            if row == self.broken:
                raise ValueError("a broken row")
            return self.rows[row]


@pytest.mark.slow
def test_rows_in_memory_are_read_here_and_any_callable_travels(data: str) -> None:
    rows = Guarded(pairs(COUNT, bad=False))
    made = recipe([rows, data], format=Counted())  # a source in memory and a file, one behind the other
    assert made.records is not None
    count = len(made.records)
    wanted = shuffled(count)
    expected = made.loader().load(wanted)
    assert {one.error.origin for one in expected if one.error} > set()
    with LoaderPool(made, 2) as pool:
        wait_ready(pool)
        rows.readers.clear()
        assert plain(pool.load(wanted)) == plain(expected)
        assert rows.readers == {os.getpid()}
        rows.broken = 299
        with pytest.raises(SourceError, match="row 299 of Guarded: reading it raised ValueError: a broken row"):
            pool.load(range(count))
        rows.broken = -1
        assert plain(pool.load(wanted[:100])) == plain(expected.take(range(100)))  # the pool goes on


def test_a_task_carries_each_row_once_whatever_its_records_and_the_parts_of_a_mix(data: str) -> None:
    rows = Guarded(pairs(COUNT, bad=False))
    mixed = mps.mix([(rows, 1), (data, 1)])
    records = MixedRecords(mixed, [resolve_format(Counted()), resolve_format("auto")])
    made = dataclasses.replace(recipe(data), records=records)
    first = records.mixture.firsts[1]
    sent = ParentRows(records).read([3, first, 2, 3, first + 1, 2])
    assert {number: set(pickle.loads(rows)) for number, rows in sent.items()} == {
        0: {records.parts()[0][0].locate(row)[0] for row in (2, 3)}  # type: ignore[union-attr]  # it expands rows
    }
    wanted = [*shuffled(len(records)), 3, 3]
    expected = made.loader().load(wanted)
    with LoaderPool(made, 2) as pool:
        wait_ready(pool)
        rows.readers.clear()
        assert plain(pool.load(wanted)) == plain(expected)
        assert rows.readers == {os.getpid()}
        assert list(pool.calls(origins_of, [range(5), range(first, first + 5)], list)) == [
            [records.origin(row) for row in chunk] for chunk in (range(5), range(first, first + 5))
        ]


def origins_of(loader: SampleLoader, rows: range) -> list[str]:
    """The origins of rows, as a worker knows them once it has loaded them."""
    loader.load(rows)
    return [loader.origin(row) for row in rows]


def test_a_row_that_comes_twice_in_a_task_may_be_changed_by_the_format() -> None:
    def change(row: Any) -> Any:
        row["prompt"] += "!"
        return row

    made = recipe(pairs(10, bad=False), format=change)
    with LoaderPool(made, 1) as pool:
        wait_ready(pool)
        assert plain(pool.load([4, 4, 5, 4])) == plain(made.loader().load([4, 4, 5, 4]))


class Exclusive:
    """Rows that take a while to read, and must not be read by two threads at once."""

    def __init__(self, rows: list[Any]) -> None:
        self.name, self.rows = "exclusive", rows
        self.readers = self.most = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        self.readers += 1
        self.most = max(self.most, self.readers)
        time.sleep(0.002)
        self.readers -= 1
        return self.rows[row]


class ExclusiveSource(Exclusive):
    """The same as a source of a class of its own."""

    def read(self, rows: Sequence[int]) -> list[Any]:
        return [self[row] for row in rows]

    def origin(self, row: int) -> str:
        return f"row {row}"

    def fingerprint(self) -> str:
        return "exclusive"


@pytest.mark.parametrize("kind", [Exclusive, ExclusiveSource])
def test_what_is_in_memory_is_read_by_one_thread_at_a_time(kind: type[Exclusive]) -> None:
    """While workers start, the thread that waits loads rows itself; other threads read those for the workers."""
    rows = kind(pairs(200, bad=False))
    made = recipe(rows)
    with LoaderPool(made, 2) as pool:
        wait_ready(pool)
        tasks = pool.spread(range(200))
        here = made.loader().load(range(200))
        assert plain(pool.collect(tasks)) == plain(here)
    assert rows.most == 1


class Threaded(ExclusiveSource):
    """A source that reads another one with threads of its own."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__(rows)
        self.inner = open_source(rows)

    def read(self, rows: Sequence[int]) -> list[Any]:
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            return [row for (row,) in threads.map(lambda row: self.inner.read([row]), rows)]


def test_a_source_may_read_others_with_threads_of_its_own() -> None:
    rows = pairs(40, bad=False)
    made = recipe(Threaded(rows))
    with LoaderPool(made, 2) as pool:
        wait_ready(pool)
        assert plain(pool.load(range(40))) == plain(recipe(rows).loader().load(range(40)))


def test_lambdas_and_closures_travel_and_may_print(capfd: pytest.CaptureFixture[str]) -> None:
    ending = "?"

    def ask(row: Any) -> Any:
        print("asked", flush=True)
        return {**row, "prompt": row["prompt"] + ending}

    made = recipe(pairs(100, bad=False), format=functools.partial(lambda row, then: then(row), then=ask))
    with LoaderPool(made, 1) as pool:
        wait_ready(pool)
        assert plain(pool.load(range(100))) == plain(made.loader().load(range(100)))
    captured = capfd.readouterr()
    assert captured.err.count("asked") == 100  # the workers', which keep their stdout for the parent
    assert captured.out.count("asked") == 100  # this process's own


def test_workers_load_neither_mindspore_nor_mindformers() -> None:
    def look(row: Any) -> Any:
        raise RowError(Reason.TIE, str(sorted({"mindspore", "mindformers", "ms_prefstream"} & set(sys.modules))))

    with LoaderPool(recipe(pairs(10), format=look), 1) as pool:
        wait_ready(pool)
        (found,) = pool.load([0])
    assert found.error is not None
    assert found.error.problem == "['ms_prefstream']"


@pytest.mark.parametrize("given", [None, "3"])
def test_workers_encode_with_one_thread_unless_the_user_says_so(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAYON_NUM_THREADS", given)

    def look(row: Any) -> Any:
        raise RowError(Reason.TIE, os.environ["RAYON_NUM_THREADS"])

    with LoaderPool(recipe(pairs(10), format=look), 1) as pool:
        wait_ready(pool)
        (found,) = pool.load([0])
    assert found.error is not None
    assert found.error.problem == (given or "1")


def test_what_cannot_be_sent_is_refused_by_name() -> None:
    lock = threading.Lock()

    def locked(row: Any) -> Any:
        with lock:
            return row

    with pytest.raises(
        OptionError, match=r"workers=2 sends the format mapped\(.*locked \w{8}\) to other processes.*lock"
    ):
        LoaderPool(recipe(pairs(10), format=locked), 2)


def test_errors_of_a_task_arrive_and_the_pool_goes_on() -> None:
    def leave(row: Any) -> Any:
        if row["prompt"].startswith("prompt 7 "):
            sys.exit("enough")
        return row

    rows = pairs(100, bad=False)
    rows[99]["margin"] = threading.Lock()
    made = recipe(rows, format=leave, tokenizer=None)
    with LoaderPool(made, 1) as pool:
        wait_ready(pool)
        with pytest.raises(PrefStreamError, match=r"failed with SystemExit: enough(.|\n)*Traceback(.|\n)*in leave"):
            pool.load(range(64))
        with pytest.raises(SourceError, match=r"rows of list cannot be sent to worker processes: TypeError.*workers=0"):
            pool.load([98, 99])
        with pytest.raises(OptionError, match="tokenizer=None is for rows that are already tokenized"):
            pool.load([0])


def test_whoever_waits_before_a_worker_is_ready_loads_by_itself(data: str) -> None:
    made = recipe(data)
    with LoaderPool(made, 2) as pool:
        pool._tasks.ready = False
        assert plain(pool.load(range(50))) == plain(made.loader().load(range(50)))
        wait_ready(pool)
        assert plain(pool.load(range(50))) == plain(made.loader().load(range(50)))


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", 10**21])
def test_the_number_of_workers_is_checked(workers: Any, data: str) -> None:
    with pytest.raises(OptionError, match="workers is"):
        LoaderPool(recipe(data), workers)


def test_a_closed_pool_says_so(data: str) -> None:
    pool = LoaderPool(recipe(data), 1)
    pool.close()
    pool.close()
    with pytest.raises(PrefStreamError, match="were closed"):
        pool.load([0])
    assert pool._processes == []


def test_the_index_of_a_large_file_is_shared_and_not_sent(tmp_path: pathlib.Path) -> None:
    row = pairs(1, bad=False)
    made = recipe(write(tmp_path / "many.jsonl", row * 20_000))
    with pack_recipe(made, 1).file as file:
        found, _ = unpack_recipe(file.fileno())
    starts = found.records.source._index[0][0].starts  # type: ignore[union-attr]
    assert len(starts) == 20_001
    assert not starts._low.flags.owndata
    assert not starts._low.flags.writeable
    with LoaderPool(made, 1) as pool:
        wait_ready(pool)
        assert plain(pool.load([19_999, 0])) == plain(made.loader().load([19_999, 0]))


def test_what_stays_in_the_parent(data: str) -> None:
    class Own:
        name = "own"
        __len__ = read = origin = fingerprint = lambda self: 0

    assert is_read_in_parent(open_source(pairs(3)))
    assert is_read_in_parent(open_source(Own()))
    assert not is_read_in_parent(open_source(data))
    assert is_read_in_parent(open_source([data, Own()]))


SCRIPT = f"""
import sys
from ms_prefstream import DPO
from ms_prefstream.load.workers.pool import LoaderPool
from tests.pools import pairs, plain, recipe, wait_ready
print("started", flush=True)
suffix = " more"
made = recipe(pairs(100), format=lambda row: {{**row, "prompt": str(row["prompt"]) + suffix}})
pool = LoaderPool(made, 2)
wait_ready(pool)
assert plain(pool.load(range(100))) == plain(made.loader().load(range(100)))
print("equal", {CHUNK}, *[worker.process.pid for worker in pool._processes])
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["script", "stdin"])
def test_programs_without_main_guard_and_from_stdin_work_and_leave_nothing_behind(
    way: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *(["train.py"] if way == "script" else ["-"])],
        input=SCRIPT if way == "stdin" else None,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "started"  # once: no worker runs the program again
    assert lines[1].startswith(f"equal {CHUNK} ")
    assert len(lines) == 2
    assert gone([int(pid) for pid in lines[1].split()[2:]])


@pytest.mark.long  # importing that package takes seconds, here and in the worker
def test_rows_of_the_datasets_package_travel_by_file_or_by_row(tmp_path: pathlib.Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(pairs(80, bad=False))
    dataset.save_to_disk(str(tmp_path / "saved"))
    for source, sent in ((dataset, 1), (str(tmp_path / "saved"), 0)):
        made = recipe(source)
        assert len(pack_recipe(made, 1).parent_rows.sources) == sent
        with LoaderPool(made, 1) as pool:
            wait_ready(pool)
            assert plain(pool.load(range(80))) == plain(made.loader().load(range(80)))


@pytest.mark.parametrize("source", ["list", "file", "generator"])
def test_a_stream_with_workers_gives_the_batches_of_one_without(source: str, data: str) -> None:
    def make(workers: int) -> mps.Stream:
        sources = {"list": pairs(COUNT), "file": data, "generator": lambda: iter(pairs(COUNT))}
        return mps.stream(
            sources[source],
            task=mps.DPO(100),
            tokenizer="bytes",
            format=lambda row: {**row, "prompt": f"Q: {row['prompt']}"},
            batching=mps.Bucket(4, multiple_of=8),
            window=8,
            on_bad_row="drop",
            workers=workers,
        )

    alone = make(0)
    for workers in (1, 2):
        shared = make(workers)
        if workers == 2:
            assert shared.data.pool is not None
            wait_ready(shared.data.pool)
        for epoch in range(2):
            for found, expected in itertools.zip_longest(shared.batches(epoch), alone.batches(epoch)):
                assert list(found) == list(expected)
                for name in expected:
                    np.testing.assert_array_equal(found[name], expected[name], strict=True)
        assert shared.report.dropped == alone.report.dropped


@pytest.mark.slow
def test_a_worker_leaves_calls_to_others_that_have_nothing_to_do(data: str, tmp_path: pathlib.Path) -> None:
    """Or one writes both parts of a cache while the other looks on."""
    arguments = [(str(tmp_path), number, 2) for number in range(2)]
    with LoaderPool(recipe(data), 2) as pool:
        assert list(pool.calls(together, arguments, lambda argument: ())) == [2, 2]
