"""A process that reads from a store and writes a cache to it, in children that tests kill.

Each line on standard input, ``go SOURCE OUT FOLDER``, starts a child; the answer is its number. ``wait`` waits for it
and answers its exit code. The parent only imports, so that a child starts at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import s3fs  # noqa: F401  # imported once, before children are made

import ms_prefstream as mps

TASK, PART = mps.DPO(128), 7


def write(source: str, out: str, folder: str, options: dict[str, str]) -> None:
    given = {"storage_options": options, "cache_dir": folder}
    stream = mps.stream(
        source, task=TASK, tokenizer="bytes", batching=mps.Pad(1), on_bad_row="drop", verbose=False, **given
    )
    mps.write_cache(stream, out, rows_per_part=PART)


def main() -> None:
    options, pid = json.loads(sys.argv[1]), 0
    for line in sys.stdin:
        word, *given = line.split()
        if word == "go":
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                try:
                    write(*given, options)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            print(pid, flush=True)
        else:
            print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
