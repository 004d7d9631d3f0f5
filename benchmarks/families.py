"""Text to padded DPO batches for several tokenizers, for plain rows and for rows with tool calls, on one core.

    python benchmarks/families.py --data ../shared/data/cvalues_like_2k.jsonl \\
        --tokenizer ../shared/tokenizers/qwen2_5 --more ../shared/tokenizers/qwen3 ../shared/tokenizers/internlm2

Every figure is a ratio of CPU time within one run, and what is compared takes turns. The measure is the bare package
that encodes the same unique texts: tiktoken, or tokenizers where tiktoken cannot. The rows with tool calls are the rows
of the data as a conversation with a schema, a call and its result before the answer; they and plain rows are compared
in the midst of a run, and what a new stream spends on learning their layouts has a line of its own. The cost of the
standing check is the same work with and without it, where the backend is fastokens.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from common import Figure, arguments, show
from throughput import drain, measure_of, stream_of, timed

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.record import Pair
from ms_prefstream.sources import open_source

SCHEMA = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a question up in a handbook.",
        "parameters": {
            "type": "object",
            "properties": {"question": {"type": "string"}, "pages": {"type": "integer"}},
            "required": ["question"],
        },
    },
}


def pairs_of(data: str) -> Iterator[Pair]:
    source, fmt = open_source(data), resolve_format("auto")
    for raw in source.read(range(len(source))):
        record = fmt(raw)
        assert isinstance(record, Pair)
        yield record


def with_calls(pairs: Iterable[Pair], path: pathlib.Path) -> str:
    """Writes the rows as conversations with a tool."""
    with open(path, "w", encoding="utf-8") as file:
        for number, pair in enumerate(pairs):
            question = pair.prompt[-1].content
            call = {"name": "look_up", "arguments": {"question": question, "pages": number % 9}}
            row = {
                "prompt": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
                    {"role": "tool", "content": f"page {number}"},
                ],
                "chosen": [{"role": "assistant", "content": pair.chosen[0].content}],
                "rejected": [{"role": "assistant", "content": pair.rejected[0].content}],
                "tools": [SCHEMA],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(path)


def texts_of(data: str) -> list[str]:
    """The texts that must be encoded at least once."""
    return [m.content for pair in pairs_of(data) for m in (*pair.prompt, *pair.chosen, *pair.rejected) if m.content]


def measured(options: argparse.Namespace, folder: str, calls: str) -> Iterator[Figure]:
    """Yields the figures of one tokenizer."""
    name, tokenizer = pathlib.Path(folder).name, load_tokenizer(folder, options.backend)
    measure, texts, rows = measure_of(folder, tokenizer), texts_of(options.data), len(open_source(options.data))
    is_checked = tokenizer.backend == "fastokens"
    takes_calls = True
    for data in (options.data, calls):  # whatever happens once in a run: layouts are learned, the reference is loaded
        try:
            timed_epoch(data, tokenizer, options.batch_size, 0)
        except mps.NoUsableRowsError:
            takes_calls = False
    if is_checked:
        tokenizer.encoder.finish_check()  # type: ignore[attr-defined]
    kinds = ("bare", "own", "plain", "calls", "running", "running calls", "begun", "settled", "none")
    times: dict[str, list[float]] = {what: [] for what in kinds}
    streams = {"running": stream_of(options.data, tokenizer, options.batch_size)}
    if takes_calls:
        streams["running calls"] = stream_of(calls, tokenizer, options.batch_size)
    for stream in streams.values():
        drain(stream.batches(epoch=options.repeats))  # layouts are learned
    for repeat in range(options.repeats):
        times["bare"].append(timed(lambda: measure.encoder.encode(texts)))
        times["own"].append(timed(lambda: tokenizer.encoder.encode(texts)))
        times["plain"].append(timed_epoch(options.data, tokenizer, options.batch_size, repeat))
        if takes_calls:
            times["calls"].append(timed_epoch(calls, tokenizer, options.batch_size, repeat))
        for what, stream in streams.items():
            times[what].append(epoch_of(stream, tokenizer, rows, repeat))
        if is_checked:
            for what, texts_before in (("begun", 0), ("settled", 10**6), ("none", None)):
                checked = with_check(folder, texts_before)
                times[what].append(timed_epoch(options.data, checked, options.batch_size, repeat))

    def figure(what: str, values: list[float], form: str = ".2f", target: str = "") -> Figure:
        real = tokenizer.backend != "bytes" and rows >= 1000  # else the targets mean nothing
        what = f"{name} ({tokenizer.backend}): {what}"
        return Figure(part="j", what=what, values=values, form=form, target=target * real)

    both = list(zip(times["bare"], times["plain"], strict=True))
    target = ">= 2.5" if "qwen2" in name else ">= 2"
    yield figure("rows/s of CPU time", [rows / ours for _, ours in both], ",.0f")
    yield figure(f"of the rate of bare {measure.backend}", [of / ours for of, ours in both], target=target)
    beyond = [100 * (ours - own) / of for (of, ours), own in zip(both, times["own"], strict=True)]
    words = f"microseconds a row beyond the tokenizer, where bare {measure.backend} takes 100"
    yield figure(words, beyond, ".0f", "<= 22")
    if takes_calls:
        shares = [plain / other for plain, other in zip(times["running"], times["running calls"], strict=True)]
        yield figure("rows with tool calls, of the rate of plain rows", shares, target=">= 0.4")
        learning = [1e3 * (new - old) for new, old in zip(times["calls"], times["running calls"], strict=True)]
        yield figure("ms that a new stream spends on learning their layouts", learning, ".0f")
    for what, words in (("begun", "the first rows of a run"), ("settled", "rows after a million texts")):
        cost = [100 * (one / other - 1) for one, other in zip(times[what], times["none"], strict=True)]
        if cost:
            yield figure(f"% that the standing check adds to {words}", cost, ".1f")


def with_check(folder: str, texts_before: int | None) -> Tokenizer:
    """The tokenizer with a standing check that has seen so many texts; without one if that is None."""
    tokenizer = load_tokenizer(folder, "fastokens")
    encoder: Any = tokenizer.encoder
    if texts_before is None:
        encoder._check = None  # there is no option for it, on purpose
    else:
        encoder._check._seen = encoder._check._next = texts_before
    return tokenizer


def timed_epoch(data: str, tokenizer: Tokenizer, batch_size: int, epoch: int) -> float:
    return epoch_of(stream_of(data, tokenizer, batch_size), tokenizer, len(open_source(data)), epoch)


def epoch_of(stream: mps.Stream, tokenizer: Tokenizer, rows: int, epoch: int) -> float:
    """Seconds of CPU of an epoch, for all rows."""
    check: Any = getattr(tokenizer.encoder, "_check", None)

    def work() -> None:
        drain(stream.batches(epoch=epoch))
        if check is not None:
            check.finish()  # in a thread of its own, whose time counts

    seconds = timed(work)
    return seconds * rows / (stream.steps_per_epoch * stream.batching.batch_size)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--more", nargs="*", default=[], help="further tokenizers")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the bare tokenizer gets one core, as the stream does
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        calls = with_calls(pairs_of(options.data), pathlib.Path(folder, "calls.jsonl"))
        for tokenizer in (options.tokenizer, *options.more):
            for figure in measured(options, tokenizer, calls):
                show(figure, options.json)


if __name__ == "__main__":
    main()
