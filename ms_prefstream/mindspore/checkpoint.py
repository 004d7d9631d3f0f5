"""Saved states of a stream, beside the model's checkpoints: `StreamCheckpoint` writes, `load_state` reads them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import orjson

from ms_prefstream.checks import check_made, checked_call, whole_number
from ms_prefstream.disk import cause_and_remedy, check_own, parse_json, read_file, shown, write_file
from ms_prefstream.errors import OptionError, PrefStreamError, StateError, printable
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.mindspore.trainer_checks import check_network
from ms_prefstream.packages import needs
from ms_prefstream.plan.state import State, check_state
from ms_prefstream.sources.own_files import is_state

LATEST = "stream_state.json"


@checked_call
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
        self._states = StateWriter()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise OptionError(
                f"StreamCheckpoint: {shown(self.directory)} cannot be made a folder: {cause_and_remedy(error)}."
            ) from error
        check_own(self.directory / LATEST, is_state, OptionError, "StreamCheckpoint: the state")

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
        latest = self.directory / LATEST
        if not self._states.write([numbered, latest], state, [latest, *reversed(self._written)]):
            return
        if numbered not in self._written:
            self._written.append(numbered)
        while len(self._written) > self.keep:
            remove_state(self._written.pop(0))


@checked_call
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
    try:
        return read_state(path)
    except FileNotFoundError:
        found = sorted(file.name for file in folder.glob("stream_state*.json")) or ["none"]
        raise StateError(
            f"{shown(path)} does not exist; states in that directory: {printable(', '.join(found))}."
        ) from None


def _folder(directory: Any) -> pathlib.Path:
    if not isinstance(directory, (str, os.PathLike)):
        raise OptionError(f"directory is {directory!r}; expected the path of the folder that the states are in.")
    return pathlib.Path(directory)


def read_state(path: pathlib.Path) -> State:
    """Reads the state in a file. `check_state` checks its fields.

    Raises:
        FileNotFoundError: There is no such file.
        StateError: It cannot be read.
    """
    what = "the state"
    try:
        return parse_json(read_file(path, StateError, what), State, path, StateError, what)
    except StateError as error:
        raise StateError(f"{error} Take another of the states in that directory.") from error


class StateWriter:
    """Writer of the states of a run, which goes on without the newest state where an older one is whole."""

    def __init__(self) -> None:
        self._warned = False

    def write(self, paths: Iterable[pathlib.Path], state: State, older: Iterable[pathlib.Path]) -> bool:
        """Writes a state to each of some files. Returns whether it did; if not, it has warned, once until it can again.

        Args:
            paths: The files.
            state: What `stream.state` returned.
            older: Files that may hold an older state of the run.

        Raises:
            StateError: It cannot be written, and no older state is whole.
        """
        try:
            for path in paths:
                check_own(path, is_state, StateError, "the state")
                write_file(path, json_text(state), StateError, "the state")
        except StateError as error:
            whole = next((path for path in older if _step_of(path, state) is not None), None)
            if whole is None:
                raise StateError(f"{error} Training stops, because there is no older state to resume from.") from error
            if not self._warned:
                warnings.warn(
                    f"{error} Training goes on; until a state can be written, a run that is interrupted resumes after "
                    f"step {_step_of(whole, state)} ({shown(whole)}).",
                    stacklevel=2,
                )
            self._warned = True
            return False
        self._warned = False
        return True


def _step_of(path: pathlib.Path, now: State) -> int | None:
    """Returns the step of a state of the same run; None where there is none that is whole."""
    settings = {name: value for name, value in now.items() if name not in ("epoch", "step", "source")}
    try:
        return check_state(read_state(path), settings, now["steps_per_epoch"])
    except (OSError, PrefStreamError):
        return None


def remove_state(path: pathlib.Path) -> None:
    """Removes a state; leaves any other file, and a state that cannot be removed."""
    with contextlib.suppress(OSError, PrefStreamError):
        check_own(path, is_state, StateError, "the state")
        path.unlink(missing_ok=True)


def json_text(content: dict[str, Any]) -> bytes:
    """Returns plain values as indented JSON; sources may have numbers of more than 64 bits in their states."""
    try:
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(content, indent=2).encode()
