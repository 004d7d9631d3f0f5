"""What each rank of a test runs: writes down what a stream of a task delivers through MindSpore.

The task is an expression, such as ``mps.KTO(128)``; the ranks find themselves.
"""

from __future__ import annotations

import pathlib
import pickle
import sys

from mindspore.communication import get_rank, init

import ms_prefstream as mps
from tests.helpers import through_mindspore


def main() -> None:
    source, task, out = sys.argv[1:]
    init()
    stream = mps.stream(
        source, task=eval(task, {"mps": mps}), tokenizer="bytes", batching=mps.Bucket(4, multiple_of=32), seed=5
    )
    found = list(through_mindspore(stream.dataset(), epochs=2))
    pathlib.Path(out, f"rank{get_rank()}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
