"""Saves where a run is, beside the model's checkpoints, from inside MindSpore's training loop."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any, Protocol

import orjson

from ms_prefstream.checks import check_made
from ms_prefstream.errors import OptionError, StateError, needs
from ms_prefstream.plan.state import State

LATEST = "stream_state.json"


class Resumable(Protocol):
    """A stream, as far as saving its state needs it."""

    @property
    def rank(self) -> int: ...

    @property
    def start_step(self) -> int: ...

    def state(self, step: int) -> State: ...


class CheckpointWriter:
    """Writes the states of one run into a directory; what `StreamCheckpoint` does on each step.

    Args:
        stream: The stream that is trained on.
        directory: Where the states go; made if needed.
        every: Finished steps between two states.
        keep: How many numbered states to keep; the latest one also stands in ``stream_state.json``.
    """

    def __init__(self, stream: Resumable, directory: str | os.PathLike[str], every: int = 1, keep: int = 5) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"StreamCheckpoint: {name} is {value!r}; expected a whole number, 1 or more.")
        check_made("StreamCheckpoint: stream", stream, "start_step", "mps.stream(...)")
        self.stream = stream
        self.directory = _folder(directory)
        self.every, self.keep = every, keep
        self.finished = stream.start_step
        self._base = self.finished
        self._written: list[pathlib.Path] = []
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"StreamCheckpoint: {directory} cannot be made a folder: {error}.") from error

    def begin(self, step: int) -> None:
        """A training call begins with this absolute step; MindSpore counts the steps of each call from 1."""
        self._base = self.finished = step

    def step_end(self, step: int) -> None:
        """The trainer has finished the step that it numbers `step` (from 1) in this call."""
        before, self.finished = self.finished, self._base + step
        if self.finished // self.every > before // self.every:
            self.write()

    def write(self) -> None:
        """Write the state behind the last finished step, atomically. One rank writes for all: states are equal."""
        if self.stream.rank != 0:
            return
        state = self.stream.state(self.finished)
        numbered = self.directory / f"stream_state-{self.finished}.json"
        for path in (numbered, self.directory / LATEST):
            write_state(path, state)
        if numbered not in self._written:
            self._written.append(numbered)
        while len(self._written) > self.keep:
            self._written.pop(0).unlink(missing_ok=True)


def StreamCheckpoint(  # noqa: N802 - a class to its users; MindSpore is only imported when one is made
    stream: Resumable, directory: str | os.PathLike[str], *, every: int = 1, keep: int = 5
) -> Any:
    """A MindSpore callback that saves the stream's state for the step the trainer has finished.

    Pass it to ``model.train(..., callbacks=[...])`` beside MindSpore's ModelCheckpoint. The state counts finished
    steps, not prefetched ones, over all epochs and training calls. To go on::

        stream = mps.stream(...).resume(mps.load_state(directory))

    Args:
        stream: The stream whose dataset is trained on.
        directory: Where ``stream_state.json`` (the latest) and ``stream_state-<step>.json`` are written.
        every: Finished steps between two states; as ModelCheckpoint's ``save_checkpoint_steps``.
        keep: How many numbered states to keep.

    Raises:
        OptionError: If `every` or `keep` is not a whole number from 1 on; when training begins, if the rows of the
            dataset are not the steps of the stream, as behind ``.batch(2)``.
    """
    with needs("mindspore", "StreamCheckpoint"):
        from mindspore.train import Callback

        from ms_prefstream.mindspore.generator import first_step

    class _StreamCheckpoint(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.writer = CheckpointWriter(stream, directory, every, keep)

        def on_train_begin(self, run_context: Any) -> None:
            dataset = run_context.original_args().train_dataset
            self._before = _steps_done(run_context)
            self.writer.begin(first_step(dataset, stream))

        def on_train_step_end(self, run_context: Any) -> None:
            self.writer.step_end(_steps_done(run_context) - self._before)

        def on_train_end(self, run_context: Any) -> None:
            self.writer.write()

    return _StreamCheckpoint()


def load_state(directory: str | os.PathLike[str], step: int | None = None) -> State:
    """A state that `StreamCheckpoint` wrote.

    Args:
        directory: Where it was written.
        step: The finished steps of the checkpoint that training goes on from; None takes the latest state.

    Raises:
        OptionError: `directory` is no path.
        StateError: If there is none, or it cannot be read.
    """
    folder = _folder(directory)
    path = folder / (LATEST if step is None else f"stream_state-{step}.json")
    try:
        return read_state(path)
    except FileNotFoundError:
        found = sorted(file.name for file in folder.glob("stream_state*.json")) or ["none"]
        raise StateError(f"{path} does not exist; states in that directory: {', '.join(found)}.") from None


def read_state(path: pathlib.Path) -> State:
    """The state in a file.

    Raises:
        FileNotFoundError: There is no such file.
        StateError: It cannot be read.
    """
    try:
        state: State = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, orjson.JSONDecodeError) as error:
        raise StateError(f"{path} cannot be read: {error}. Take another of the states in that directory.") from None
    return state


def write_state(path: pathlib.Path, state: State) -> None:
    """Write a state for `read_state`, atomically."""
    replace_file(path, orjson.dumps(state, option=orjson.OPT_INDENT_2))


def _folder(directory: Any) -> pathlib.Path:
    if not isinstance(directory, (str, os.PathLike)):
        raise OptionError(f"directory is {directory!r}; expected the path of the folder that the states are in.")
    return pathlib.Path(directory)


def _steps_done(run_context: Any) -> int:
    return int(run_context.original_args().cur_step_num)


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
