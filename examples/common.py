"""What the examples share: the command line, the device, batches, curves and the check at the end.

For Ascend pass ``--device Ascend``. What else changes is the model: put yours in the place of the small one, and cast
it to bfloat16. Every batch has one of the few shapes that the scripts print, so graph mode compiles that often.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import mindspore as ms

import ms_prefstream as mps
from ms_prefstream.demo import data_path
from ms_prefstream.demo.train import passes

SMOOTH = 8  # steps that the thick line of a plot is the mean of
CPU_BYTES = 2**31 - 1  # of one array: GatherDGradV2 fails beyond


def parser(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """Options for data, tokenizer, size of the run, device and results; the defaults run on the bundled pairs."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", nargs="+", default=[data_path()], help="preference files, globs allowed")
    made.add_argument("--tokenizer", default="bytes", help="a tokenizer directory or file")
    made.add_argument("--max-length", type=int, default=256, help="tokens of one side")
    made.add_argument("--batch-size", type=int, default=8, help="pairs of a step")
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="CPU", choices=["CPU", "Ascend", "GPU"])
    made.add_argument("--mode", default="graph", choices=["graph", "pynative"])
    made.add_argument("--steps", type=int, default=None, help="stop after this many steps (to try things out)")
    made.add_argument("--plot", default=None, help="where to draw the curves (<script>.png); 'none' draws nothing")
    made.add_argument("--log", default=None, help="a JSON Lines file for the numbers of every step")
    made.set_defaults(**defaults)
    return made


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that must be so large."""

    def number(given: str) -> int:
        if not given.isdecimal() or int(given) < least:
            raise argparse.ArgumentTypeError(f"it is {given}; expected a whole number, {least} or more")
        return int(given)

    return number


def begin(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and make MindSpore ready."""
    options = made.parse_args()
    if importlib.util.find_spec("matplotlib") is None and options.plot != "none":
        missing = 'plots need matplotlib: pip install "ms-prefstream[examples]"'
        if options.plot is not None:
            made.error(f"{missing}, or pass --plot none.")
        print(f"{missing}. This run draws none.")
        options.plot = "none"
    options.plot = options.plot or f"{pathlib.Path(sys.argv[0]).stem}.png"
    ms.set_seed(options.seed)
    ms.set_device(options.device)
    ms.set_context(mode=ms.GRAPH_MODE if options.mode == "graph" else ms.PYNATIVE_MODE)
    return options


def sources(options: argparse.Namespace) -> str | list[str]:
    """What to pass to `mps.stream`: one path, or all of them as one data set."""
    paths = [str(pathlib.Path(path)) for path in options.data]
    return paths[0] if len(paths) == 1 else paths


def vocabulary(stream: mps.Stream, options: argparse.Namespace, rows: int, columns: int) -> int:
    """The ids of a model. Ends the run where the CPU cannot hold its logits, (rows, columns, ids) float32."""
    ids = stream.tokenizer.vocab_size
    size = 4 * rows * columns * ids
    if options.device == "CPU" and size >= CPU_BYTES:
        raise SystemExit(
            f"{rows} rows of {columns} columns and {ids:,} ids make {size / 1e9:.1f} GB of logits, and an operator of "
            f"MindSpore on the CPU takes less than {CPU_BYTES / 1e9:.1f} GB. Give a smaller --batch-size or "
            "--max-length, or --device Ascend; the train.py that `ms-prefstream init` writes folds ids for the CPU."
        )
    return ids


def batches(dataset: Any, options: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    """The batches of all epochs as tensors by column name, or of the first `--steps`."""
    return islice(passes(dataset, options.epochs), options.steps)


def take(dataset: Any, steps: int) -> Iterator[Mapping[str, Any]]:
    """So many batches, over as many epochs as that takes."""
    return islice(passes(dataset, -(-steps // dataset.get_dataset_size())), steps)


def check(options: argparse.Namespace, claim: str, holds: bool) -> None:
    """The last line of every example: whether the run did what it should; after `--steps` that is not asked."""
    if options.steps is not None:
        print(f"not checked after --steps: {claim}")
    elif holds:
        print(f"check passed: {claim}")
    else:
        raise SystemExit(f"check failed: {claim}")


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


class Curves:
    """The numbers of every step: printed now and then, and at the end a log and a plot.

    Args:
        name: What is trained.
        steps: How many there will be.
        options: `--steps`, `--plot` and `--log`.
        every: Steps between two lines of progress.
    """

    def __init__(self, name: str, steps: int, options: argparse.Namespace, every: int = 5) -> None:
        self.name, self.every = name, every
        self.steps = steps if options.steps is None else min(steps, options.steps)
        self.records: list[dict[str, float]] = []
        self._plot, self._log = options.plot, options.log

    def __len__(self) -> int:
        return len(self.records)

    def add(self, **numbers: float) -> None:
        """The numbers of the next step."""
        self.records.append(numbers)
        if len(self) == 1 or len(self) % self.every == 0 or len(self) == self.steps:
            shown = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
            print(f"{self.name} step {len(self)}/{self.steps}  {shown}", flush=True)

    def mean(self, name: str, last: int) -> float:
        """A number over the last steps."""
        return mean([record[name] for record in self.records[-last:]])

    def finish(self, **lines: float) -> None:
        """Write the log and draw the curves, one panel for each number; `lines` are drawn across their panel."""
        if self._log:
            rows = [json.dumps({"step": step, **record}) for step, record in enumerate(self.records, start=1)]
            pathlib.Path(self._log).write_text("\n".join(rows) + "\n", "utf-8")
        if self._plot == "none" or not self.records:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        names = list(self.records[0])
        figure, panels = pyplot.subplots(len(names), 1, sharex=True, figsize=(7, 2.4 * len(names)), squeeze=False)
        steps = range(1, len(self) + 1)
        for name, panel in zip(names, panels[:, 0], strict=True):
            values = [record[name] for record in self.records]
            smooth = [mean(values[max(0, step - SMOOTH) : step]) for step in steps]
            panel.plot(steps, values, color="tab:blue", alpha=0.35, label="step")
            panel.plot(steps, smooth, color="tab:blue", linewidth=2, label=f"mean of {SMOOTH} steps")
            if name in lines:
                panel.axhline(lines[name], color="gray", linestyle="--", label=f"at the start: {lines[name]:.2f}")
            panel.set_ylabel(name.replace("_", " "))
            panel.grid(alpha=0.3)
        panels[0, 0].set_title(self.name)
        panels[0, 0].legend()
        panels[-1, 0].set_xlabel("step")
        figure.tight_layout()
        figure.savefig(self._plot, dpi=120)
        pyplot.close(figure)
        print(f"curves: {self._plot}")
