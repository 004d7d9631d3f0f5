"""The callback of `PrefStreamReport`: prints the stream's report from inside a training run.

This module imports MindSpore; import it only where a callback is made.
"""

from __future__ import annotations

import os
import pathlib
import sys
import warnings
from typing import Any

from mindspore.train import Callback

from ms_prefstream.checks import whole_number
from ms_prefstream.disk import check_own, write_file
from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.mindspore.checkpoint import json_text
from ms_prefstream.mindspore.trainer_checks import check_network, check_shards
from ms_prefstream.sources.own_files import is_report


class ReportCallback(Callback):  # type: ignore[misc]
    """Callback that reports what was read, dropped and why; arguments as for `PrefStreamReport`."""

    def __init__(self, path: str | os.PathLike[str] | None = None, every: int | None = None) -> None:
        super().__init__()
        self.every = None if every is None else whole_number("PrefStreamReport: every", every, 1)
        self.path = None if path is None else pathlib.Path(path).absolute()
        if self.path is not None and not self.path.parent.is_dir():
            raise OptionError(
                f"PrefStreamReport: path is {os.fspath(path)!r}, and its folder does not exist. "  # type: ignore[arg-type]
                "Name a file in a folder that exists."
            )
        self.stream: Any = None
        self._warned = False

    def on_train_begin(self, run_context: Any) -> None:
        """Finds the stream of the dataset that is trained on, and checks its columns and shards."""
        run = run_context.original_args()
        self.stream = getattr(run.train_dataset, "stream", None)
        if self.stream is None:
            raise OptionError(
                f"PrefStreamReport: the dataset of this training is a {type(run.train_dataset).__name__} without a "
                "stream of ms_prefstream. Leave the callback out, or train on PrefStreamDataset or stream.dataset()."
            )
        check_network(run.train_dataset, getattr(run, "train_network", None))
        if "mindformers" in sys.modules:
            check_shards(self.stream)

    def on_train_step_end(self, run_context: Any) -> None:
        """Reports along the way."""
        done = int(run_context.original_args().cur_step_num)
        if self.every is not None and done % self.every == 0:
            self._report(done, "read a few steps ahead")

    def on_train_end(self, run_context: Any) -> None:
        """Reports on the whole call."""
        self._report(int(run_context.original_args().cur_step_num), "the training is over")

    def _report(self, done: int, why: str) -> None:
        ranks = self.stream.world
        place = f"rank {self.stream.rank} of {ranks}, " if ranks > 1 else ""
        _log(f"data after {done} steps ({place}{why}):\n{self.stream.report}")
        if self.path is not None:
            path = self.path if ranks == 1 else self.path.with_suffix(f".rank{self.stream.rank}{self.path.suffix}")
            self._write(path, json_text({"steps": done, **self.stream.report.as_dict()}))

    def _write(self, path: pathlib.Path, text: bytes) -> None:
        """Writes the report; training goes on where it cannot be written, with one warning."""
        try:
            check_own(path, is_report, OptionError, "PrefStreamReport: the report")
            write_file(path, text, OptionError, "PrefStreamReport: the report")
        except PrefStreamError as error:
            if not self._warned:
                warnings.warn(f"{error} Training goes on.", stacklevel=2)
            self._warned = True


def _log(text: str) -> None:
    """Writes to MindFormers' log and its files where it is loaded, else to standard output."""
    logger = getattr(sys.modules.get("mindformers.tools"), "logger", None)
    if logger is None:
        print(text, flush=True)
    else:
        logger.info("%s", text)
