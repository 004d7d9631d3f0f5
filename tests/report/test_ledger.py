"""Conservation: every row of every epoch was delivered, dropped for a reason, or not held by the steps.

A case is drawn from a number: rows of some kinds, a source of them, a task, a batching, an order, a number of ranks,
epochs, and a step at which other ranks take over. Its rows are carried as ``n``, so batches say which rows they hold.
"""

from __future__ import annotations

import gzip
import pathlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from tests.helpers import json_lines
from tests.kinds import ONE_PASS, source_of
from tests.sources.stores import Web

Rows = list[dict[str, Any]]
BAD = ("long", "identical", "empty", "malformed")
SHARDS = 4  # logical ones; every number of ranks divides them


def pair(number: int, kind: str) -> dict[str, Any]:
    row = {
        "n": number,
        "prompt": f"question {number} " + "x " * (number * 7 % 23),
        "chosen": f"yes {number}",
        "rejected": "no",
    }
    changed: dict[str, Any] = {
        "long": {"prompt": "p" * 40, "chosen": "y" * 400, "rejected": "z" * 400},
        "identical": {"rejected": f"yes {number}"},
        "empty": {"chosen": ""},
        "malformed": {"chosen": 7},
    }
    return row | changed.get(kind, {})


def completion(number: int, kind: str) -> dict[str, Any]:
    row = {"n": number, "prompt": f"question {number}", "completion": f"answer {number}", "label": number % 3 > 0}
    return row | {"empty": {"completion": ""}, "malformed": {"prompt": 7}}.get(kind, {})


def steps_of(number: int, kind: str) -> dict[str, Any]:
    row = {"n": number, "prompt": f"question {number}", "completions": ["a", "b"], "labels": [True, number % 2 > 0]}
    return row | {"empty": {"completions": [], "labels": []}, "malformed": {"labels": [True]}}.get(kind, {})


TASKS: dict[str, tuple[Any, Callable[[int, str], dict[str, Any]]]] = {
    "dpo": (mps.DPO(96, truncation="drop"), pair),
    "dpo concat": (mps.DPO(96, layout="concat", labels="shifted"), pair),
    "rlhf": (mps.RLHF(max_prompt_length=64, seq_length=96), pair),
    "kto of pairs": (mps.KTO(96, kl=False), pair),
    "kto": (mps.KTO(96), completion),
    "reward": (mps.Reward(96), pair),
    "reward token": (mps.Reward(96, layout="reward_token", reward_token=256), pair),
    "process-reward": (mps.ProcessReward(96), steps_of),
    "prompts": (mps.Prompts(64, repeat=2), pair),
}
PACKED = ("dpo", "rlhf", "kto of pairs")
SOURCES = (
    "list", "json lines", "two files", "json array", "indexed", "parquet", "gz", "zst", "plain and gz",
    "generator function", "iterable", "mix", "mix of packed files", "followed", "filter", "duplicates",
    "side of a split", "cache", "cache of ranges", "cache with reference", "remote",
)  # fmt: skip
ENCODING = ("task", "tokenizer", "on_bad_row", "carry")
FROM_FRONT = (*ONE_PASS, "mix of packed files", "followed")
CACHES = ("cache", "cache of ranges", "cache with reference")


class Filtered:
    """A format without the rows whose number is divisible by five."""

    name = "filtered"

    def __call__(self, row: Any) -> Any:
        return (mps.formats.auto()(row),) if self.count(row) else ()

    def count(self, row: Any) -> int:
        return int(row["n"] % 5 > 0)

    def __repr__(self) -> str:
        return "Filtered()"


@dataclass
class Case:
    """One run, see the module.

    Attributes:
        source: One of `SOURCES`.
        task: The name of the task.
        open: Makes the source again.
        options: Of all streams.
        rows: The rows of which the source holds records.
        batch: Rows, or packed rows, of a step over all ranks; for a token budget rows of the largest width.
        batching: ``pad``, ``bucket``, ``tokens`` or ``pack``.
        epochs: How many.
        worlds: Ranks before and after the step at which the run resumes.
        resumes: That step, as a share of all.
    """

    source: str
    task: str
    open: Callable[[], Any]
    options: dict[str, Any]
    rows: Rows
    batch: int
    batching: str
    epochs: int
    worlds: tuple[int, int]
    resumes: float
    folder: pathlib.Path = field(repr=False, default=pathlib.Path())

    def streams(self, world: int) -> list[mps.Stream]:
        """The streams of all ranks."""
        size = self.batch // world
        rule: Any = {
            "pad": lambda: mps.Pad(size),
            "bucket": lambda: mps.Bucket(size, multiple_of=16),
            "tokens": lambda: mps.Bucket(max_tokens=size * 200, multiple_of=16),
            "pack": lambda: mps.Pack(256, batch_size=size),
        }[self.batching]()
        return [
            mps.stream(self.open(), batching=rule, num_shards=world, shard_id=rank, **self.options)
            for rank in range(world)
        ]


def drawn(number: int, folder: pathlib.Path, web: Web, workers: bool) -> Case:
    """The case of a number."""
    draw = random.Random(number)
    source = SOURCES[number % len(SOURCES)]
    batching = draw.choice(("pad", "bucket", "pack") + ("tokens",) * (source not in (*FROM_FRONT, "mix")))
    allowed = [name for name in TASKS if name in PACKED or batching != "pack"]
    allowed = [name for name in allowed if name != "kto" or batching != "tokens"]
    if source == "cache with reference":
        allowed, batching = ["dpo"], draw.choice(("pad", "bucket", "tokens"))
    task = draw.choice(allowed)
    count, on_bad_row = draw.randint(48, 90), draw.choice(("raise", "drop"))
    bad = [kind for kind in BAD if kind != "malformed" or on_bad_row == "drop"]
    kinds = [draw.choice(bad) if draw.random() < 0.15 else "good" for _ in range(count)]
    rows = [TASKS[task][1](at, kind) for at, kind in enumerate(kinds)]
    if source == "duplicates":
        for row in rows[1::6]:
            row["prompt"] = rows[0]["prompt"]
    if source == "parquet" or source == "json array":  # a column has one type
        rows = [row for row, kind in zip(rows, kinds, strict=True) if kind != "malformed"]
    indexed = source not in FROM_FRONT and (batching == "tokens" or source == "duplicates" or draw.random() < 0.5)
    indexed = indexed or source in CACHES
    order_by = draw.choice((None, None, "length", "-field:n")) if indexed and batching != "tokens" else None
    if source in (*CACHES, "duplicates") and order_by is not None:
        order_by = "length"
    shuffle: Any = True if batching == "tokens" or order_by else draw.choice((True, "window", False))
    options: dict[str, Any] = {
        "task": TASKS[task][0],
        "tokenizer": "bytes",
        "on_bad_row": on_bad_row,
        "carry": {"n": "int64"},
        "verbose": False,
        "seed": draw.randint(0, 99),
        "window": draw.choice((3, 64)),
        "shuffle": shuffle,
        "order_by": order_by,
        "order_noise": draw.choice((0.0, 0.2)) if order_by else 0.0,
        "drop_remainder": draw.choice([True, False, *(["mask"] if batching in ("pad", "bucket") else [])]),
        "longest_first": batching == "bucket" and shuffle is True and not order_by and draw.random() < 0.3,
        "index": folder / "index.mprefidx" if indexed and source not in CACHES else "auto" if indexed else None,
        "workers": int(workers and draw.random() < 0.15),
    }
    if not indexed or batching == "tokens":
        options["logical_shards"] = SHARDS
    made = Case(
        source=source,
        task=task,
        open=lambda: None,
        options=options,
        rows=rows,
        batch=8 if task == "kto" else draw.choice((4, 8)),
        batching=batching,
        epochs=draw.choice((1, 1, 2, 3)),
        worlds=(draw.choice((1, 2, 4)), draw.choice((1, 2, 4))),
        resumes=draw.choice((0.0, draw.random())),
        folder=folder,
    )
    if batching == "pack" and not indexed:
        options["steps_per_epoch"] = draw.randint(1, max(1, len(rows) // (3 * made.batch)))
    _open(made, draw, web)
    if indexed and source not in CACHES:
        given = {name: options[name] for name in (*ENCODING, "format", "order_by", "cache_dir") if name in options}
        dedup = "prompt" if source == "duplicates" else None
        mps.build_index(made.open(), options["index"], dedup=dedup, verbose=False, **given)
    return made


def _open(case: Case, draw: random.Random, web: Web) -> None:
    """Sets how the source of a case is opened, and the rows that it holds."""
    folder, rows, options = case.folder, case.rows, case.options
    if case.source in ("mix", "mix of packed files"):
        border = draw.randint(len(rows) // 4, len(rows) // 2)
        parts = [json_lines(folder / "a.jsonl", rows[:border]), json_lines(folder / "b.jsonl", rows[border:])]
        if case.source != "mix":
            parts = [_packed(path) for path in parts]
        weights, stop = draw.choice(((1, 2), (0.5, 0.5), (9, 1))), draw.choice(("first", "all"))
        case.open = lambda: mps.mix(list(zip(map(str, parts), weights, strict=True)), stop=stop)
        return
    if case.source == "followed":
        path = json_lines(folder / "rows.jsonl", rows)
        case.open = lambda: mps.follow(path, until=len(rows))
        if case.batching == "pack":
            case.batching, options["drop_remainder"] = "pad", True
            options.pop("steps_per_epoch")
        options["steps_per_epoch"] = max(1, len(rows) // case.batch // case.epochs)
        return
    if case.source == "remote":
        url = web.put("rows.jsonl", json_lines(folder / "rows.jsonl", rows).read_bytes())
        case.open = lambda: url
        options["cache_dir"] = folder / "copies"
        return
    if case.source in ("filter", "duplicates", "side of a split") or case.source in CACHES:
        path = str(json_lines(folder / "rows.jsonl", rows))
        case.open = lambda: path
    if case.source == "filter":
        options["format"] = Filtered()
        case.rows = [row for row in rows if row["n"] % 5]
    elif case.source == "side of a split":
        seed = draw.randint(0, 9)
        sides = mps.split(path, test=0.3, seed=seed)
        held = [{row["n"] for row in side} for side in sides]
        assert len(held[0]) + len(held[1]) == len(held[0] | held[1]) == len(rows)
        side = int(case.batching != "pack" and draw.random() < 0.3)
        case.rows = [row for row in rows if row["n"] in held[side]]
        case.open = lambda: mps.split(path, test=0.3, seed=seed)[side]
    elif case.source in CACHES:
        _write_cache(case, path, draw)
    elif not case.open():
        kind, made = case.source, source_of(case.source, folder, rows)
        case.open = lambda: source_of(kind, folder, rows) if kind in ("generator function", "iterable") else made


def _write_cache(case: Case, path: str, draw: random.Random) -> None:
    options, out = case.options, str(case.folder / "cache")
    encoding = {name: options[name] for name in ENCODING}
    written: dict[str, Any] = {"rows_per_part": draw.choice((7, 20))}
    if case.source == "cache with reference":
        written |= {"reference": lambda batch: (np.zeros(len(batch["chosen_loss_mask"])),) * 2, "reference_id": "none"}
    stream = mps.stream(path, batching=mps.Pad(2), verbose=False, **encoding)
    if case.source == "cache of ranges":
        for part in (1, 2, 3):
            mps.write_cache(stream, out, part_range=(part, 3), **written)
        found = mps.merge(out)
    else:
        found = mps.write_cache(stream, out, **written)
    records = len(stream.data.records)  # type: ignore[arg-type]
    assert found.source_rows == records == found.rows + sum(note["rows"] for note in found.dropped.values())
    case.open, options["tokenizer"] = lambda: out, None


def _packed(path: pathlib.Path) -> pathlib.Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return packed


def truth(case: Case) -> tuple[Counter[int], Counter[str]]:
    """How many usable records each row gives, and how many unusable ones there are by reason; row by row."""
    good, bad = Counter[int](), Counter[str]()
    names = ("task", "carry", "format")
    options = {name: case.options[name] for name in names if name in case.options}
    stream = mps.stream(
        case.rows, batching=mps.Pad(2), tokenizer="bytes", on_bad_row="drop", verbose=False, index=None,
        drop_remainder=False, **options,
    )  # fmt: skip
    first = dict[str, int]()  # prompt -> the row that has it first
    for record in range(len(stream.data.records)):  # type: ignore[arg-type]
        loaded = stream.data.local.load([record])
        if loaded.errors:
            bad[str(loaded.errors[0].reason)] += 1
            continue
        row = int(loaded.columns["n"][0])
        prompt = case.rows[row]["prompt"] if case.source == "duplicates" else ""
        if case.source == "duplicates" and first.setdefault(prompt, row) != row:
            bad["duplicate"] += 1
        else:
            good[row] += 1
    return good, bad


def delivered_by(batch: Any, task: Any) -> list[int]:
    """The carried numbers of the rows of a batch, without what only fills a packed row."""
    carried = np.asarray(batch["n"])
    if "segment_ids" in batch:
        ids = batch.get("pair_ids", batch["segment_ids"])
        return [int(n) for numbers, one in zip(carried, ids, strict=True) for n in numbers[: int(one.max())]]
    return [int(n) for n in carried[:: getattr(task, "repeat", 1)]]


def run(case: Case) -> tuple[list[mps.Stream], list[Any]]:
    """The streams of both parts of the run, and all of their batches."""
    streams = case.streams(case.worlds[0])
    steps = streams[0].steps_per_epoch
    at = int(case.resumes * case.epochs * steps)
    batches = [batch for stream in streams for batch in _between(case, stream, 0, at or case.epochs * steps)]
    if at:
        state = streams[0].state(at)
        later = [stream.resume(state) for stream in case.streams(case.worlds[1])]
        batches += [batch for stream in later for batch in _between(case, stream, at, case.epochs * steps)]
        streams += later
    return streams, batches


def _between(case: Case, stream: mps.Stream, begin: int, end: int) -> Iterator[Any]:
    """The batches of a stream from an absolute step up to another one; each row is compared with its origin."""
    steps = stream.steps_per_epoch
    for epoch in range(begin // steps, -(-end // steps)):
        first = max(begin - epoch * steps, 0)
        last = min(end - epoch * steps, steps)
        made = stream.batches(epoch, first)
        for step in range(first, last):
            batch = next(made)
            if case.source not in FROM_FRONT:
                _check_origins(case, stream, stream.rows(epoch, step, resolved=True).tolist(), batch)
            yield batch


def _check_origins(case: Case, stream: mps.Stream, planned: Sequence[int], batch: Any) -> None:
    """Checks that the row ids of a step are those of its rows, by the file and line that each comes from."""
    origins = [stream.data.records.origin(row) for row in planned]  # type: ignore[union-attr]
    delivered = Counter(delivered_by(batch, stream.task))
    assert sum(delivered.values()) == len(planned)
    if case.source in ("json lines", "filter", "duplicates", "remote", "side of a split"):
        lines = (origin.partition("#")[0].partition(" (")[0].rpartition(":")[2] for origin in origins)
        assert Counter(int(line) - 1 for line in lines) == delivered, (origins, delivered)
    elif case.source not in CACHES:
        raws = [stream.data.records.raw(row) for row in planned]  # type: ignore[union-attr]
        assert Counter(raw["n"] for raw in raws) == delivered


def check(case: Case) -> None:
    """Runs a case and compares its ledger with its batches and with its rows."""
    streams, batches = run(case)
    ledger = streams[0].report.ledger([stream.report for stream in streams[1:]])
    delivered = Counter(row for batch in batches for row in delivered_by(batch, case.options["task"]))
    good, bad = truth(case)
    records = good.total() + bad.total()
    assert ledger["delivered"] == delivered.total()
    assert ledger["rows"] == ledger["delivered"] + ledger["dropped"] + ledger["remainder"] - ledger["repeats"], ledger
    assert ledger["dropped"] == sum(ledger["reasons"].values())
    assert set(delivered) <= set(good), "a row that cannot be used was delivered"
    epochs = 1 if case.source == "followed" else case.epochs
    missing = sum(max(0, epochs * count - delivered[row]) for row, count in good.items())
    again = sum(max(0, count - epochs * good[row]) for row, count in delivered.items())
    mixed = case.source.startswith("mix")
    if case.source not in ("followed", "mix of packed files"):
        assert ledger["rows"] == case.epochs * records
        assert missing <= ledger["remainder"]
        assert again <= ledger["repeats"]
    for reason, count in ledger["reasons"].items():
        assert count <= epochs * bad[reason] or mixed, (reason, ledger, bad)
    if not mixed and case.source != "followed" and (ledger["remainder"] == 0 or case.options["index"]):
        assert ledger["reasons"] == {reason: epochs * count for reason, count in bad.items()}
    if case.options["drop_remainder"] == "mask":
        masked = sum(int(batch["row_mask"].sum()) for batch in batches) // getattr(case.options["task"], "repeat", 1)
        parts = streams[0].report.parts.values() if case.source == "mix" else ()
        again = case.epochs * sum(part.repeats_per_epoch for part in parts)
        assert masked == ledger["delivered"] - ledger["repeats"] + again


@pytest.mark.parametrize("number", range(len(SOURCES)), ids=SOURCES)
def test_every_row_is_accounted_for(number: int, tmp_path: pathlib.Path, web: Web) -> None:
    _try(number, tmp_path, web, workers=False)


@pytest.mark.long
@pytest.mark.parametrize("source", range(len(SOURCES)), ids=SOURCES)
def test_every_row_of_many_runs_is_accounted_for(source: int, tmp_path: pathlib.Path, web: Web) -> None:
    for number in range(source, 25 * len(SOURCES), len(SOURCES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _try(number, folder, web, workers=True)


def _try(number: int, folder: pathlib.Path, web: Web, workers: bool) -> None:
    case = None
    try:
        case = drawn(number, folder, web, workers)
        check(case)
    except mps.NoUsableRowsError:  # a small window of bad rows
        return
    except Exception as error:
        raise AssertionError(f"case {number}: {case}") from error


def test_another_index_replaces_the_counts_of_the_first(tmp_path: pathlib.Path) -> None:
    rows = [pair(number, "identical" if number == 5 else "good") for number in range(20)]
    rows[7]["prompt"] = rows[2]["prompt"]
    path = json_lines(tmp_path / "rows.jsonl", rows)
    stream = mps.stream(path, task=mps.DPO(96), tokenizer="bytes", batching=mps.Pad(2), verbose=False)
    for dedup, dropped in (("prompt", {"identical": 1, "duplicate": 1}), (None, {"identical": 1})):
        stream.build_index(dedup=dedup)
        assert stream.report.dropped == dropped == {reason: len(stream.report.origins[reason]) for reason in dropped}
        assert stream.report.read == sum(dropped.values())
    assert len(list(stream.batches(0))) == stream.steps_per_epoch
    assert stream.report.ledger() == {
        "rows": 20, "delivered": 18, "dropped": 1, "reasons": {"identical": 1}, "remainder": 1, "repeats": 0
    }  # fmt: skip
