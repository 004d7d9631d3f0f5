"""States beside checkpoints: the file of each checkpoint, its step, and what a resumed run may not change."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import StateError
from tests.helpers import json_lines, pairs

pytestmark = pytest.mark.mindspore


def stream(**options: Any) -> mps.Stream:
    return mps.stream(pairs(17), task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(4), **({"seed": 1} | options))


def saved(checkpoint: pathlib.Path, dataset: Any, *, before: int = 0, done: int = 1) -> dict[str, Any]:
    """The state beside a checkpoint that MindFormers has just written."""
    from ms_prefstream.adapters.run_states import save_state

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    monitor = type("Monitor", (), {"latest_ckpt_file_name": str(checkpoint), "_append_step_num": before})
    save_state(dataset, monitor, done)
    state: dict[str, Any] = json.loads(checkpoint.with_suffix(".stream_state.json").read_text())
    return state


def resumed(dataset: Any, place: pathlib.Path, *, step: int = 1, **config: Any) -> None:
    from ms_prefstream.adapters.run_states import check_resumed

    runner = {"initial_step": step}
    check_resumed(dataset, {"load_checkpoint": str(place), "resume_training": True, "runner_config": runner} | config)


def test_a_checkpoint_that_is_named_as_a_file_has_its_own_state(tmp_path: pathlib.Path) -> None:
    one, other = tmp_path / "one.v2_rank_0-1_1.ckpt", tmp_path / "other_rank_0-1_1.ckpt"
    saved(one, stream().dataset())
    saved(other, stream(seed=2).dataset())
    begun = stream().dataset()
    begun.set_init_step(1)
    resumed(begun, one)
    with pytest.raises(StateError, match=r"other_rank_0-1_1\.stream_state\.json: .* seed was 2 and is 1 now"):
        resumed(begun, other)


def test_a_name_counts_for_every_rank(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "rank_0" / "x_rank_0-1_1.ckpt", stream(seed=2).dataset())
    with pytest.raises(StateError, match="seed was 2 and is 1 now"):
        resumed(stream().dataset(), tmp_path, resume_training="x_rank_3-1_1.ckpt")
    resumed(stream().dataset(), tmp_path, resume_training="y_rank_0-1_1.ckpt")  # saved by nobody: nothing to compare


def test_a_run_that_does_not_resume_is_not_checked(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "x.ckpt", stream(seed=2).dataset())
    resumed(stream().dataset(), tmp_path / "x.ckpt", step=0, resume_training=False)


def test_a_state_that_is_damaged_is_named(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "x.ckpt", stream().dataset())
    (tmp_path / "x.stream_state.json").write_text("{")
    with pytest.raises(StateError, match=r"x\.stream_state\.json is damaged"):
        resumed(stream().dataset(), tmp_path / "x.ckpt")


def test_where_another_dataset_stands_before_the_stream_the_trainers_steps_count(tmp_path: pathlib.Path) -> None:
    from ms_prefstream.adapters.mindformers import PrefStreamDataLoader

    keys = {"source": pairs(17), "tokenizer": "bytes", "batching": {"type": "Pad", "batch_size": 4}, "seed": 1}
    samples = PrefStreamDataLoader(task={"type": "DPO", "max_length": 128}, **keys).batch(4)
    samples.set_init_step(5)
    assert saved(tmp_path / "x.ckpt", samples, before=5, done=2)["step"] == 7
    resumed(samples, tmp_path / "x.ckpt", step=7)
    other = PrefStreamDataLoader(task={"type": "DPO", "max_length": 128}, **keys | {"source": pairs(18)}).batch(4)
    with pytest.raises(StateError, match="data was"):
        resumed(other, tmp_path / "x.ckpt", step=7)


def test_a_finished_batch_is_counted_from_where_its_dataset_begins(tmp_path: pathlib.Path) -> None:
    later = stream()
    assert saved(tmp_path / "x.ckpt", later.dataset(start_epoch=2), done=3)["step"] == 2 * later.steps_per_epoch + 3


def _states(folder: pathlib.Path) -> list[str]:
    return sorted(path.name.removesuffix(".stream_state.json") for path in folder.glob("*.stream_state.json"))


def test_a_state_stays_until_its_checkpoint_was_there_and_is_gone(tmp_path: pathlib.Path) -> None:
    from ms_prefstream.adapters.run_states import save_state

    dataset, monitor = stream().dataset(), type("Monitor", (), {"_append_step_num": 0})()
    for step in range(1, 5):  # as with async_save: each checkpoint appears behind the next state
        monitor.latest_ckpt_file_name = str(tmp_path / f"x-1_{step}.ckpt")
        save_state(dataset, monitor, step)
        if step > 1:
            (tmp_path / f"x-1_{step - 1}.ckpt").touch()
    assert _states(tmp_path) == ["x-1_1", "x-1_2", "x-1_3", "x-1_4"]
    (tmp_path / "x-1_1.ckpt").unlink()
    (tmp_path / "x-1_3.ckpt").unlink()  # nobody has seen this one
    monitor.latest_ckpt_file_name = str(tmp_path / "x-1_5.ckpt")
    save_state(dataset, monitor, 5)
    assert _states(tmp_path) == ["x-1_2", "x-1_3", "x-1_4", "x-1_5"]


def test_the_states_of_another_run_in_the_folder_stay(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "tiny-1_1.ckpt", stream().dataset())
    saved(tmp_path / "other-1_1.safetensors", stream().dataset())
    assert _states(tmp_path) == ["other-1_1", "tiny-1_1"]


def test_a_state_whose_checkpoint_was_never_finished_is_not_the_last(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "rank_0" / "x-1_1.safetensors", stream().dataset())
    saved(tmp_path / "rank_0" / "x-1_2.safetensors", stream(seed=2).dataset())
    (tmp_path / "rank_0" / "x-1_2.safetensors").unlink()
    begun = stream().dataset()
    begun.set_init_step(1)
    resumed(begun, tmp_path)


def test_no_state_is_written_where_an_operation_skips_steps(tmp_path: pathlib.Path) -> None:
    from ms_prefstream.adapters.mindformers import PrefStreamDataLoader
    from ms_prefstream.adapters.run_states import save_state

    keys = {"source": pairs(17), "tokenizer": "bytes", "batching": {"type": "Pad", "batch_size": 4}, "seed": 1}
    loader = PrefStreamDataLoader(task={"type": "DPO", "max_length": 128}, **keys)
    monitor = type("Monitor", (), {"_append_step_num": 0, "latest_ckpt_file_name": str(tmp_path / "x-1_4.ckpt")})()
    for dataset in (stream().dataset().take(3), stream().dataset().repeat(2), loader.take(8).batch(4)):
        save_state(dataset, monitor, 4)
        assert _states(tmp_path) == []
    save_state(loader.batch(4).repeat(1), monitor, 4)
    assert _states(tmp_path) == ["x-1_4"]


def test_the_remedy_for_other_shards_is_said_where_they_are_set(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "x.ckpt", stream(logical_shards=2).dataset())
    with pytest.raises(StateError, match=r"logical_shards: 2 in data_loader, or mps\.stream\(.*has the former shards"):
        resumed(stream().dataset(), tmp_path / "x.ckpt")


def test_the_remedy_for_a_new_index_is_not_another_number_of_shards(tmp_path: pathlib.Path) -> None:
    file = json_lines(tmp_path / "rows.jsonl", pairs(17))
    options: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Pad(4), "seed": 1}
    saved(tmp_path / "x.ckpt", mps.stream(file, **options).dataset())
    mps.stream(file, **options).build_index()
    with pytest.raises(StateError, match=r"remove the index file .* or start again") as refused:
        resumed(mps.stream(file, **options).dataset(), tmp_path / "x.ckpt")
    assert "has the former shards" not in str(refused.value)
