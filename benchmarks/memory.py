"""Memory against the number of rows: python benchmarks/memory.py

For each size a JSON Lines file of short tokenized rows is written, its length index built, and steps of two epochs are
taken in a process of its own, with and without the index. What counts is the memory that the process holds above that
of the same process over a thousand rows.

What grows with the rows, in bytes a row: 4 of the newline index, 4 of the length index (8 if a length is above 65,535),
and the plan: 2 for buckets (4 if a length is above 32,767; up to 2 more if many rows are bad), 4 for a token budget,
4 and 4 for each pack for packs. The rest, the windows in use and freed memory that the allocator keeps, are a few
megabytes; with packs the allocator keeps up to 25 MB at 10 M rows.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

from common import Figure, show

import ms_prefstream as mps

SMALL = 1000


def write(path: pathlib.Path, rows: int) -> None:
    """Rows of 2 to 9 tokens a side."""
    with open(path, "w", encoding="ascii") as file:
        for begin in range(0, rows, 100_000):
            file.writelines(
                f'{{"prompt_ids":[1],"chosen_ids":[2{",3" * (row % 8)}],"rejected_ids":[4{",5" * (row % 5)}]}}\n'
                for row in range(begin, min(begin + 100_000, rows))
            )


def stream(path: pathlib.Path, kind: str) -> mps.Stream:
    batching: mps.Bucket | mps.Pack = mps.Bucket(32, multiple_of=4)
    if kind == "packs":
        batching = mps.Pack(64, batch_size=8)
    elif kind == "a token budget":
        batching = mps.Bucket(max_tokens=1024, multiple_of=4)
    index = None if kind == "no index" else f"{path}.lengths"
    return mps.stream(path, task=mps.DPO(16), tokenizer=None, pad_token_id=0, batching=batching, index=index)


def resident() -> int:
    """Bytes of memory that are this process's own."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no RssAnon in /proc/self/status: this benchmark needs Linux")


def child(path: pathlib.Path, kind: str) -> None:
    """Takes some steps and prints resident bytes and milliseconds of planning a step."""
    made = stream(path, kind)
    for epoch in range(2):
        last = made.steps_per_epoch - 1
        for step in (0, last // 2, last):
            next(made.batches(epoch, step))
    begin = time.perf_counter()
    if kind != "no index":
        made.rows(2, made.steps_per_epoch // 2)
    print(resident(), 1e3 * (time.perf_counter() - begin))


def measured(path: pathlib.Path, kind: str) -> tuple[int, float]:
    command = [sys.executable, __file__, "--child", str(path), kind]
    taken, spent = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(taken), float(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each figure")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(pathlib.Path(options.child[0]), options.child[1])
        return
    kinds = ("no index", "buckets", "a token budget", "packs")
    with tempfile.TemporaryDirectory() as folder:
        base = {}
        for rows in (SMALL, *options.rows):
            path = pathlib.Path(folder, f"{rows}.jsonl")
            write(path, rows)
            stream(path, "no index").build_index(f"{path}.lengths")
            for kind in kinds:
                found = [measured(path, kind) for _ in range(options.repeats)]
                taken = [taken for taken, _ in found]
                if rows == SMALL:
                    base[kind] = min(taken)
                    continue
                above = [(one - base[kind]) / rows for one in taken]
                with_index = "" if kind == "no index" else "length index, "
                what = f"{rows:,} rows, {with_index}{kind}: bytes of memory a row"
                show(Figure(part="h", what=what, values=above, form=".1f", target="<= 14"), options.json)
                if with_index:
                    what = f"{rows:,} rows, {with_index}{kind}: ms to plan a step"
                    target = "< 10" if kind != "packs" else ""
                    show(Figure(part="h", what=what, values=[ms for _, ms in found], target=target), options.json)
            path.unlink()


if __name__ == "__main__":
    main()
