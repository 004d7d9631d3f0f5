"""Digests of what the library delivers and writes: one SHA-256 per named case, kept in digests.json.

Input: the bundled pairs and the tokenizer ``"bytes"``. A case yields the batches of two epochs, or a saved state, the
files of a cache and so on. A change of behaviour on purpose is recorded by hand, never by a test run:

    python -m tests.golden.digests            # shows which cases differ from digests.json
    python -m tests.golden.digests --write    # records them; say in the commit message why they changed
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import ms_prefstream as mps
from ms_prefstream.demo import data_path

STORED = pathlib.Path(__file__).with_name("digests.json")
CASES: dict[str, Callable[[pathlib.Path], Iterable[Any]]] = {}
EPOCHS = 2
LENGTH = 192  # some bundled pairs are longer, so that truncation is covered
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
JINJA = TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"

TASKS: dict[str, Any] = {
    "dpo": mps.DPO(LENGTH),
    "dpo shifted": mps.DPO(LENGTH, labels="shifted"),
    "dpo concat": mps.DPO(LENGTH, layout="concat"),
    "dpo concat shifted": mps.DPO(LENGTH, layout="concat", labels="shifted"),
    "reward": mps.Reward(LENGTH),
    "reward token": mps.Reward(LENGTH, layout="reward_token", reward_token="<|endoftext|>"),
    "rlhf": mps.RLHF(64, LENGTH),
}
PACKABLE = ("dpo", "dpo shifted", "reward token", "rlhf")
RULES: dict[str, Any] = {
    "pad": mps.Pad(4),
    "pad to 200": mps.Pad(4, length=200),
    "multiple_of": mps.Bucket(4, multiple_of=32),
    "multiple_of, extra": mps.Bucket(4, multiple_of=32, extra=1),
    "boundaries": mps.Bucket(4, boundaries=(48, 96, 160, 192)),
    "max_shapes": mps.Bucket(4, max_shapes=3, round_to=8),
}
BUDGET = mps.Bucket(max_tokens=1536, multiple_of=32)
PACK = mps.Pack(2 * LENGTH, max_segments=9, batch_size=2)
ORDERS: dict[str, dict[str, Any]] = {
    "window order": {"shuffle": "window", "window": 3},
    "source order": {"shuffle": False, "window": 4},
    "other seed": {"seed": 7, "window": 1},
    "repeats": {"drop_remainder": False, "window": 5},
    "longest first": {"longest_first": True, "window": 2},
    "two shards": {"logical_shards": 2, "window": 2},
}


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 over batches (names, dtypes, shapes, bytes), arrays, bytes and plain values, in order."""
    total = hashlib.sha256()
    for part in parts:
        named = part.items() if isinstance(part, dict) and _is_batch(part) else [("", part)]
        for name, value in named:
            if isinstance(value, np.ndarray):
                total.update(f"{name} {value.dtype.str} {value.shape} ".encode())
                total.update(value.tobytes())
            else:
                content = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
                total.update(b"%d %s" % (len(content), content))
    return total.hexdigest()


def _is_batch(part: dict[Any, Any]) -> bool:
    return bool(part) and all(isinstance(value, np.ndarray) for value in part.values())


def rows_file(folder: pathlib.Path) -> str:
    """A copy of the bundled pairs, so that an index can be written beside it."""
    path = folder / "pairs.jsonl"
    if not path.exists():
        shutil.copyfile(data_path(), path)
    return str(path)


def bundled_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in pathlib.Path(data_path()).read_text("utf-8").splitlines()]


def make(source: Any, task: str = "dpo", rule: Any = RULES["multiple_of"], **options: Any) -> mps.Stream:
    """A stream with the tokenizer ``"bytes"`` and small windows, unless options say otherwise."""
    settings: dict[str, Any] = {"tokenizer": "bytes", "seed": 3, "window": 4, **options}
    if isinstance(rule, mps.Pack) and settings.get("index", "auto") is None:
        settings["steps_per_epoch"] = 9
    return mps.stream(source, task=TASKS[task], batching=rule, **settings)


def epochs(stream: mps.Stream, first: int = 0) -> Iterator[Any]:
    """What is known before the first batch, then the batches of two epochs."""
    yield [stream.column_names, stream.shapes, stream.steps_per_epoch]
    for epoch in range(first, first + EPOCHS):
        yield from stream.batches(epoch)


def case(name: str) -> Callable[[Callable[[pathlib.Path], Iterable[Any]]], Callable[[pathlib.Path], Iterable[Any]]]:
    """Registers a function (empty folder -> parts to digest) under a name."""

    def register(function: Callable[[pathlib.Path], Iterable[Any]]) -> Callable[[pathlib.Path], Iterable[Any]]:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return register


def planned(name: str, task: str, rule: Any, indexed: bool, ranks: int = 1, **options: Any) -> None:
    """Registers the batches, row ids and report of a stream of the bundled file, on each of its ranks."""

    @case(name)
    def parts(folder: pathlib.Path) -> Iterator[Any]:
        source = rows_file(folder)
        if indexed:
            make(source, task, RULES["pad"]).build_index()
        settings = {"index": "auto" if indexed else None, **options}
        for rank in range(ranks):
            shards = {"num_shards": ranks, "shard_id": rank} if ranks > 1 else {}
            stream = make(source, task, rule, **shards, **settings)
            yield from epochs(stream)
            for step in range(0, stream.steps_per_epoch, 3):
                yield stream.rows(1, step)
            report = stream.report.as_dict()
            del report["tokenizer"]  # words for people
            yield json.loads(json.dumps(report).replace(str(folder), ""))


for _task in TASKS:
    for _rule, _batching in RULES.items():
        planned(f"{_task}, {_rule}", _task, _batching, indexed=False)
        planned(f"{_task}, {_rule}, index", _task, _batching, indexed=True)
    planned(f"{_task}, max_tokens, index", _task, BUDGET, indexed=True)
for _task in PACKABLE:
    planned(f"{_task}, pack", _task, PACK, indexed=False)
    planned(f"{_task}, pack, index", _task, PACK, indexed=True)

_KINDS: dict[str, tuple[Any, bool]] = {
    "pad": (RULES["pad"], False),
    "bucket": (RULES["multiple_of"], False),
    "bucket, index": (RULES["multiple_of"], True),
    "max_tokens, index": (BUDGET, True),
    "pack": (PACK, False),
    "pack, index": (PACK, True),
}
for _kind, (_batching, _indexed) in _KINDS.items():
    for _order, _options in ORDERS.items():
        if _kind.startswith("max_tokens") and _options.get("shuffle", True) is not True:
            continue  # a budget brings rows of like length together from the whole source
        if "longest_first" in _options and not _kind.startswith("bucket"):
            continue  # only windows that are sorted by length have a longest row
        planned(f"{_kind}, {_order}", "dpo", _batching, _indexed, **_options)
    planned(f"{_kind}, two ranks", "dpo", _batching, _indexed, ranks=2)
    planned(f"{_kind}, two ranks of four shards", "dpo", _batching, _indexed, ranks=2, logical_shards=4)
    planned(f"{_kind}, workers", "dpo", _batching, _indexed, workers=2)

TEXTS: dict[str, dict[str, Any]] = {
    "no template": {"template": None, "on_bad_row": "drop"},
    "jinja template": {"template": JINJA},
    "inference boundary": {"boundary": "inference"},
    "no template, inference boundary": {"template": None, "boundary": "inference", "on_bad_row": "drop"},
    "pad id": {"pad_token_id": 0},
}
for _name, _options in TEXTS.items():
    for _task in ("dpo", "reward token", "rlhf"):
        planned(f"{_task}, {_name}", _task, RULES["multiple_of"], indexed=False, **_options)


@case("truncation")
def _truncation(folder: pathlib.Path) -> Iterator[Any]:
    for how in ("prompt_left", "response_right", "drop"):
        for task in (mps.DPO(128, truncation=how), mps.DPO(128, max_prompt_length=64, truncation=how)):
            yield from epochs(
                mps.stream(rows_file(folder), task=task, tokenizer="bytes", batching=mps.Pad(2), index=None)
            )


@case("margin")
def _margin(folder: pathlib.Path) -> Iterator[Any]:
    rows = [{**row, "margin": number / 8} for number, row in enumerate(bundled_rows())]
    for task in (mps.DPO(LENGTH, margin=True), mps.Reward(LENGTH, margin=True)):
        yield from epochs(mps.stream(rows, task=task, tokenizer="bytes", batching=mps.Bucket(4, multiple_of=32)))


@case("tokenized rows")
def _tokenized(folder: pathlib.Path) -> Iterator[Any]:
    rows = [
        {"prompt_ids": [1, 2, row], "chosen_ids": [3] * (1 + row % 7), "rejected_ids": [4] * (1 + row % 5)}
        for row in range(50)
    ]
    yield from epochs(make(rows, tokenizer=None, pad_token_id=0))


@case("map function")
def _mapped(folder: pathlib.Path) -> Iterator[Any]:
    def plain(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name][-1]["content"] for name in ("prompt", "chosen", "rejected")}

    yield from epochs(make(bundled_rows(), format=plain))


@case("dropped rows")
def _dropped(folder: pathlib.Path) -> Iterator[Any]:
    rows: list[Any] = bundled_rows()
    rows[5] = {"prompt": "x"}
    rows[11] = {**rows[11], "rejected": rows[11]["chosen"]}
    rows[20] = {"prompt": "why?", "chosen": "", "rejected": "no"}
    rows[33] = {"prompt": 3, "chosen": "a", "rejected": "b"}
    stream = make(rows, on_bad_row="drop", quarantine=folder / "bad.jsonl")
    yield from epochs(stream)
    report = stream.report.as_dict()
    yield [report["dropped"], report["origins"], report["read"], report["repeats"]]


def _parts(folder: pathlib.Path, one_pass: bool) -> list[mps.Part]:
    rows = bundled_rows()
    short = folder / "short.jsonl"
    short.write_text("".join(json.dumps(row) + "\n" for row in rows[50:]), "utf-8")
    first: Any = (lambda: iter(rows[:50])) if one_pass else rows[:50]
    return [mps.Part(first, 3, name="long"), mps.Part(short, 1, name="short")]


@case("mix")
def _mix(folder: pathlib.Path) -> Iterator[Any]:
    stops: tuple[Any, ...] = ("first", "all")
    for stop in stops:
        stream = make(mps.mix(_parts(folder, False), stop=stop))
        yield from epochs(stream)
        yield [part["read"] for part in stream.report.as_dict()["parts"].values()]


@case("mix with a one-pass part")
def _mix_one_pass(folder: pathlib.Path) -> Iterator[Any]:
    yield from epochs(make(mps.mix(_parts(folder, True), stop="all"), window=3))


@case("mix by size")
def _mix_by_size(folder: pathlib.Path) -> Iterator[Any]:
    rows = bundled_rows()
    yield from epochs(make(mps.mix([rows[:50], rows[50:]], temperature=2.0)))


@case("one pass")
def _one_pass(folder: pathlib.Path) -> Iterator[Any]:
    rows = bundled_rows()
    for options in ({}, {"shuffle": False}, {"drop_remainder": False}, {"steps_per_epoch": 7}, {"workers": 2}):
        yield from epochs(make(lambda: iter(rows), **options))


@case("one pass, two ranks")
def _one_pass_ranks(folder: pathlib.Path) -> Iterator[Any]:
    rows = bundled_rows()
    for rank in range(2):
        yield from epochs(make(lambda: iter(rows), num_shards=2, shard_id=rank))


@case("one pass, pack")
def _one_pass_pack(folder: pathlib.Path) -> Iterator[Any]:
    rows = bundled_rows()
    yield from epochs(make(lambda: iter(rows), rule=PACK, steps_per_epoch=9))


@case("resumed")
def _resumed(folder: pathlib.Path) -> Iterator[Any]:
    source = rows_file(folder)
    halves = [
        (RULES["pad"], mps.Pad(2)),
        (RULES["multiple_of"], mps.Bucket(2, multiple_of=32)),
        (PACK, mps.Pack(2 * LENGTH, max_segments=9)),
    ]
    for rule, half in halves:
        whole = make(source, rule=rule, index=None, logical_shards=2)
        state = json.loads(json.dumps(whole.state(whole.steps_per_epoch + 5)))
        for rank in range(2):  # of the two ranks that go on, each has half a step of the run before
            stream = make(source, rule=half, index=None, num_shards=2, shard_id=rank, logical_shards=2)
            yield from stream.resume(state).batches()
            yield from stream.batches(2)


@case("resumed, one pass")
def _resumed_one_pass(folder: pathlib.Path) -> Iterator[Any]:
    rows = bundled_rows()
    state = make(lambda: iter(rows)).state(13)
    yield state
    yield from make(lambda: iter(rows)).resume(state).batches()


@case("states")
def _states(folder: pathlib.Path) -> Iterator[Any]:
    """Saved states of planned streams: every field, in order."""
    source = rows_file(folder)
    rules = {**RULES, "pack": PACK}
    for task in TASKS:
        for name, rule in rules.items():
            if name != "pack" or task in PACKABLE:
                yield list(make(source, task, rule, index=None).state(30).items())
    for options in ORDERS.values():
        yield list(make(source, index=None, **options).state(1).items())
    make(source).build_index()
    for rule in (RULES["multiple_of"], BUDGET, PACK):
        yield list(make(source, rule=rule).state(3).items())
    yield list(make(mps.mix(_parts(folder, False))).state(3).items())
    yield list(make(bundled_rows(), format="messages", template=None, boundary="inference").state(3).items())


@case("length index")
def _length_index(folder: pathlib.Path) -> Iterator[Any]:
    for task in TASKS:
        index = make(rows_file(folder), task).build_index(folder / f"{task}.mprefidx")
        yield pathlib.Path(index.path).read_bytes()


def _cache_files(out: pathlib.Path) -> Iterator[Any]:
    for path in sorted(out.iterdir()):
        yield path.name
        if path.suffix == ".db":  # SQLite writes its own version into the file
            connection = sqlite3.connect(path)
            yield list(connection.iterdump())
            connection.close()
        elif path.suffix == ".json":
            manifest = json.loads(path.read_text("utf-8"))
            del manifest["checksum"], manifest["about"]["source"], manifest["about"]["library"], manifest["library"]
            for name, entry in manifest["files"].items():
                if name.endswith(".db"):
                    del entry["sha256"], entry["bytes"]
            yield manifest
        else:
            yield path.read_bytes()


def _logps(batch: Any) -> tuple[Any, Any]:
    """Whole numbers, so that no sum depends on the order of its terms."""
    chosen, rejected = ((batch[f"{side}_input_ids"] * batch[f"{side}_loss_mask"]).sum(1) for side in SIDES)
    return -chosen.astype(np.float64), -rejected.astype(np.float64)


SIDES = ("chosen", "rejected")


@case("cache")
def _cache(folder: pathlib.Path) -> Iterator[Any]:
    for task in TASKS:
        out = folder / task
        mps.write_cache(make(rows_file(folder), task), out, rows_per_part=30)
        yield from _cache_files(out)
        yield from epochs(make(str(out), task, tokenizer=None))


LATER: dict[str, Any] = {
    "kto": mps.KTO(LENGTH),
    "kto without kl": mps.KTO(LENGTH, kl=False),
    "process-reward": mps.ProcessReward(LENGTH),
    "process-reward values": mps.ProcessReward(LENGTH, values=True, last_step_only=True),
    "prompts": mps.Prompts(64),
    "prompts left": mps.Prompts(64, padding_side="left", repeat=3),
}
"""Tasks that are younger than the first digests, each with a case of its own."""


def in_steps() -> list[dict[str, Any]]:
    """The chosen sides of the bundled pairs, word by word."""
    return [
        {"prompt": row["prompt"], "completions": words, "labels": [len(word) % 2 == 0 for word in words]}
        for row in bundled_rows()
        if (words := row["chosen"][-1]["content"].split()[:5])
    ]


for _name in LATER:

    @case(f"task {_name}")
    def _later(folder: pathlib.Path, name: str = _name) -> Iterator[Any]:
        """Batches of the text, of the text with an index and of a cache; state, index and files of the cache."""
        source: Any = in_steps() if name.startswith("process") else rows_file(folder)
        given: dict[str, Any] = {"task": LATER[name], "batching": mps.Bucket(4, multiple_of=32), "seed": 3, "window": 4}
        stream = mps.stream(source, tokenizer="bytes", index=None, **given)
        yield from epochs(stream)
        yield list(stream.state(3).items())
        yield pathlib.Path(stream.build_index(folder / "rows.mprefidx").path).read_bytes()
        yield from epochs(stream)
        mps.write_cache(stream, folder / "cache", rows_per_part=30)
        yield from _cache_files(folder / "cache")
        yield from epochs(mps.stream(folder / "cache", tokenizer=None, **given))


@case("cache, fixed layouts")
def _cache_fixed(folder: pathlib.Path) -> Iterator[Any]:
    for task, layout in (("dpo", "mindrlhf"), ("rlhf", "mindrlhf"), ("reward", "mindformers")):
        out = folder / task
        mps.write_cache(make(rows_file(folder), task), out, layout=layout, rows_per_part=50)
        yield from _cache_files(out)


@case("cache, reference log-probabilities")
def _cache_reference(folder: pathlib.Path) -> Iterator[Any]:
    out = folder / "out"
    mps.write_cache(make(rows_file(folder)), out, rows_per_part=30, reference=_logps, reference_id="sft", workers=2)
    yield from _cache_files(out)
    yield from epochs(make(str(out), tokenizer=None))
    yield from epochs(make(str(out), rule=RULES["pad"], tokenizer=None))


@case("row mask")
def _row_mask(folder: pathlib.Path) -> Iterator[Any]:
    for indexed in (False, True):
        if indexed:
            make(rows_file(folder)).build_index()
        for options in ({}, {"shuffle": "window"}, {"shuffle": False}):
            for rule in (RULES["pad"], RULES["multiple_of"]):
                stream = make(rows_file(folder), rule=rule, window=5, drop_remainder="mask", **options)
                yield from epochs(stream)
                yield list(stream.state(3).items())


@case("carry")
def _carry(folder: pathlib.Path) -> Iterator[Any]:
    rows = [
        {**row, "id": at - 2**40, "extra": {"w": at / 8, "名": "é" * (at % 4)}} for at, row in enumerate(bundled_rows())
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    carry = {"id": "int64", "extra.w": "float32", "extra.名": "text", "none": ["text", "-"]}
    for rule in (RULES["multiple_of"], PACK):
        stream = make(str(path), rule=rule, carry=carry, index=None)
        yield from epochs(stream)
        yield list(stream.state(3).items())
    mps.write_cache(make(str(path), carry=carry), folder / "cache", rows_per_part=30)
    yield from _cache_files(folder / "cache")
    yield from epochs(make(str(folder / "cache"), tokenizer=None))
    yield pathlib.Path(make(str(path), carry=carry).build_index(folder / "a.mprefidx").path).read_bytes()


@case("encode")
def _encode(folder: pathlib.Path) -> Iterator[Any]:
    for row in bundled_rows()[:20]:
        for task in TASKS.values():
            for template in ("auto", None):
                encoded = mps.encode(row, task=task, tokenizer="bytes", template=template)
                if encoded.sample is None:
                    yield str(encoded.reason)
                    continue
                for sequence in encoded.sample.sequences:
                    yield sequence.ids
                    yield sequence.spans


def found(name: str, folder: pathlib.Path) -> str:
    """The digest of a case, made in an empty folder."""
    return digest(CASES[name](folder))


def main() -> int:
    """Compares all cases with digests.json; ``--write`` records them."""
    digests = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            digests[name] = found(name, pathlib.Path(folder))
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    changed = sorted(name for name in {*digests, *stored} if digests.get(name) != stored.get(name))
    print("\n".join(changed) or f"all {len(digests)} digests are as stored")
    if "--write" in sys.argv[1:]:
        STORED.write_text(json.dumps(digests, indent=1) + "\n", "utf-8")
        return 0
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
