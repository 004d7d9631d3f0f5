"""A stream of a cache gives the batches of a stream of the text, bit for bit."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import StateError
from tests.cache.places import PART, TASKS, rows_with_bad, source, stream_of
from tests.helpers import assert_resumes_everywhere, assert_same_batches, json_lines, pairs
from tests.pools import wait_ready

pytestmark = pytest.mark.mindspore

BATCHINGS = {
    "bucket": mps.Bucket(4),
    "shapes": mps.Bucket(4, max_shapes=3),
    "pad": mps.Pad(3),
    "pack": mps.Pack(640, batch_size=2),
}


def cached(path: Any, task: Any, out: pathlib.Path, **options: Any) -> str:
    mps.write_cache(stream_of(path, task), out, rows_per_part=PART, **options)
    return str(out)


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("task", TASKS)
def test_batches_are_those_of_the_text(task: str, batching: str, index: bool, tmp_path: pathlib.Path) -> None:
    if batching == "pack" and (task == "reward" or not index):
        pytest.skip("mindformers' reward layout is never packed; packs without an index need steps_per_epoch")
    path, made, batches = source(tmp_path), TASKS[task], BATCHINGS[batching]
    if batching == "pack" and task == "dpo":
        made = mps.DPO(128)  # packs have no margin
    out = cached(path, made, tmp_path / "out")
    text = stream_of(path, made, batches if batching != "pack" else mps.Pad(1), index=None)
    if index:
        text.build_index()
        text = stream_of(path, made, batches)
    again = stream_of(out, made, batches, tokenizer=None, index="auto" if index else None)
    assert again.steps_per_epoch == text.steps_per_epoch
    assert again.shapes == text.shapes
    for epoch in range(2):
        assert_same_batches(list(again.batches(epoch)), list(text.batches(epoch)))
        for step in range(text.steps_per_epoch):
            assert again.rows(epoch, step, True).tolist() == text.rows(epoch, step, True).tolist()
    assert again.report.dropped == text.report.dropped


def test_its_length_index_is_that_of_the_text(tmp_path: pathlib.Path) -> None:
    path, task = source(tmp_path), TASKS["dpo"]
    out = cached(path, task, tmp_path / "out")
    index = stream_of(path, task).build_index()
    assert pathlib.Path(index.path).read_bytes() == pathlib.Path(out, "lengths.mprefidx").read_bytes()


def test_ranks_share_it_and_a_run_resumes(tmp_path: pathlib.Path) -> None:
    path, task, batches = source(tmp_path), TASKS["dpo"], mps.Bucket(2)
    out = cached(path, task, tmp_path / "out")
    stream_of(path, task).build_index()
    for rank in range(2):
        ranked = {"num_shards": 2, "shard_id": rank}
        text, again = stream_of(path, task, batches, **ranked), stream_of(out, task, batches, **ranked)
        assert_same_batches(list(again.batches(1)), list(text.batches(1)))
    assert_resumes_everywhere(lambda: stream_of(out, task, mps.Bucket(8), tokenizer=None))


def test_worker_processes_read_it(tmp_path: pathlib.Path) -> None:
    out, task = cached(source(tmp_path), TASKS["rlhf"], tmp_path / "out"), TASKS["rlhf"]
    alone = list(stream_of(out, task, mps.Bucket(4), tokenizer=None).batches())
    stream = stream_of(out, task, mps.Bucket(4), tokenizer=None, workers=1)
    wait_ready(stream.data.pool)  # or this process would read the rows itself
    assert_same_batches(list(stream.batches()), alone)


def test_a_state_holds_for_the_cache_whether_the_tokenizer_is_named_or_not(tmp_path: pathlib.Path) -> None:
    out, task = cached(source(tmp_path), TASKS["dpo"], tmp_path / "out"), TASKS["dpo"]
    state = stream_of(out, task, mps.Bucket(4)).state(3)
    assert stream_of(out, task, mps.Bucket(4), tokenizer=None).resume(state).start_step == 3


def test_a_state_of_the_text_is_none_of_the_cache(tmp_path: pathlib.Path) -> None:
    path, task = source(tmp_path), TASKS["dpo"]
    text, again = stream_of(path, task), stream_of(cached(path, task, tmp_path / "out"), task, index=None)
    for state, other in ((text.state(3), again), (again.state(3), text)):
        with pytest.raises(StateError, match="data"):
            other.resume(state)


def test_parts_of_a_mix_may_be_caches(tmp_path: pathlib.Path) -> None:
    task, batches = TASKS["dpo"], mps.Bucket(4)
    first, second = source(tmp_path), str(json_lines(tmp_path / "more.jsonl", pairs(30, 100)))
    mixed = stream_of(mps.mix([(first, 2), (second, 1)]), task, batches, index=None)
    out = cached(first, task, tmp_path / "out")
    again = stream_of(mps.mix([(out, 2), (second, 1)]), task, batches)  # one part has no index: the mix has none
    assert_same_batches(list(again.batches()), list(mixed.batches()))
    other = cached(second, task, tmp_path / "more")
    again = stream_of(mps.mix([(out, 2), (other, 1)]), task, batches)
    mixed = stream_of(mps.mix([(first, 2), (second, 1)]), task, batches)
    mixed.build_index()
    assert_same_batches(list(again.batches()), list(mixed.batches()))
    again.build_index()  # nothing to measure
    assert_same_batches(list(again.batches(1)), list(mixed.batches(1)))


def test_a_list_of_caches_is_all_of_them(tmp_path: pathlib.Path) -> None:
    task = TASKS["dpo"]
    second = str(json_lines(tmp_path / "more.jsonl", pairs(30, 100)))
    outs = [cached(source(tmp_path), task, tmp_path / "a"), cached(second, task, tmp_path / "b")]
    texts = stream_of([str(tmp_path / "rows.jsonl"), second], task, mps.Bucket(4), index=None)
    assert_same_batches(list(stream_of(outs, task, mps.Bucket(4), tokenizer=None).batches()), list(texts.batches()))


def test_malformed_rows_that_were_dropped_stay_dropped(tmp_path: pathlib.Path) -> None:
    path, task = source(tmp_path, [*rows_with_bad(20), "{broken", {"prompt": 3}]), TASKS["dpo"]
    manifest = mps.write_cache(stream_of(path, task, on_bad_row="drop"), tmp_path / "out", rows_per_part=PART)
    assert manifest.dropped["bad_json"] == {"rows": 1, "first": [f"{path}:21"]}
    for index in ("auto", None):  # on_bad_row="raise" asks for nothing here: it was decided when the cache was written
        stream = stream_of(str(tmp_path / "out"), task, mps.Pad(2), tokenizer=None, index=index)
        assert len(list(stream.batches())) == stream.steps_per_epoch
        assert stream.report.dropped["bad_json"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_mindspore_reads_the_columns(task: str, tmp_path: pathlib.Path) -> None:
    from mindspore.dataset import MindDataset
    from mindspore.mindrecord import FileReader

    path, made = source(tmp_path), TASKS[task]
    out = cached(path, made, tmp_path / "out")
    stream = stream_of(path, made, index=None)
    good = [(row, one.sample) for row, one in enumerate(stream.data.local.load(range(50))) if one.sample]
    files = sorted(str(file) for file in (tmp_path / "out").glob("*.mindrecord"))
    names = list(mps.write_cache(stream, tmp_path / "other").columns)
    dataset = MindDataset(files, columns_list=names, shuffle=False)
    found = list(dataset.create_dict_iterator(num_epochs=1, output_numpy=True))
    read = [row for file in files for row in _rows(FileReader(file))]
    assert len(found) == len(read) == len(good)
    for (row, sample), one, other in zip(good, found, read, strict=True):
        expected: dict[str, Any] = {"row_id": np.array([row])}
        sides = ("chosen_ids", "rejected_ids") if len(sample.sequences) == 2 else ("ids",)
        expected |= {name: side.ids for name, side in zip(sides, sample.sequences, strict=True)}
        if sample.prompt is not None:
            expected["prompt_ids"] = sample.prompt
        if "margin" in names:
            expected["margin"] = np.array([sample.margin], np.float32)
        marks = [0]
        for side in sample.sequences:
            marks += [int(side.truncated), len(side.spans), *(end for span in side.spans for end in span)]
        expected["marks"] = np.array(marks)
        assert set(expected) == set(names)
        for name, values in expected.items():
            assert one[name].tolist() == other[name].tolist() == values.tolist(), name
    assert pathlib.Path(out).is_dir()


def _rows(reader: Any) -> list[Any]:
    rows = list(reader.get_next())
    reader.close()
    return rows
