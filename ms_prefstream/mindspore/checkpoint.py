"""Saved states of a stream, beside the model's checkpoints: `StreamCheckpoint` writes, `load_state` reads them."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

import orjson

from ms_prefstream.checks import check_made, whole_number
from ms_prefstream.errors import OptionError, StateError, needs
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.mindspore.trainer_checks import check_network
from ms_prefstream.plan.state import State

LATEST = "stream_state.json"


def StreamCheckpoint(  # noqa: N802 - a class to its users, but MindSpore is only imported when one is made
    stream: BatchStream, directory: str | os.PathLike[str], *, every: int = 1, keep: int = 5
) -> Any:
    """A MindSpore callback that saves the stream's state for the step the trainer has finished.

    Pass it to ``model.train(..., callbacks=[...])`` beside MindSpore's ModelCheckpoint. The state counts finished
    steps, not prefetched ones, over all epochs and training calls. To resume::

        stream = mps.stream(...).resume(mps.load_state(directory))

    Args:
        stream: The stream whose dataset is trained on.
        directory: Where ``stream_state.json`` (the latest) and ``stream_state-<step>.json`` are written.
        every: Finished steps between two states; as ModelCheckpoint's ``save_checkpoint_steps``.
        keep: How many numbered states to keep.

    Raises:
        OptionError: If `every` or `keep` is not a whole number from 1 on. When training begins: if the rows of the
            dataset are not the steps of the stream, as after ``.batch(2)``, or if its columns do not fit the
            ``construct_args_key`` of a MindFormers trainer.
    """
    with needs("mindspore", "StreamCheckpoint"):
        from mindspore.train import Callback
    return type("StreamCheckpoint", (CheckpointWriter, Callback), {})(stream, directory, every, keep)


class CheckpointWriter:
    """The methods of `StreamCheckpoint`, which mixes them into MindSpore's callback; arguments as there."""

    def __init__(self, stream: BatchStream, directory: str | os.PathLike[str], every: int = 1, keep: int = 5) -> None:
        super().__init__()
        self.every = whole_number("StreamCheckpoint: every", every, 1)
        self.keep = whole_number("StreamCheckpoint: keep", keep, 1)
        check_made("StreamCheckpoint: stream", stream, "start_step", "mps.stream(...)")
        self.stream = stream
        self.directory = _folder(directory)
        self.finished = stream.start_step
        self._written: list[pathlib.Path] = []
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"StreamCheckpoint: {directory} cannot be made a folder: {error}.") from error

    def on_train_begin(self, run_context: Any) -> None:
        """Finds the absolute step that this training call begins with."""
        from ms_prefstream.mindspore.generator import first_step

        run = run_context.original_args()
        self.finished = first_step(run.train_dataset, self.stream)
        self._ahead = int(run.cur_step_num) - self.finished  # each call may number its steps from anywhere
        check_network(run.train_dataset, getattr(run, "train_network", None))

    def on_train_step_end(self, run_context: Any) -> None:
        """Writes a state if one is due."""
        self.step_end(int(run_context.original_args().cur_step_num) - self._ahead)

    def on_train_end(self, run_context: Any) -> None:
        """Writes the last state."""
        self.write()

    def step_end(self, finished: int) -> None:
        """Sets the number of finished steps of all epochs, and writes a state if one is due."""
        before, self.finished = self.finished, finished
        if self.finished // self.every > before // self.every:
            self.write()

    def write(self) -> None:
        """Writes the state after the last finished step. One rank writes for all: their states are equal."""
        if self.stream.rank != 0:
            return
        state = self.stream.state(self.finished)
        numbered = self.directory / f"stream_state-{self.finished}.json"
        for path in (numbered, self.directory / LATEST):
            write_json(path, state)
        if numbered not in self._written:
            self._written.append(numbered)
        while len(self._written) > self.keep:
            self._written.pop(0).unlink(missing_ok=True)


def load_state(directory: str | os.PathLike[str], step: int | None = None) -> State:
    """Reads a state that `StreamCheckpoint` wrote.

    Args:
        directory: Where it was written.
        step: The finished steps of the checkpoint that training resumes from; None takes the latest state.

    Raises:
        OptionError: `directory` is no path.
        StateError: If there is none, or it cannot be read.
    """
    folder = _folder(directory)
    path = folder / (LATEST if step is None else f"stream_state-{step}.json")
    if not path.exists():
        found = sorted(file.name for file in folder.glob("stream_state*.json")) or ["none"]
        raise StateError(f"{path} does not exist; states in that directory: {', '.join(found)}.")
    return read_state(path)


def _folder(directory: Any) -> pathlib.Path:
    if not isinstance(directory, (str, os.PathLike)):
        raise OptionError(f"directory is {directory!r}; expected the path of the folder that the states are in.")
    return pathlib.Path(directory)


def read_state(path: pathlib.Path) -> State:
    """Reads the state in a file.

    Raises:
        StateError: It cannot be read.
    """
    try:
        state: State = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise StateError(f"{path} cannot be read: {error}. Take another of the states in that directory.") from None
    return state


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically: a reader, or a crash, sees the old content or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
