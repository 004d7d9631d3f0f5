"""`StreamCheckpoint` inside a real `Model.train`: it saves what the trainer finished, not what was made ahead."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import re
import types
import warnings
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, StateError
from tests.helpers import Positioned, assert_same_batches, pairs, rows_of
from tests.kinds import source_of
from tests.training import Training, trainer

pytestmark = pytest.mark.mindspore
K = 5


class Killed(Exception):
    """Ends training in the middle, as a fault of the trainer would."""


def make(source: Any = None, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(2, multiple_of=64), "window": 2}
    return mps.stream(pairs(10) if source is None else source, **settings | options)


def whole(epochs: int = 3) -> list[list[int]]:
    return [rows for epoch in range(epochs) for rows in rows_of(make().batches(epoch))]


def killer(after: int) -> Any:
    """A callback that fails behind the step that MindSpore gives this number; behind the first one if it is 0."""
    import mindspore as ms

    class Killer(ms.train.Callback):
        def on_train_step_end(self, run_context: Any) -> None:
            if after in (0, run_context.original_args().cur_step_num):
                raise Killed

    return Killer()


def train(stream: mps.Stream, directory: pathlib.Path, epochs: int, kill: int = 0, **options: Any) -> Training:
    """One training call with a `StreamCheckpoint`; killed behind `kill` of its steps if that is not 0."""
    training = trainer()
    callbacks = [training.recorder, mps.StreamCheckpoint(stream, directory, **options)]
    callbacks += [killer(kill)] if kill else []
    with pytest.raises(Killed) if kill else contextlib.nullcontext():
        training.model.train(epochs, stream.dataset(), callbacks=callbacks, dataset_sink_mode=False)
    return training


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "generator function"])
@pytest.mark.parametrize("kill", [1, 3, K, K + 1, 2 * K - 1])
def test_a_killed_run_goes_on_behind_its_last_finished_step(kind: str, kill: int, tmp_path: pathlib.Path) -> None:
    """`kill` is the last step of an epoch, the first of the next, or inside one."""
    first = train(make(source_of(kind, tmp_path, pairs(10))), tmp_path, 2, kill)
    state = mps.load_state(tmp_path)
    assert state["step"] == kill == len(first.seen)
    stream = make(source_of(kind, tmp_path, pairs(10))).resume(state)
    second = train(stream, tmp_path, 2 - kill // K)
    expected = rows_of([*(reference := make(source_of(kind, tmp_path, pairs(10)))).batches(0), *reference.batches(1)])
    assert first.seen + second.seen == expected
    assert mps.load_state(tmp_path)["step"] == 2 * K


def test_the_finished_step_is_saved_although_more_steps_were_made(tmp_path: pathlib.Path) -> None:
    import time

    import mindspore as ms

    stream = make(batching=mps.Pad(2))  # nothing is sorted: a row is read when its step is made
    ahead = []

    class Slow(ms.train.Callback):
        def on_train_step_end(self, run_context: Any) -> None:
            time.sleep(0.05)  # time to make steps ahead
            ahead.append((mps.load_state(tmp_path)["step"], stream.report.read // 2))

    training = trainer()
    callbacks = [mps.StreamCheckpoint(stream, tmp_path), Slow()]
    training.model.train(1, stream.dataset(), callbacks=callbacks, dataset_sink_mode=False)
    assert [finished for finished, _ in ahead] == [1, 2, 3, 4, 5]
    assert ahead[0][1] > 1  # the case is what it says


def test_two_resumes_in_a_row(tmp_path: pathlib.Path) -> None:
    seen = train(make(), tmp_path, 3, kill=2).seen
    for kill in (4, 3):  # of the second call: steps 3 to 6 of all; of the third: steps 7 to 9
        stream = make().resume(mps.load_state(tmp_path))
        assert stream.start_step == len(seen)
        seen += train(stream, tmp_path, 3, kill=kill).seen
        assert mps.load_state(tmp_path)["step"] == len(seen)
    stream = make().resume(mps.load_state(tmp_path))
    seen += train(stream, tmp_path, 3 - len(seen) // K).seen
    assert seen == whole()


def test_train_called_twice_counts_on(tmp_path: pathlib.Path) -> None:
    """MindSpore counts the steps of each call from 1, and each new iterator begins at its dataset's epoch."""
    stream, training = make(), trainer()
    checkpoint = mps.StreamCheckpoint(stream, tmp_path)
    for epoch in range(2):
        training.model.train(
            1,
            stream.dataset(start_epoch=epoch),
            callbacks=[training.recorder, checkpoint],
            dataset_sink_mode=False,
        )
        assert mps.load_state(tmp_path)["step"] == (epoch + 1) * K
    assert training.seen == whole(2)


def test_a_resumed_run_of_several_calls(tmp_path: pathlib.Path) -> None:
    seen = train(make(), tmp_path, 2, kill=3).seen
    stream, training = make().resume(mps.load_state(tmp_path)), trainer()
    callbacks = [training.recorder, mps.StreamCheckpoint(stream, tmp_path)]
    steps = []
    for epoch in (None, 1, 2):
        training.model.train(1, stream.dataset(start_epoch=epoch), callbacks=callbacks, dataset_sink_mode=False)
        steps.append(mps.load_state(tmp_path)["step"])
    assert steps == [K, 2 * K, 3 * K]
    assert seen + training.seen == whole()


def test_each_dataset_of_a_stream_has_its_own_beginning(tmp_path: pathlib.Path) -> None:
    stream, training = make(), trainer()
    datasets = [stream.dataset(start_epoch=epoch) for epoch in range(3)]
    steps = []
    for epoch in (1, 0, 2):
        callbacks = [training.recorder, mps.StreamCheckpoint(stream, tmp_path)]
        training.model.train(1, datasets[epoch], callbacks=callbacks, dataset_sink_mode=False)
        steps.append(mps.load_state(tmp_path)["step"])
    assert steps == [2 * K, K, 3 * K]
    assert [training.seen[at : at + K] for at in (K, 0, 2 * K)] == [whole()[at : at + K] for at in (0, K, 2 * K)]


SAME: dict[str, Any] = {
    "map": lambda dataset: dataset.map(lambda ids: ids, "chosen_labels", python_multiprocessing=False),
    "rename": lambda dataset: dataset.rename("chosen_labels", "labels"),
    "project": lambda dataset: dataset.project(dataset.get_col_names()),
    "repeat": lambda dataset: dataset.repeat(2),
}


@pytest.mark.parametrize("kind", ["list", "generator function"])
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("view", SAME.values(), ids=SAME)
def test_behind_what_changes_no_order_the_step_is_the_streams(
    view: Any, step: int, kind: str, tmp_path: pathlib.Path
) -> None:
    stream, training = make(source_of(kind, tmp_path, pairs(10))), trainer()
    dataset = view(stream.dataset())
    if step:
        dataset.set_init_step(step)
    callbacks = [training.recorder, mps.StreamCheckpoint(stream, tmp_path), killer(2)]
    with pytest.raises(Killed):
        training.model.train(1, dataset, callbacks=callbacks, dataset_sink_mode=False)
    assert mps.load_state(tmp_path)["step"] == step + 2
    if kind == "list":
        assert training.seen == whole()[step : step + 2]


OTHER: dict[str, Any] = {
    "batch": (lambda stream: stream.dataset().batch(2), "a BatchDataset, are not"),
    "skip": (lambda stream: stream.dataset().skip(2), "a SkipDataset, are not"),
    "shuffle and batch": (lambda stream: stream.dataset().shuffle(4).batch(2), "a BatchDataset, are not"),
    "another stream": (lambda stream: make(seed=1).dataset(), "a StepDataset of another stream"),
    "sampler": (lambda stream: sampled(stream.dataset()), "a StepDataset, are not"),
    "no stream": (lambda stream: ms_dataset(), "a GeneratorDataset, are not"),
}


def ms_dataset() -> Any:
    import mindspore as ms

    return ms.dataset.GeneratorDataset([(1,)] * 4, ["a"])


def sampled(dataset: Any) -> Any:
    import mindspore as ms

    dataset.use_sampler(ms.dataset.SequentialSampler(start_index=2))
    return dataset


@pytest.mark.parametrize(("change", "said"), OTHER.values(), ids=OTHER)
def test_a_dataset_that_gives_other_steps_is_refused(change: Any, said: str, tmp_path: pathlib.Path) -> None:
    """A state would be written for a step that was never finished, and a resumed run would leave rows out."""
    stream = make()
    arguments = types.SimpleNamespace(cur_step_num=0, train_dataset=change(stream))
    with pytest.raises(OptionError, match=f"StreamCheckpoint: .*{said}.* Train on stream.dataset"):
        mps.StreamCheckpoint(stream, tmp_path).on_train_begin(types.SimpleNamespace(original_args=lambda: arguments))


@pytest.mark.parametrize("step", [2, K, K + 3])
def test_after_set_init_step_the_absolute_step_is_saved(step: int, tmp_path: pathlib.Path) -> None:
    stream, training = make(), trainer()
    dataset = stream.dataset()
    dataset.set_init_step(step)
    callbacks = [training.recorder, mps.StreamCheckpoint(stream, tmp_path), killer(0)]
    with pytest.raises(Killed):
        training.model.train(2, dataset, callbacks=callbacks, dataset_sink_mode=False, initial_epoch=step // K)
    state = mps.load_state(tmp_path)
    assert state["step"] == step + 1
    rest = train(make().resume(state), tmp_path, 2 - state["step"] // K)
    assert training.seen + rest.seen == whole(2)[step:]


def test_a_trainer_may_number_its_steps_from_anywhere(tmp_path: pathlib.Path) -> None:
    stream = make().resume(make().state(3))
    callback = mps.StreamCheckpoint(stream, tmp_path)
    arguments = types.SimpleNamespace(cur_step_num=40, train_dataset=stream.dataset())
    context = types.SimpleNamespace(original_args=lambda: arguments)
    callback.on_train_begin(context)
    for finished in (4, 5):
        arguments.cur_step_num += 1
        callback.on_train_step_end(context)
        assert mps.load_state(tmp_path)["step"] == finished


def test_every_and_keep(tmp_path: pathlib.Path) -> None:
    train(make(), tmp_path, 2, every=3, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["stream_state-10.json", "stream_state-9.json", "stream_state.json"]
    assert mps.load_state(tmp_path)["step"] == 10  # the end of training is always saved
    assert mps.load_state(tmp_path, step=9)["step"] == 9
    with pytest.raises(StateError, match=r"stream_state-6\.json does not exist; .* stream_state-10\.json, "):
        mps.load_state(tmp_path, step=6)


def test_what_is_no_stream_and_no_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OptionError, match=r"StreamCheckpoint: stream is a StepDataset; expected an object such as mps.stream"
    ):
        mps.StreamCheckpoint(make().dataset(), tmp_path)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match=r"StreamCheckpoint: .*file.* cannot be made a folder"):
            mps.StreamCheckpoint(make(), place)
    with pytest.raises(OptionError, match="directory is None; expected the path of the folder"):
        mps.load_state(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["every", "keep"])
@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_every_and_keep_are_whole_numbers(name: str, value: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=rf"StreamCheckpoint: {name} is {value!r}.*; expected a whole number"):
        mps.StreamCheckpoint(make(), tmp_path, **{name: value})


def test_only_rank_0_writes_and_every_rank_has_the_same_state(tmp_path: pathlib.Path) -> None:
    ranks = [make(batching=mps.Bucket(1, multiple_of=64), num_shards=2, shard_id=rank) for rank in range(2)]
    train(ranks[1], tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    train(ranks[0], tmp_path, 1)
    assert mps.load_state(tmp_path) == ranks[1].state(K)


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_full_disk_costs_no_training_while_an_older_state_is_whole(
    cause: int, fails: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ms_prefstream.mindspore.checkpoint import CheckpointWriter

    writer = CheckpointWriter(make(), tmp_path)
    writer.step_end(1)
    real = getattr(os, fails)

    def fail(*args: Any, **options: Any) -> Any:
        if fails == "open" and not args[1] & os.O_CREAT:
            return real(*args, **options)
        raise OSError(cause, os.strerror(cause))

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(2, 6):
                writer.step_end(step)
        (one,) = (str(warning.message) for warning in said)
        assert re.search(r"cannot be written: .* Training goes on; .* resumes after step 1 \(", one)
    assert mps.load_state(tmp_path)["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stream_state-1.json", "stream_state.json"]
    writer.step_end(6)
    assert mps.load_state(tmp_path)["step"] == 6


@pytest.mark.parametrize("before", ["nothing", "another run", "no state"])
def test_without_an_older_state_training_stops_with_a_sentence(
    before: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ms_prefstream.mindspore.checkpoint import CheckpointWriter

    writer = CheckpointWriter(make(), tmp_path)
    if before == "another run":
        CheckpointWriter(make(seed=5), tmp_path).step_end(1)
    elif before == "no state":
        (tmp_path / "stream_state.json").write_text("{}")

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match=r"the disk is full\. Make room, then run again\. Training stops"):
        writer.step_end(1)


@pytest.mark.parametrize("name", ["stream_state.json", "stream_state-1.json"])
@pytest.mark.parametrize("kind", ["file", "JSON", "link", "broken link", "pipe", "folder"])
def test_what_is_no_state_is_not_written_over(kind: str, name: str, tmp_path: pathlib.Path) -> None:
    from ms_prefstream.mindspore.checkpoint import CheckpointWriter

    thesis, path = tmp_path / "thesis.txt", tmp_path / "states" / name
    thesis.write_text("years of work")
    path.parent.mkdir()
    writer = CheckpointWriter(make(), path.parent)
    {
        "file": lambda: path.write_text("years of work"),
        "JSON": lambda: path.write_text('{"version": 1, "step": 3}'),
        "link": lambda: path.symlink_to(thesis),
        "broken link": lambda: path.symlink_to(tmp_path / "nothing"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    before = path.lstat()
    with pytest.raises(StateError, match=r"left as it is|expected a regular file"):
        writer.step_end(1)
    if name == "stream_state.json":
        with pytest.raises(OptionError, match=r"StreamCheckpoint: .*(left as it is|expected a regular file)"):
            CheckpointWriter(make(), path.parent)
    after = path.lstat()
    assert (after.st_mode, after.st_ino, after.st_size) == (before.st_mode, before.st_ino, before.st_size)
    assert thesis.read_text() == "years of work"


def test_only_own_states_are_removed(tmp_path: pathlib.Path) -> None:
    from ms_prefstream.mindspore.checkpoint import CheckpointWriter

    writer = CheckpointWriter(make(), tmp_path, keep=1)
    writer.step_end(1)
    (tmp_path / "stream_state-1.json").write_text("mine now")
    writer.step_end(2)
    writer.step_end(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stream_state-1.json", "stream_state-3.json", "stream_state.json",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_a_regular_file_is_read_as_a_state(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream_state.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(StateError, match="expected a regular file"):
        mps.load_state(tmp_path)


def counting(steps: int = 20) -> mps.Stream:
    return make(Positioned(40), steps_per_epoch=steps)


WRONG: list[Any] = [
    None, True, -1, 1.5, 10**18, 10**80, 1e308, "1", "x" * 100_000, [], [[1]], {}, {"a": {"b": [1]}}, "\x1b[2J",
]  # fmt: skip


def _deep(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "own state"])
def test_a_doctored_state_is_refused_field_by_field(kind: str, tmp_path: pathlib.Path) -> None:
    new = make if kind == "list" else counting
    stream = new()
    for _ in zip(range(5), stream.batches(), strict=False):
        pass
    good = json.loads(json.dumps(stream.state(4)))
    assert new().resume(good).start_step == 4
    assert ("source" in good) == (kind == "own state")
    fields = [(good, name) for name in good]
    if kind == "own state":
        fields += [(good["source"], name) for name in good["source"]] + [(good["source"]["state"], "state")]
        fields += [(good["source"]["state"], "row")]
    tried = 0
    expected = list(new().batches())[4]
    for holder, name in fields:
        was = holder[name]
        for wrong in [*WRONG, _deep(200), _deep(800), float("nan"), float("inf"), "missing"]:
            if (wrong == was and type(wrong) is type(was)) or (name == "source" and wrong is None):
                continue
            holder[name] = wrong
            if wrong == "missing":
                del holder[name]
                if name == "source":
                    holder[name] = was
                    continue
            for state in (good, _through_file(good, tmp_path)):
                if state is None:
                    continue
                tried += 1
                try:
                    resumed = new().resume(state)
                    assert_same_batches([next(resumed.batches())], [expected])
                except mps.PrefStreamError as error:
                    said = str(error)
                    assert len(said) < 2_000, (name, said[:3000])
                    assert "\x1b" not in said
                else:  # a position that the source reports about itself is checked by the rows after it
                    assert holder not in (good, good["source"]), f"{name} = {wrong!r} was taken"
            holder[name] = was
    assert tried > 400
    for wrong in ([], [good], 1, "x", None, [1] * 5):
        with pytest.raises(StateError):
            new().resume(wrong)  # type: ignore[arg-type]


def _through_file(state: Any, folder: pathlib.Path) -> Any:
    """The state as it is read from a file; None if reading refuses it."""
    (folder / "stream_state.json").write_text(json.dumps(state))
    try:
        return mps.load_state(folder)
    except StateError as error:
        assert len(str(error)) < 1_000  # noqa: PT017
        return None


def test_arrays_and_other_objects_in_a_state_are_refused() -> None:
    import numpy as np

    for name in ("seed", "widths", "step", "epoch"):
        for value in (np.zeros(3), np.int64(7), object(), pytest):
            with pytest.raises(StateError, match=name):
                make().resume({**make().state(1), name: value})


def test_a_source_with_large_numbers_in_its_state_is_saved(tmp_path: pathlib.Path) -> None:
    """A generator of numpy has numbers of 128 bits in its state."""
    from ms_prefstream.mindspore.checkpoint import json_text, read_state

    state = {**make().state(1), "source": {"state": 2**127}}
    (tmp_path / "x.json").write_bytes(json_text(state))
    assert read_state(tmp_path / "x.json") == state


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_a_file_that_is_no_state_is_refused(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "stream_state.json").write_text(content)
    with pytest.raises(StateError, match=r"stream_state\.json is damaged: .* Take another of the states"):
        mps.load_state(tmp_path)


def test_without_a_state_the_directory_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StateError, match=r"stream_state\.json does not exist; states in that directory: none\."):
        mps.load_state(tmp_path)


def test_the_state_is_plain_json(tmp_path: pathlib.Path) -> None:
    train(make(), tmp_path, 1, kill=2)
    assert json.loads((tmp_path / "stream_state.json").read_text()) == make().state(2)
