"""``python -m tests.fuzz TARGET``: runs the cases of targets, all of them or one, and prints what they came to."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.harness import run_one, run_target
from tests.fuzz.targets import CASES, TARGETS


def main() -> int:
    """Returns 1 if there are faults or too few cases past the parser."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"], metavar="TARGET")
    parser.add_argument("--cases", type=int, help="cases of each target; those of the long mode if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="number of a case to run in this process")
    given = parser.parse_args()
    bad = False
    for name in TARGETS if "all" in given.targets else given.targets:
        if given.only is not None:
            run_one(name, TARGETS[name], given.seed, given.only)
            continue
        count = CASES[name] if given.cases is None else given.cases
        found = run_target(name, TARGETS[name], given.seed, range(given.first, given.first + count))
        print(f"{name}: {found}", flush=True)
        bad |= bool(found.faults) or found.past < 0.3 * found.cases
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
