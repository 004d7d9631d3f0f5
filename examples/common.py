"""What the examples share: the command line, and a progress line that is printed now and then."""

from __future__ import annotations

import argparse
import pathlib

from ms_prefstream.demo import data_path


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options for data, tokenizer, size of the run and device; the defaults run on the bundled pairs in a minute."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", nargs="+", default=[str(data_path())], help="preference files, globs allowed")
    made.add_argument("--tokenizer", default="bytes", help="a tokenizer directory or file")
    made.add_argument("--max-length", type=int, default=256, help="tokens of one side")
    made.add_argument("--batch-size", type=int, default=8, help="pairs of a step")
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="CPU", choices=["CPU", "Ascend", "GPU"])
    made.add_argument("--mode", default="graph", choices=["graph", "pynative"])
    made.add_argument("--steps", type=int, default=None, help="stop after this many steps (to try things out)")
    return made


def sources(options: argparse.Namespace) -> str | list[str]:
    """What to pass to `mps.stream`: one path, or all of them as one data set."""
    paths = [str(pathlib.Path(path)) for path in options.data]
    return paths[0] if len(paths) == 1 else paths


def report(name: str, step: int, steps: int, loss: float, accuracy: float) -> None:
    """One line of progress."""
    print(f"{name} step {step}/{steps}  loss {loss:.3f}  pair accuracy {100 * accuracy:.0f} %", flush=True)
