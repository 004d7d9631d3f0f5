"""Every benchmark, one after another, and the table that docs/performance.md is made of.

    python benchmarks/suite.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

Each part is a script of its own, run in a process of its own with ``--json``; figures appear as they are measured, and
the table at the end. `dpo_en_demo.json` and `dpo_zh_demo.json` are measured too where they lie beside the data.

    (a) text to batches    (b) GeneratorDataset    (c) first batch    (d) padding     (e) training
    (f) peers              (g) worker processes    (h) memory against rows
    (i) start              (j) other tokenizers, tool calls, the standing check
    (k) to (p) load        an hour: only where ``--parts`` names them, see `load.py`

(f) is `peers.py`, which takes the same options; it compares with what is installed or named and is left out where that
file is missing.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

from common import Figure, arguments

HERE = pathlib.Path(__file__).parent
DEMOS = ("dpo_en_demo.json", "dpo_zh_demo.json")


def commands(parts: str, data: str, tokenizer: str) -> list[list[str]]:
    """The scripts with their own options, without the repeats."""
    rows = ["--data", data, "--tokenizer", tokenizer]
    more = [str(path) for name in DEMOS if (path := pathlib.Path(data).with_name(name)).exists()]
    found = []
    if throughput := "".join(part for part in parts if part in "abc"):
        found.append(["throughput.py", *rows, "--parts", throughput])
    if "d" in parts:
        found.append(["padding.py", *rows, *(["--more", *more] if more else [])])
    if "e" in parts:
        found.append(["training.py", *rows])
    if "f" in parts and (HERE / "peers.py").exists():
        found.append(["peers.py", *rows])
    if "g" in parts:
        found.append(["workers.py", *rows])
    if "h" in parts:
        found.append(["memory.py"])
    if "i" in parts:
        found.append(["start.py", *rows])
    if "j" in parts:
        beside = sorted(path for path in pathlib.Path(tokenizer).parent.glob("*") if (path / "tokenizer.json").exists())
        others = [str(path) for path in beside if path != pathlib.Path(tokenizer)]
        found.append(["families.py", *rows, *(["--more", *others] if others else [])])
    if load := "".join(part for part in parts if part in "klmnop"):
        found.append(["load.py", "--tokenizer", tokenizer, "--parts", load])
    return found


def run(command: list[str], repeats: int | None) -> list[Figure]:
    """The figures of one script, shown as they come."""
    words = [sys.executable, str(HERE / command[0]), *command[1:], "--json"]
    words += [] if repeats is None else ["--repeats", str(repeats)]
    figures = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith('{"part"'):
                continue  # what a library prints
            figure = Figure(**json.loads(line))
            figures.append(figure)
            print(f"({figure.part}) {figure.what}: {figure.shown}", file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}; its output is above.")
    return figures


def table(figures: list[Figure]) -> str:
    """GitHub's Markdown."""
    lines = ["| | measured | median (smallest to largest) | target |", "|---|---|---|---|"]
    lines += [f"| {one.part} | {one.what} | {one.shown} | {one.target} |" for one in figures]
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=None)
    parser.add_argument("--parts", default="abcdefghij", help="some of these letters")
    options = parser.parse_args()
    begin = time.perf_counter()
    figures = []
    for command in commands(options.parts, options.data, options.tokenizer):
        figures += run(command, options.repeats)
    if options.json:
        for figure in figures:
            print(json.dumps(vars(figure)))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(table(figures))
    print(f"\n{cores} cores, Python {sys.version.split()[0]}, {(time.perf_counter() - begin) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
