"""The layouts of today's trainers: MindSpore's readers find the stream's own arrays in every column."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, SourceError
from tests.cache.places import LAYOUTS, PAD, PART, TASKS, source, stream_of
from tests.helpers import json_lines, pairs

pytestmark = pytest.mark.mindspore

DTYPES = {
    "mindrlhf dpo": "int32",
    "mindrlhf dpo shifted": "int32",
    "mindrlhf rlhf": "int64",
    "mindformers reward": "int32",
}
COLUMNS = {
    "mindrlhf dpo": [
        "chosen_input_ids", "chosen_labels", "chosen_attention_mask", "chosen_loss_mask",
        "rejected_input_ids", "rejected_labels", "rejected_attention_mask", "rejected_loss_mask",
    ],
    "mindrlhf rlhf": ["prompt_ids", "pretrain_ids", "loss_mask"],
    "mindformers reward": [
        "chosen_input_ids", "chosen_attention_mask", "rejected_input_ids", "rejected_attention_mask",
        "position_id", "loss_mask", "end_ind",
    ],
}  # fmt: skip
COLUMNS["mindrlhf dpo shifted"] = COLUMNS["mindrlhf dpo"]


def expected(case: str, path: str, task: Any, length: int) -> list[dict[str, Any]]:
    """The rows of a file, from the arrays of a stream that keeps the order of the source."""
    stream = stream_of(path, task, mps.Pad(1, length=length), shuffle=False, index=None)
    stream.build_index(pathlib.Path(path).with_suffix(".idx"))  # without dropped rows
    rows = []
    for batch in stream.batches():
        if case == "mindformers reward":
            ids, mask = batch["input_ids"], batch["attention_mask"]
            rows.append(
                {
                    "chosen_input_ids": ids[0], "rejected_input_ids": ids[1], "chosen_attention_mask": mask[0],
                    "rejected_attention_mask": mask[1], "position_id": batch["position_id"][0],
                    "loss_mask": batch["loss_mask"][0], "end_ind": batch["end_ind"].max(),
                }
            )  # fmt: skip
        else:
            rows.append({name: array[0] for name, array in batch.items()})
    return rows


@pytest.mark.parametrize("length", [128, 129])
@pytest.mark.parametrize("case", LAYOUTS)
def test_values_are_those_of_the_stream(case: str, length: int, tmp_path: pathlib.Path) -> None:
    from mindspore.dataset import MindDataset
    from mindspore.mindrecord import FileReader

    (layout, task), path = LAYOUTS[case], source(tmp_path)
    stream = stream_of(path, task, mps.Pad(2, length=length))
    manifest = mps.write_cache(stream, tmp_path / "out", layout=layout, rows_per_part=PART)
    assert list(manifest.columns) == COLUMNS[case]
    files = sorted(str(file) for file in (tmp_path / "out").glob("*.mindrecord"))
    assert len(files) == 4
    dataset = MindDataset(files, columns_list=COLUMNS[case], shuffle=False)
    found = list(dataset.create_dict_iterator(num_epochs=1, output_numpy=True))
    read = []
    for file in files:
        reader = FileReader(file)
        read += list(reader.get_next())
        reader.close()
    rows = expected(case, path, task, length)
    assert len(found) == len(read) == len(rows) == manifest.rows > 30  # nothing is lost at the tail
    for one, other, row in zip(found, read, rows, strict=True):
        assert set(one) == set(other) == set(row)
        for name in COLUMNS[case]:
            wanted = "int64" if name == "end_ind" else DTYPES[case]
            columns = () if name == "end_ind" else (48 if name == "prompt_ids" else length,)
            assert one[name].dtype == wanted, name
            assert one[name].shape == np.shape(other[name]) == columns, name
            assert one[name].tolist() == np.asarray(other[name]).tolist() == row[name].tolist(), name


def test_a_file_without_good_rows_is_not_written(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "p", "chosen": "same", "rejected": "same"}] * PART + [
        {"prompt": "p", "chosen": "one", "rejected": "other"}
    ]
    manifest = mps.write_cache(
        stream_of(source(tmp_path, rows), mps.DPO(64)), tmp_path / "out", layout="mindrlhf", rows_per_part=PART
    )
    assert [path.name for path in (tmp_path / "out").glob("*.mindrecord")] == ["part-00001.mindrecord"]
    assert (manifest.rows, manifest.source_rows) == (1, PART + 1)


def test_a_pad_id_that_a_text_holds_is_refused_for_readers_that_search_for_it(tmp_path: pathlib.Path) -> None:
    path, task = source(tmp_path), mps.Reward(128)
    stream = stream_of(path, task, pad_token_id=ord("e"))
    with pytest.raises(OptionError, match=r"rows\.jsonl:1: .* id 101.*pad_token_id= \(--pad-token-id\)"):
        mps.write_cache(stream, tmp_path / "out", layout="mindformers")
    assert not (tmp_path / "out").exists()
    assert mps.write_cache(stream, tmp_path / "ragged").rows  # which knows its lengths
    assert stream_of(path, task).pad_token_id == PAD


@pytest.mark.parametrize(
    ("layout", "task"),
    [
        ("mindrlhf", TASKS["reward"]),
        ("mindformers", mps.DPO(64)),
        ("mindformers", TASKS["reward_token"]),
        ("mindrlhf", mps.DPO(64, margin=True)),
        ("paired", mps.DPO(64)),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout: str, task: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=layout):
        mps.write_cache(stream_of(source(tmp_path), task), tmp_path / "out", layout=layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_rows_may_not_be_longer_than_the_arrays(tmp_path: pathlib.Path) -> None:
    rows = json_lines(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(OptionError, match="length"):
        mps.write_cache(stream_of(rows, mps.DPO(64), mps.Pad(1, length=60)), tmp_path / "out", layout="mindrlhf")


def test_a_padded_cache_is_for_other_readers(tmp_path: pathlib.Path) -> None:
    mps.write_cache(stream_of(source(tmp_path), mps.DPO(128)), tmp_path / "out", layout="mindrlhf")
    with pytest.raises(SourceError, match="MindDataset"):
        stream_of(str(tmp_path / "out"), mps.DPO(128))


def test_a_padded_cache_can_be_made_of_a_ragged_one(tmp_path: pathlib.Path) -> None:
    path, task = source(tmp_path), mps.DPO(128)
    mps.write_cache(stream_of(path, task), tmp_path / "ragged")
    mps.write_cache(stream_of(path, task), tmp_path / "a", layout="mindrlhf", rows_per_part=PART)
    stream = stream_of(str(tmp_path / "ragged"), task, tokenizer=None)
    mps.write_cache(stream, tmp_path / "b", layout="mindrlhf", rows_per_part=PART)
    for name in ("part-00000.mindrecord", "part-00003.mindrecord.db", "places.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_short_last_part_is_read_together_with_the_others(tmp_path: pathlib.Path) -> None:
    """MindSpore refuses files whose pages differ in size, and sizes follow from the rows of a part."""
    from mindspore.dataset import MindDataset

    stream = stream_of(source(tmp_path, pairs(430)), mps.DPO(1024))
    for layout, column in (("mindrlhf", "chosen_input_ids"), ("ragged", "chosen_ids")):
        mps.write_cache(stream, tmp_path / layout, layout=layout, rows_per_part=400)
        files = sorted(str(file) for file in (tmp_path / layout).glob("*.mindrecord"))
        dataset = MindDataset(files, columns_list=[column], shuffle=False)
        assert sum(1 for _ in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)) == 430


@pytest.mark.parametrize("workers", [0, 2])
def test_fields_that_nothing_read_are_counted(tmp_path: pathlib.Path, workers: int) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"{n}", "chosen": "yes", "rejected": "no"} for n in range(40)]
    rows[17]["notes"] = rows[30]["notes"] = "text"
    rows[31] |= {"notes": "text", "chosen": "no"}  # identical, so it is dropped
    for given in (rows, lambda: iter(rows)):
        stream = mps.stream(given, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2), verbose=False)
        mps.write_cache(stream, tmp_path / "out", rows_per_part=16, workers=workers, overwrite=True)
        assert stream.report.unread == {"notes": 2}
        assert "first at row 17 of " in str(stream.report)


def test_the_file_of_the_grpo_trainer_holds_the_answer_alone(tmp_path: pathlib.Path) -> None:
    from mindspore.dataset import MindDataset

    rows = [{"prompt": "1+1", "response": "2"}, {"prompt": "long one", "response": "34"}]
    stream = mps.stream(
        json_lines(tmp_path / "rows.jsonl", rows),
        task=mps.RLHF(max_prompt_length=4, seq_length=6),
        tokenizer="bytes",
        template=None,
        batching=mps.Pad(1),
    )
    mps.write_cache(stream, tmp_path / "out", layout="mindrlhf-grpo")
    (path,) = (tmp_path / "out").glob("*.mindrecord")
    found = list(MindDataset(str(path), shuffle=False).create_dict_iterator(output_numpy=True))
    assert {name: array.dtype for name, array in found[0].items()} == dict.fromkeys(COLUMNS["mindrlhf rlhf"], np.int64)
    assert [row["prompt_ids"].tolist() for row in found] == [[49, 43, 49, PAD], list(b" one")]
    assert [row["pretrain_ids"].tolist() for row in found] == [[50, 258, *[PAD] * 4], [51, 52, 258, *[PAD] * 3]]
    assert [row["loss_mask"].tolist() for row in found] == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_the_grpo_trainer_needs_an_answer_and_a_pad_id_of_its_own(tmp_path: pathlib.Path) -> None:
    options: Any = {"task": mps.RLHF(8, 16), "tokenizer": "bytes", "template": None, "batching": mps.Pad(1)}
    alone = mps.stream([{"prompt": "1+1"}], **options)
    with pytest.raises(OptionError, match="row 0 has no response; layout 'mindrlhf-grpo' needs the answer"):
        mps.write_cache(alone, tmp_path / "out", layout="mindrlhf-grpo")
    padded = mps.stream([{"prompt": "1+1", "response": "2"}], pad_token_id=50, **options)
    with pytest.raises(OptionError, match="its text holds the id 50, which arrays are padded with"):
        mps.write_cache(padded, tmp_path / "other", layout="mindrlhf-grpo")
