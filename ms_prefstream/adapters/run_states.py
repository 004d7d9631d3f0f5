"""States of a stream beside the checkpoints of a MindFormers run, and the check of a resumed run against them.

    output/checkpoint/rank_0/llama_rank_0-1_3.ckpt                the checkpoint
    output/checkpoint/rank_0/llama_rank_0-1_3.stream_state.json   what `stream.state` says there
    output/checkpoint/iteration_00000003/stream_state.json        likewise, with use_legacy_format: False

A trainer resumes by a number of steps alone. Only the state shows whether these steps still have the same rows.
"""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

from mindspore.dataset.engine.datasets import (
    BatchDataset,
    MapDataset,
    PaddedBatchDataset,
    ProjectDataset,
    RenameDataset,
    RepeatDataset,
)

from ms_prefstream.errors import StateError, printable
from ms_prefstream.mindspore.checkpoint import LATEST, StateWriter, read_state, remove_state
from ms_prefstream.mindspore.generator import first_step, gives_samples, gives_steps
from ms_prefstream.plan.state import State, check_state

_SUFFIX = f".{LATEST}"
_SEEN = "_prefstream_seen"  # attribute of a monitor: its checkpoints, and whether each has existed yet
_WRITER = "_prefstream_states"  # attribute of a monitor: its `StateWriter`
_FORMATS = (".ckpt", ".safetensors")


def save_state(dataset: Any, monitor: Any, done: int) -> None:
    """Writes the state beside the checkpoint that MindFormers' CheckpointMonitor has just saved.

    Writes nothing where the steps of the training are not those of the stream, as after `take`. `done` counts the
    finished steps of this call.
    """
    finished = gives_steps(dataset)
    if not (finished or _batches_samples(dataset)):
        return
    trained = int(getattr(monitor, "_append_step_num", 0)) + done  # as MindFormers counts, over all calls
    step = first_step(dataset, dataset.stream) + done if finished else trained
    state = dataset.stream.state(step)
    if getattr(monitor, "use_legacy_format", True):
        checkpoint = pathlib.Path(monitor.latest_ckpt_file_name)
        older = [path.with_suffix(_SUFFIX) for path in reversed(getattr(monitor, _SEEN, {}))]
        _writer(monitor).write([checkpoint.with_suffix(_SUFFIX)], state, older)
        _clear(monitor, checkpoint)
    elif dataset.stream.rank == 0 and (folder := _iteration(monitor, trained)) is not None:
        write_beside(monitor, folder, state)


def check_resumed(dataset: Any, config: Any) -> None:
    """Refuses to resume from a checkpoint whose steps had other rows, or at another step of the data.

    Without a state beside the checkpoint nothing is compared.

    Raises:
        StateError: Names the state and what differs, with the old and the new value.
    """
    runner = config["runner_config"]
    if config.get("ignore_data_skip") or not (config.get("resume_training") or runner.get("initial_step")):
        return
    path = _state_beside(config)
    step = None if path is None else saved_step(path, dataset.stream)
    if step is None or config.get("data_skip_steps") or not gives_steps(dataset):
        return
    begins, skipped = first_step(dataset, dataset.stream), int(runner.get("initial_step") or 0)
    if step != begins:
        raise StateError(
            f"{path}: the run had finished step {step} of the data, but this one would resume after step {begins}, "
            f"since steps were skipped before. Set data_skip_steps: {step - begins + skipped}."
        )


def saved_step(path: pathlib.Path, stream: Any) -> int | None:
    """Returns the finished steps of a state beside a checkpoint; None without one.

    Raises:
        StateError: The state is of other data or other settings than the stream. Names what differs.
    """
    try:
        saved, now = read_state(path), stream.state(0)
    except FileNotFoundError:
        return None
    settings = {name: value for name, value in now.items() if name not in ("epoch", "step", "source")}
    try:
        return check_state(saved, settings, stream.steps_per_epoch)
    except StateError as error:
        raise StateError(f"{path}: {error} {_remedies(saved, now)}") from None


def _remedies(saved: State, now: State) -> str:
    afresh = "ignore_data_skip: True keeps the weights and begins with the first row."
    if saved.get("index") is None and now["index"] is not None:
        return f"A length index was built since: remove the index file (or set index: null), or start again. {afresh}"
    shards = saved.get("logical_shards")
    if shards in (None, now["logical_shards"]) or saved.get("global_batch") != now["global_batch"]:
        return afresh
    shown = printable(str(shards), 30)
    return (
        f"logical_shards: {shown} in data_loader, or mps.stream(..., logical_shards={shown}), has the former shards "
        f"on this number of ranks. {afresh}"
    )


def _batches_samples(dataset: Any) -> bool:
    """Returns whether single samples are batched again and otherwise unchanged, as by MindFormers' datasets."""
    same = (BatchDataset, MapDataset, PaddedBatchDataset, ProjectDataset, RenameDataset)  # one row for each, in order
    while isinstance(dataset, same) or (isinstance(dataset, RepeatDataset) and dataset.count == 1):
        dataset = dataset.children[0]
    return gives_samples(dataset)


def _clear(monitor: Any, latest: pathlib.Path) -> None:
    """Removes the states of checkpoints that this monitor has deleted: MindFormers keeps only a few.

    With `async_save` a checkpoint appears later than its state, so only those that have existed count as deleted.
    """
    seen: dict[pathlib.Path, bool] = getattr(monitor, _SEEN, {})
    for checkpoint in list(seen):
        if checkpoint.exists():
            seen[checkpoint] = True
        elif seen[checkpoint] and checkpoint != latest:
            remove_state(checkpoint.with_suffix(_SUFFIX))
            del seen[checkpoint]
    seen[latest] = latest.exists()
    setattr(monitor, _SEEN, seen)


def write_beside(monitor: Any, folder: pathlib.Path, state: State) -> None:
    """Writes a state into the folder of a checkpoint that a monitor or callback has saved."""
    older = sorted(folder.parent.glob(f"iteration_*/{LATEST}"), reverse=True)
    _writer(monitor).write([folder / LATEST], state, older)


def _writer(monitor: Any) -> StateWriter:
    """Returns the writer of a monitor's states, which stores whether it has warned."""
    if not hasattr(monitor, _WRITER):
        setattr(monitor, _WRITER, StateWriter())
    writer: StateWriter = getattr(monitor, _WRITER)
    return writer


def _iteration(monitor: Any, step: int) -> pathlib.Path | None:
    """Returns the folder of a step's checkpoint (use_legacy_format: False), as MindFormers names it."""
    named = getattr(sys.modules.get("mindformers.checkpoint.utils"), "get_checkpoint_iter_dir", None)
    root = getattr(monitor, "directory", None)  # MindFormers 1.7 has none
    if root is None:
        output = getattr(sys.modules.get("mindformers.tools.utils"), "get_output_subpath", None)
        root = output and output("checkpoint", append_rank=False)
    folder = pathlib.Path(named(str(root), step)) if named and root else None
    return folder if folder is not None and folder.is_dir() else None


def _state_beside(config: Any) -> pathlib.Path | None:
    """Returns the path of the state of the checkpoint that MindFormers resumes from, if there is one."""
    section = config.get("checkpoint") or {}
    place = section.get("load_path") or config.get("load_checkpoint")
    if not place:
        return None
    path = pathlib.Path(place)
    if path.is_file():
        found = [path.with_suffix(_SUFFIX)]
    elif (path / LATEST).exists():
        found = [path / LATEST]
    elif isinstance(name := config.get("resume_training"), str):  # each rank has its own copy
        pattern = re.sub(r"rank_\d+", "rank_*", pathlib.Path(name).with_suffix("").name)
        found = sorted(path.glob(f"rank_*/{pattern}{_SUFFIX}"))
    else:
        saved = [file.with_suffix(_SUFFIX) for file in path.glob("rank_*/*") if file.suffix in _FORMATS]
        saved = [state for state in saved if state.exists()]  # with `async_save` the last checkpoint may be unfinished
        found = sorted(saved, key=lambda state: state.stat().st_mtime)[-1:]
    return next((state for state in found if state.exists()), None)
