"""Text to batches here, against what others take to tokenise the same rows: all on one core, in one run.

    python benchmarks/peers.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5 \\
        --xtuner PATH --mindrlhf PATH

Ours reads the file, tokenises, masks, sorts, buckets and pads. Theirs is less, each as its users run it:

* TRL: `DPOTrainer._prepare_dataset` of the installed package, on rows in memory; ids only, no masks, no batches.
* XTuner: `tokenize` of `xtuner/dataset/preference_dataset.py`, on rows in memory; ids and labels, no padding.
* mindrlhf: `write_mindrecord` of `examples/reward_model_train_tutorial/cvalues_comparison.py`, from the file to a
  MindRecord file, rows padded to 4,096 tokens as in its tutorial (``--mindrlhf-length``). Wants MindSpore
  and the package jsonlines.

The functions are taken from the package or checkout as they are, by their names, without the modules around them: these
import a training framework that tokenising does not need. All get the same `tokenizers` file. A peer that is not there
is named and left out; TRL wants an environment of its own (``pip install trl``), in which this runs as well.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import io
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer

Work = Callable[[], object]


def function_of(path: pathlib.Path, name: str, names: dict[str, Any]) -> Any:
    """One function of a file, with only these names around it."""
    tree = ast.parse(path.read_text("utf-8"))
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not wanted:
        raise SystemExit(f"{path} has no function {name}: give the checkout of another version.")
    exec(compile(ast.Module(wanted, []), str(path), "exec", flags=annotations_as_text()), names)
    return names[name]


def annotations_as_text() -> int:
    """The flag of ``from __future__ import annotations``: types that a signature names need not be there."""
    import __future__

    return __future__.annotations.compiler_flag


def ours(data: str, loaded: Tokenizer) -> Work:
    def work() -> None:
        stream = mps.stream(
            data, task=mps.DPO(1024), tokenizer=loaded, batching=mps.Bucket(32, multiple_of=64), drop_remainder=False
        )
        for _ in stream.batches():
            pass

    return work


def bare(rows: list[Any], loaded: Tokenizer) -> Work:
    """The tokenizer that ours runs on, alone: every text of the rows once, nothing else. Nobody can be faster."""
    texts = [message["content"] for row in rows for side in row.values() for message in side]
    return lambda: loaded.encoder.encode(texts)


def of_transformers(directory: str) -> Any:
    """The fast tokenizer, whatever class the directory names."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def trl(rows: list[dict[str, Any]], tokenizer: str) -> tuple[str, Work] | None:
    try:
        import datasets
        import trl as package
        from trl import DPOTrainer
    except ImportError:
        return None
    datasets.disable_caching()
    datasets.disable_progress_bars()
    trainer = object.__new__(DPOTrainer)  # the method needs no model, only the tokenizer
    trainer._tokenizer = processing = of_transformers(tokenizer)
    args = SimpleNamespace(dataset_num_proc=None, max_length=1024, truncation_mode="keep_start")
    held = datasets.Dataset.from_list(rows)
    return package.__version__, lambda: trainer._prepare_dataset(held, processing, args, "train")


def xtuner(rows: list[dict[str, Any]], tokenizer: str, checkout: str | None) -> tuple[str, Work] | None:
    if checkout is None:
        return None
    path = pathlib.Path(checkout, "xtuner", "dataset", "preference_dataset.py")
    tokenize, processing = function_of(path, "tokenize", {"copy": copy}), of_transformers(tokenizer)
    return checkout, lambda: [tokenize(row, processing, 1024) for row in rows]


def mindrlhf(data: str, tokenizer: str, checkout: str | None, length: int) -> tuple[str, Work] | None:
    if checkout is None:
        return None
    import jsonlines
    import numpy as np
    from mindspore.mindrecord import FileWriter

    path = pathlib.Path(checkout, "examples", "reward_model_train_tutorial", "cvalues_comparison.py")
    names = {"np": np, "jsonlines": jsonlines, "FileWriter": FileWriter, "tqdm": iter, "skip_count": 0}
    function_of(path, "get_txt", names)
    write, processing = function_of(path, "write_mindrecord", names), of_transformers(tokenizer)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(processing, data, os.path.join(folder, "rows.mindrecord"), length, processing.pad_token_id)

    return checkout, work


def conversations(data: str) -> Iterator[dict[str, Any]]:
    """The rows as messages, which TRL and XTuner read."""
    for row in mps.read(data):
        yield {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["pos_resp"]}],
            "rejected": [{"role": "assistant", "content": row["neg_resp"]}],
        }


def cpu_seconds(work: Work) -> float:
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a JSON Lines file of CValues rows")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--xtuner", help="a checkout of InternLM/xtuner")
    parser.add_argument("--mindrlhf", help="a checkout of mindspore-lab/mindrlhf")
    parser.add_argument("--mindrlhf-length", type=int, default=4096, help="tokens that its rows are padded to")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each figure")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    rows = list(conversations(options.data))
    peers = {
        "TRL": (trl(rows, options.tokenizer), 8, "the package trl is not installed"),
        "XTuner": (xtuner(rows, options.tokenizer, options.xtuner), 6, "--xtuner names no checkout"),
        "mindrlhf": (
            mindrlhf(options.data, options.tokenizer, options.mindrlhf, options.mindrlhf_length),
            30,
            "--mindrlhf names no checkout",
        ),
    }
    loaded = load_tokenizer(options.tokenizer)
    mine, alone = ours(options.data, loaded), bare(rows, loaded)
    mine()
    here: list[float] = []
    least: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(options.repeats):  # side by side, so that a slower minute is a slower minute for all
        here.append(cpu_seconds(mine))
        least.append(cpu_seconds(alone))
        for name, (found, _, _) in peers.items():
            if found is not None:
                taken[name].append(cpu_seconds(found[1]))
    show("here, text to padded batches, rows/s of CPU time", [len(rows) / one for one in here], "", options.json)
    show("the bare tokenizer here, rows/s of CPU time", [len(rows) / one for one in least], "", options.json)
    for name, (found, target, why) in peers.items():
        if found is None:
            print(f"{name}: left out, {why}")
            continue
        version = f" {found[0]}" if name == "TRL" else ""
        show(f"{name}{version}, rows/s of CPU time", [len(rows) / one for one in taken[name]], "", options.json)
        ratios = [its / mine_ for its, mine_ in zip(taken[name], here, strict=True)]
        show(f"times as fast as {name}", ratios, f">= {target}", options.json)
        most = [its / alone_ for its, alone_ in zip(taken[name], least, strict=True)]
        show(f"what the bare tokenizer here would be, times {name}", most, "", options.json, ".1f")


def show(what: str, values: list[float], target: str, as_json: bool, form: str = "") -> None:
    form = form or (".1f" if target else ",.0f")
    if as_json:
        print(json.dumps({"part": "f", "what": what, "values": values, "form": form, "target": target}), flush=True)
        return
    middle, least, most = (format(of(values), form) for of in (statistics.median, min, max))
    print(f"{what}: {middle} ({least} to {most})" + (f"   target {target}" if target else ""), flush=True)


if __name__ == "__main__":
    main()
