"""Streams under load: python benchmarks/load.py --tokenizer ../shared/tokenizers/qwen2_5 --parts klmnop

(k) 10 M rows of text to batches, one epoch; (l) 100 M rows: a length index, plans and look-ups of random steps; (m) a
million steps of `Bucket` and of `Pack`; (n) 8 streams in one process; (o) 200 files where 64 may be open; (p) consumers
that are 100 times slower and 100 times faster than the workers.

Each part runs in a process of its own. Rows are synthetic, in a temporary folder (``--folder``): part (k) needs 1.2 GB
there, part (l) 1.4 GB, and 4 GB of memory. Memory is resident memory that is the process's own, files are entries of
/proc/self/fd; what grows is the slope of a line through all but the first fifth of the points. All parts together take
an hour of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from common import Figure, show
from memory import resident

import ms_prefstream as mps
from ms_prefstream.lengths.index import Measured
from ms_prefstream.lengths.index_file import write_contents

PARTS = "klmnop"
POINTS = 100  # at which memory and files are looked at
_WORDS = (
    "table",
    "river",
    "seven",
    "cloud",
    "engine",
    "paper",
    "green",
    "stone",
    "letter",
    "market",
    "window",
    "yellow",
)


class Gauge:
    """Memory and open files of this process over a run.

    Args:
        steps: How many steps the run has.
    """

    def __init__(self, steps: int) -> None:
        self._every, self._points = max(1, steps // POINTS), list[tuple[int, int, int]]()

    def at(self, step: int) -> None:
        """Looks, if it is time to."""
        if step % self._every == 0:
            self._points.append((step, resident(), len(os.listdir("/proc/self/fd"))))

    def grows(self, of: int) -> float:
        """What a value grows by in a step, without the first fifth of the run: bytes (1) or open files (2)."""
        later = np.array(self._points[len(self._points) // 5 :], np.float64)
        return float(np.polyfit(later[:, 0], later[:, of], 1)[0])

    @property
    def most(self) -> tuple[int, int]:
        """The most bytes and open files."""
        return max(point[1] for point in self._points), max(point[2] for point in self._points)


class Report:
    """The figures of a part, shown as they come."""

    def __init__(self, part: str, as_json: bool) -> None:
        self._part, self._json = part, as_json

    def add(self, what: str, value: float, form: str = ",.1f", target: str = "") -> None:
        show(Figure(part=self._part, what=what, values=[value], form=form, target=target), self._json)

    def grown(self, gauge: Gauge, steps: int, name: str) -> None:
        """What a run of so many steps held and what grew."""
        self.add(f"{name}: MB of memory, at most", gauge.most[0] / 1e6)
        self.add(f"{name}: MB that grow in {steps:,} steps", gauge.grows(1) * steps / 1e6, ",.2f")
        self.add(f"{name}: open files, at most", gauge.most[1], ",.0f")
        self.add(f"{name}: open files that grow in {steps:,} steps", gauge.grows(2) * steps, ",.2f", "0.00")


def write_texts(path: pathlib.Path, rows: int, first: int = 0) -> pathlib.Path:
    """Pairs of a few words, no two alike; one in 200 has equal sides."""

    def line(row: int) -> str:
        chosen = f"{_WORDS[row // 7 % len(_WORDS)]} {'and so ' * (row % 5)}{row}"
        rejected = chosen if row % 200 == 3 else "no"
        return f'{{"prompt":"{row} {_WORDS[row % len(_WORDS)]}?","chosen":"{chosen}","rejected":"{rejected}"}}\n'

    with open(path, "w", encoding="ascii") as file:
        for begin in range(first, first + rows, 100_000):
            file.writelines(map(line, range(begin, min(begin + 100_000, first + rows))))
    return path


def write_tokens(path: pathlib.Path, rows: int) -> pathlib.Path:
    """Tokenized pairs of 4 to 24 tokens a side."""
    with open(path, "w", encoding="ascii") as file:
        file.writelines(
            f'{{"prompt_ids":[{row % 1000}],"chosen_ids":[2{",3" * (3 + row * 7 % 20)}],'
            f'"rejected_ids":[4{",5" * (3 + row * 5 % 13)}]}}\n'
            for row in range(rows)
        )
    return path


def token_stream(source: Any, batching: Any, **options: Any) -> mps.Stream:
    given: dict[str, Any] = {"task": mps.DPO(32), "tokenizer": None, "pad_token_id": 0, "verbose": False} | options
    return mps.stream(source, batching=batching, **given)


def digest(batches: Iterable[Any]) -> str:
    """A hash of all arrays of some batches."""
    found = hashlib.sha256()
    for batch in batches:
        for name, array in batch.items():
            found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def end_to_end(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """(k): one epoch over all rows, each of them accounted for."""
    path, rows = write_texts(folder / "rows.jsonl", options.rows), options.rows
    wall, cpu = time.perf_counter(), time.process_time()
    stream = mps.stream(
        path, task=mps.DPO(64), tokenizer=options.tokenizer, batching=mps.Bucket(32, multiple_of=16), index=None,
        workers=options.workers, verbose=False,
    )  # fmt: skip
    report.add(f"{rows:,} rows of text, {path.stat().st_size / 1e6:,.0f} MB: s to open", time.perf_counter() - wall)
    gauge = Gauge(stream.steps_per_epoch)
    wall, cpu = time.perf_counter(), time.process_time()
    for step, _ in enumerate(stream.batches(0)):
        gauge.at(step)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    name = f"{rows:,} rows of text to batches"
    report.add(f"{name}: rows/s", rows / wall, ",.0f")
    if not options.workers:
        report.add(f"{name}: rows/s of CPU time", rows / cpu, ",.0f")
    report.grown(gauge, stream.steps_per_epoch, name)
    ledger = stream.report.ledger()
    lost = ledger["rows"] - (ledger["delivered"] + ledger["dropped"] + ledger["remainder"] - ledger["repeats"])
    report.add(f"{name}: rows not accounted for", lost + ledger["rows"] - rows, ",.0f", "0")
    report.add(f"{name}: rows dropped", ledger["dropped"], ",.0f")


class Computed:
    """Tokenized rows that are computed from their numbers."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        chosen, rejected = (int(length) - 1 for length in sides_of(np.array([row]))[0])
        return {"prompt_ids": [row % 1000], "chosen_ids": [2] * chosen, "rejected_ids": [4] * rejected}


def sides_of(rows: Any) -> Any:
    """Tokens of both sides of these rows, (n, 2) int32, 8 to 250, of few short and few long rows."""
    mixed = (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    first, second = mixed & np.uint64(0xFFFF), mixed >> np.uint64(16)
    lengths = [8 + (one.astype(np.float64) / 65536) ** 2 * 242 for one in (first, second)]
    return np.stack(lengths, axis=1).astype(np.int32)


def many_rows(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """(l): an index of many rows, and plans with it."""
    rows, path = options.index_rows, folder / "rows.mprefidx"
    source, task = Computed(rows), mps.DPO(256)
    given: dict[str, Any] = {"task": task, "tokenizer": None, "pad_token_id": 0, "verbose": False}
    bare = mps.stream(source, batching=mps.Pad(8), index=None, **given)
    report.add(f"{rows:,} rows, no index: MB of memory", resident() / 1e6)
    _look_up(bare, f"{rows:,} rows, no index, Pad", report, options.look_ups)
    windows = mps.stream(source, batching=mps.Bucket(8, multiple_of=16), index=None, **given)
    _look_up(windows, f"{rows:,} rows, no index, Bucket", report, max(1, options.look_ups // 100))
    child = [sys.executable, __file__, "--child", "index", "--index-rows", str(rows), "--folder", str(folder)]
    begin = time.perf_counter()
    subprocess.run(child, check=True)
    report.add(
        f"length index of {rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB: s to write", time.perf_counter() - begin
    )
    for name, batching in (
        ("Bucket", mps.Bucket(8, multiple_of=16)),
        ("Bucket(max_tokens)", mps.Bucket(max_tokens=4096, multiple_of=16)),
        ("Pack", mps.Pack(2048, batch_size=4)),
    ):
        before, begin = resident(), time.process_time()
        stream = mps.stream(source, batching=batching, index=path, num_shards=8, shard_id=3, **given)
        found = f"{rows:,} rows, index, {name}"
        report.add(f"{found}: s of CPU to open and plan", time.process_time() - begin)
        _look_up(stream, found, report, options.look_ups)
        report.add(f"{found}: MB of memory, as a rank", (resident() - before) / 1e6)
        del stream


def _look_up(stream: mps.Stream, name: str, report: Report, times: int) -> None:
    """Random steps of random epochs: their rows, and their batches."""
    draw, steps = np.random.default_rng(0), stream.steps_per_epoch
    for what, find in (
        ("ms of CPU a look-up of a random step", lambda epoch, step: stream.rows(epoch, step)),
        ("ms of CPU a batch of a random step", lambda epoch, step: next(stream.batches(epoch, step))),
    ):
        spent = []
        for _ in range(times):
            epoch, step = int(draw.integers(3)), int(draw.integers(steps))
            begin = time.process_time()
            find(epoch, step)
            spent.append(1e3 * (time.process_time() - begin))
        report.add(f"{name}: {what}", statistics.median(spent), ",.2f")
        report.add(f"{name}: the same, at most", max(spent), ",.2f")
    begin, batches = time.process_time(), stream.batches(3, steps // 2)
    taken = min(10 * times, steps - steps // 2)
    for _ in range(taken):
        next(batches)
    report.add(f"{name}: ms of CPU a step, in order", 1e3 * (time.process_time() - begin) / taken, ",.2f")


def write_index(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """The index of `Computed` rows, as a pass over them would write it."""
    rows, parts = options.index_rows, []
    stream = mps.stream(
        Computed(rows), task=mps.DPO(256), tokenizer=None, pad_token_id=0, batching=mps.Pad(8), index=None
    )
    for begin in range(0, rows, 1 << 20):
        sides = sides_of(np.arange(begin, min(begin + (1 << 20), rows)))
        sides[:: 1 << 7] = 0  # some rows cannot be used
        verdict = np.where(sides[:, 1] == 0, 64, 0).astype(np.uint8)
        parts.append(Measured(sides, np.where(verdict, -1, sides.max(axis=1)).astype(np.int32), verdict, []))
    write_contents(str(folder / "rows.mprefidx"), parts, stream.data._parts()[0].fingerprint())


def many_steps(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """(m): many steps of a run of many epochs, with flat memory and open files."""
    path, steps = write_tokens(folder / "rows.jsonl", options.run_rows), options.steps
    token_stream(path, mps.Pad(1)).build_index(folder / "rows.mprefidx")
    index = folder / "rows.mprefidx"
    for name, stream in (
        ("Bucket", token_stream(path, mps.Bucket(4, multiple_of=8), index=None)),
        ("Pack", token_stream(path, mps.Pack(128, batch_size=1), index=None, steps_per_epoch=options.run_rows // 5)),
        ("Bucket, index", token_stream(path, mps.Bucket(4, multiple_of=8), index=index)),
        ("Pack, index", token_stream(path, mps.Pack(128, batch_size=1), index=index)),
    ):
        gauge, step, epoch, cpu = Gauge(steps), 0, 0, time.process_time()
        while step < steps:
            for _ in stream.batches(epoch):
                gauge.at(step)
                step += 1
                if step == steps:
                    break
            epoch += 1
        report.add(
            f"{steps:,} steps of {name}, {epoch} epochs: ms of CPU a step",
            1e3 * (time.process_time() - cpu) / steps,
            ",.3f",
        )
        report.grown(gauge, steps, f"{steps:,} steps of {name}")


def many_streams(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """(n): several streams in one process, by turns and in a thread each, against the same streams alone."""
    count, rows = options.streams, options.stream_rows
    paths = [write_texts(folder / f"{number}.jsonl", rows, number * rows) for number in range(count)]

    def stream(number: int) -> mps.Stream:
        return mps.stream(
            paths[number], task=mps.DPO(64), tokenizer=options.tokenizer, batching=mps.Bucket(8, multiple_of=16),
            index=None, seed=number, verbose=False,
        )  # fmt: skip

    before, held = threading.active_count(), list[int]()
    alone = []
    for number in range(count):
        alone.append(digest(stream(number).batches(0)))
        held.append(resident())
    report.add("one stream after another: MB of memory after the first", held[0] / 1e6)
    report.add(f"one stream after another: MB after {count}", held[-1] / 1e6)
    by_turns = _by_turns([stream(number) for number in range(count)])
    report.add(f"{count} streams by turns: MB of memory", resident() / 1e6)
    report.add(f"{count} streams by turns: threads beyond those before", threading.active_count() - before, ",.0f", "0")
    report.add(f"{count} streams by turns: with other bytes than alone", _differ(by_turns, alone), ",.0f", "0")
    streams, found = [stream(number) for number in range(count)], [""] * count

    def take(number: int) -> None:
        found[number] = digest(streams[number].batches(0))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.add(f"{count} streams in {count} threads: MB of memory", resident() / 1e6)
    report.add(
        f"{count} streams in {count} threads: threads that are left", threading.active_count() - before, ",.0f", "0"
    )
    report.add(f"{count} streams in {count} threads: with other bytes than alone", _differ(found, alone), ",.0f", "0")


def _by_turns(streams: list[mps.Stream]) -> list[str]:
    hashes = [hashlib.sha256() for _ in streams]
    for batches in zip(*(stream.batches(0) for stream in streams), strict=True):
        for found, batch in zip(hashes, batches, strict=True):
            for name, array in batch.items():
                found.update(name.encode() + array.tobytes())
    return [found.hexdigest() for found in hashes]


def _differ(some: list[str], others: list[str]) -> int:
    return sum(one != other for one, other in zip(some, others, strict=True))


def many_sources(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """(o): more files than may be open at a time."""
    count = options.sources
    paths = [write_tokens(folder / f"{number:03}.jsonl", 40) for number in range(count)]
    sources: dict[str, Callable[[], Any]] = {
        "a list": lambda: [str(path) for path in paths],
        "a folder": lambda: str(folder),
        "a mix": lambda: mps.mix([(str(path), 1) for path in paths]),
    }
    expected = {
        name: digest(token_stream(made(), mps.Bucket(16, multiple_of=8)).batches(0)) for name, made in sources.items()
    }
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for name, made in sources.items():
        gauge, stream = Gauge(POINTS), token_stream(made(), mps.Bucket(16, multiple_of=8))

        def looked(batches: Iterator[Any], gauge: Gauge = gauge) -> Iterator[Any]:
            for batch in batches:
                gauge.at(0)
                yield batch

        same = digest(looked(stream.batches(0))) == expected[name]
        report.add(f"{count} files as {name}, 64 may be open: open files, at most", gauge.most[1], ",.0f", "< 64")
        report.add(f"{count} files as {name}: with other bytes than without a limit", not same, ",.0f", "0")
        del stream


def consumers(options: argparse.Namespace, folder: pathlib.Path, report: Report) -> None:
    """(p): consumers that take a hundred times and a hundredth of the time that a step takes to make."""
    path, count = write_texts(folder / "rows.jsonl", options.consumer_rows), options.workers or 2

    def stream(workers: int) -> mps.Stream:
        return mps.stream(
            path, task=mps.DPO(64), tokenizer=options.tokenizer, batching=mps.Bucket(16, multiple_of=16), index=None,
            window=16, workers=workers, verbose=False,
        )  # fmt: skip

    alone = stream(0)
    begin, expected = time.perf_counter(), digest(alone.batches(0))
    a_step = (time.perf_counter() - begin) / alone.steps_per_epoch
    report.add("a step in this process: ms", 1e3 * a_step, ",.2f")
    for name, seconds, steps in (
        ("100 times faster", a_step / 100, None),
        ("100 times slower", 100 * a_step, options.slow_steps),
    ):
        made = stream(count)
        first, held, found = dict(next(made.batches(0))), list[int](), hashlib.sha256()
        del first
        begin = time.perf_counter()
        for step, batch in enumerate(made.batches(0)):
            if step == steps:
                break
            for column, array in batch.items():
                found.update(column.encode() + array.tobytes())
            time.sleep(seconds)
            held.append(resident() + sum(_resident_of(child) for child in _children()))
        taken = len(held)
        if steps is not None:
            expected = digest(batch for batch, _ in zip(stream(0).batches(0), range(steps), strict=False))
        what = f"a consumer {name}, {count} workers"
        report.add(f"{what}: ms a step", 1e3 * (time.perf_counter() - begin) / taken, ",.2f")
        report.add(f"{what}: MB of memory of all processes, after half of the steps", held[taken // 2] / 1e6)
        report.add(f"{what}: the same, at most after that", max(held[taken // 2 :]) / 1e6)
        report.add(f"{what}: with other bytes than without workers", found.hexdigest() != expected, ",.0f", "0")
        del made


def _children() -> list[str]:
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def _resident_of(process: str) -> int:
    try:
        status = pathlib.Path("/proc", process, "status").read_text()
    except OSError:  # it has ended
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)


RUNS: dict[str, Callable[[argparse.Namespace, pathlib.Path, Report], None]] = {
    "k": end_to_end,
    "l": many_rows,
    "m": many_steps,
    "n": many_streams,
    "o": many_sources,
    "p": consumers,
    "index": write_index,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="bytes", help="of parts (k), (n) and (p)")
    parser.add_argument("--parts", default=PARTS, help="some of these letters")
    parser.add_argument("--folder", help="where rows are written; a temporary folder if not given")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of part (k)")
    parser.add_argument("--index-rows", type=int, default=100_000_000, help="of part (l)")
    parser.add_argument("--look-ups", type=int, default=300, help="of part (l)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of part (m)")
    parser.add_argument("--run-rows", type=int, default=200_000, help="rows of an epoch of part (m)")
    parser.add_argument("--streams", type=int, default=8, help="of part (n)")
    parser.add_argument("--stream-rows", type=int, default=20_000, help="of part (n)")
    parser.add_argument("--sources", type=int, default=200, help="of part (o)")
    parser.add_argument("--consumer-rows", type=int, default=100_000, help="of part (p)")
    parser.add_argument("--slow-steps", type=int, default=400, help="of part (p)")
    parser.add_argument("--workers", type=int, default=0, help="of part (k), and of (p), where 0 is 2")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each figure")
    parser.add_argument("--repeats", type=int, default=1, help="taken and not used: a run is long enough")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        RUNS[options.child](options, pathlib.Path(options.folder), Report(options.child, True))
        return
    for part in options.parts:
        with tempfile.TemporaryDirectory(prefix="ms_prefstream-load-", dir=options.folder) as folder:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", part, "--folder", folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith('{"part"'):
                        show(Figure(**json.loads(line)), options.json)
            if process.returncode:
                raise SystemExit(f"part ({part}) ended with {process.returncode}; its output is above.")


if __name__ == "__main__":
    main()
