"""The stream's report from inside a training run, for those who hold neither the stream nor the dataset.

This module imports MindSpore; import it only where a callback is made.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import orjson
from mindspore.train import Callback

from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore.checkpoint import replace_file


class ReportCallback(Callback):  # type: ignore[misc]
    """Says what was read, dropped and why, at the end of a training call and now and then on the way.

    Args:
        path: A JSON file for the counts; of several ranks each writes its own (``report.rank1.json``).
        every: Steps between two reports on the way; None for none.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, every: int | None = None) -> None:
        super().__init__()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise OptionError(f"PrefStreamReport: every is {every!r}; expected a number of steps, 1 or more.")
        if path is not None and not pathlib.Path(path).absolute().parent.is_dir():
            raise OptionError(
                f"PrefStreamReport: path is {os.fspath(path)!r}, which lies in no folder. Name a file in a folder that "
                "exists."
            )
        self.path = None if path is None else pathlib.Path(path).absolute()
        self.every = every
        self.stream: Any = None

    def on_train_begin(self, run_context: Any) -> None:
        """Finds the stream behind the dataset that is trained on."""
        dataset = run_context.original_args().train_dataset
        self.stream = getattr(dataset, "stream", None)
        if self.stream is None:
            raise OptionError(
                f"PrefStreamReport: the dataset of this training is a {type(dataset).__name__} without a stream of "
                "ms_prefstream. Leave the callback out, or train on PrefStreamDataset or stream.dataset()."
            )

    def on_train_step_end(self, run_context: Any) -> None:
        """A report on the way, if they are wanted."""
        done = int(run_context.original_args().cur_step_num)
        if self.every is not None and done % self.every == 0:
            self._say(done, "read a few steps ahead")

    def on_train_end(self, run_context: Any) -> None:
        """The report of the whole call."""
        self._say(int(run_context.original_args().cur_step_num), "the training is over")

    def _say(self, done: int, why: str) -> None:
        ranks = self.stream.world
        place = f"rank {self.stream.rank} of {ranks}, " if ranks > 1 else ""
        _log(f"data after {done} steps ({place}{why}):\n{self.stream.report}")
        if self.path is not None:
            path = self.path if ranks == 1 else self.path.with_suffix(f".rank{self.stream.rank}{self.path.suffix}")
            content = {"steps": done, **self.stream.report.as_dict()}
            replace_file(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def _log(text: str) -> None:
    """To MindFormers' log where there is one, so that it stands in its files too."""
    tools = sys.modules.get("mindformers.tools")
    logger = getattr(tools, "logger", None)
    if logger is None:
        print(text, flush=True)
    else:
        logger.info("%s", text)
