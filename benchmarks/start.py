"""What making a stream costs: seconds of CPU beyond the bare load of the tokenizer's package.

    python benchmarks/start.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

Every measurement is a process of its own on one core, with a cache folder of its own, and the backends take turns. A
stream counts as made when its tokenizer has encoded a text, for some backends load when they are first used. What the
standing check of fastokens adds, which loads the reference in the background, is a figure of its own. Imports are left
out: they are those of the packages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import Figure, arguments, show

TARGETS = {"known": "<= 0.6", "second": "<= 0.05"}
WORDS = {
    "bare": "the bare package loads",
    "new": "a tokenizer never seen before, beyond the bare package",
    "known": "one seen before, in a fresh process, beyond the bare package",
    "second": "a second stream in the process",
    "check": "loading the reference of its standing check, in the background",
}


def bare_load(backend: str, folder: pathlib.Path) -> float:
    """CPU seconds in which the package itself loads the tokenizer and encodes a text."""
    from ms_prefstream.encode.tokenizer import load_tokenizer

    text = (folder / "tokenizer.json").read_text("utf-8")
    if backend == "fastokens":
        import fastokens

        spec = {**json.loads(text), "added_tokens": [], "post_processor": None}
        text = json.dumps(spec)
        begin = time.process_time()
        fastokens.Tokenizer.from_json_str(text).encode_batch_flat(["a"])
    elif backend == "tiktoken":
        import tiktoken

        made: Any = load_tokenizer(folder, backend).encoder
        own = made._encoding
        begin = time.process_time()
        tiktoken.Encoding(
            "bare", pat_str=own._pat_str, mergeable_ranks=own._mergeable_ranks, special_tokens={}
        ).encode_ordinary("a")
    else:
        import tokenizers

        begin = time.process_time()
        tokenizers.Tokenizer.from_str(text).encode("a")
    return time.process_time() - begin


def streams(backend: str, data: str, folder: pathlib.Path) -> dict[str, float]:
    """CPU seconds of two streams, one after the other, and of the standing check of the first text."""
    import ms_prefstream as mps

    found: dict[str, float] = {}
    for name in ("first", "second"):
        begin = time.process_time()
        rule = mps.Bucket(batch_size=8, multiple_of=64)
        stream = mps.stream(data, task=mps.DPO(max_length=1024), tokenizer=folder, backend=backend, batching=rule)
        assert stream.tokenizer is not None
        encoder: Any = stream.tokenizer.encoder
        encoder.encode(["a"])
        found[name] = time.process_time() - begin
        if hasattr(encoder, "finish_check"):
            begin = time.process_time()
            encoder.finish_check()
            found.setdefault("check", time.process_time() - begin)
    return found


def measure(how: str, options: Any, backend: str, cache: str) -> dict[str, float]:
    """What one process measures; it is this script again."""
    words = [sys.executable, __file__, "--data", options.data, "--tokenizer", options.tokenizer]
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "RAYON_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "--measure", how, "--backend", backend], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--measure", help="used by the script itself")
    parser.add_argument("--backend", help="used by the script itself")
    options = parser.parse_args()
    folder = pathlib.Path(options.tokenizer)
    if options.measure:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        bare = options.measure == "bare"
        found = {"bare": bare_load(options.backend, folder)} if bare else streams(options.backend, options.data, folder)
        print(json.dumps(found))
        return
    if not (folder / "tokenizer.json").is_file():
        print(f"start.py needs a folder with a tokenizer.json, and {folder} has none", file=sys.stderr)
        return
    backends = ["tiktoken", "tokenizers"]
    if importlib.util.find_spec("fastokens"):
        backends.insert(0, "fastokens")
    values: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.repeats):
        for backend in backends:
            with tempfile.TemporaryDirectory() as cache:
                new = measure("streams", options, backend, cache)
                bare = measure("bare", options, backend, cache)["bare"]
                known = measure("streams", options, backend, cache)
            figures = {"bare": bare, "new": new["first"] - bare, "known": known["first"] - bare}
            for name, value in {**figures, **{one: known[one] for one in ("second", "check") if one in known}}.items():
                values.setdefault((backend, name), []).append(value)
    for (backend, name), found in values.items():
        what = f"start, {backend}, s of CPU: {WORDS[name]}"
        show(Figure(part="i", what=what, values=found, target=TARGETS.get(name, "")), options.json)


if __name__ == "__main__":
    main()
