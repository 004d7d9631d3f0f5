"""Reference log-probabilities: computed once, stored, bound to tokens and checkpoint, and in the stream's columns."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, OptionError, StateError
from ms_prefstream.cache.verify import verify
from ms_prefstream.mindrecord.manifest import MANIFEST, read_manifest
from tests.cache.places import PART, flip, source, stream_of, tree
from tests.helpers import Batch, assert_same_batches, json_lines, pairs

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)
COLUMNS = [
    "chosen_input_ids", "chosen_labels", "chosen_attention_mask", "chosen_loss_mask", "chosen_ref_logps",
    "rejected_input_ids", "rejected_labels", "rejected_attention_mask", "rejected_loss_mask", "rejected_ref_logps",
]  # fmt: skip


def logps(batch: Batch) -> tuple[Any, Any]:
    """A model that depends on nothing but a row's own tokens under the mask."""
    found = [
        -np.log(1.0 + batch[f"{side}_input_ids"]).astype(np.float64) * batch[f"{side}_loss_mask"]
        for side in ("chosen", "rejected")
    ]
    return found[0].sum(axis=1), found[1].sum(axis=1)


def file_of(out: pathlib.Path) -> str:
    """The only file with log-probabilities in a cache."""
    (path,) = out.glob("reference*.npy")
    return path.name


class Counting:
    def __init__(self, stop: int = -1) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.stop = stop

    def __call__(self, batch: Batch) -> tuple[Any, Any]:
        if len(self.shapes) == self.stop:
            raise KeyboardInterrupt
        self.shapes.append(batch["chosen_input_ids"].shape)
        return logps(batch)


def write(stream: mps.Stream, out: pathlib.Path, reference: Any = logps, name: Any = "sft", **options: Any) -> Any:
    return mps.write_cache(stream, out, rows_per_part=PART, reference=reference, reference_id=name, **options)


def test_the_stream_has_the_columns(tmp_path: pathlib.Path) -> None:
    path, out, batching = source(tmp_path), tmp_path / "out", mps.Bucket(4, multiple_of=32)
    model = Counting()
    manifest = write(stream_of(path, TASK, batching), out, model)
    assert manifest.reference is not None
    assert manifest.reference["reference_id"] == "sft"
    assert {shape[0] for shape in model.shapes} == {4}
    assert {shape[1] for shape in model.shapes} <= {32, 64, 96, 128}
    stream = stream_of(str(out), TASK, batching, tokenizer=None)
    assert stream.column_names == COLUMNS
    stream_of(path, TASK).build_index()
    text = stream_of(path, TASK, batching)
    for found, batch in zip(stream.batches(), text.batches(), strict=True):
        for name, side in zip(("chosen_ref_logps", "rejected_ref_logps"), logps(batch), strict=True):
            values = found.pop(name)
            assert values.dtype == np.float32
            assert values.shape == (4, 1)
            assert values[:, 0].tolist() == side.astype(np.float32).tolist()
        assert_same_batches([found], [batch])
    assert not any(one.problem for one in verify(str(out)))


def test_it_is_added_without_writing_again(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    mps.write_cache(stream_of(path, TASK), out, rows_per_part=PART)
    before, model = tree(out), Counting()
    times = {entry.name: entry.stat().st_mtime_ns for entry in out.glob("part-*")}
    write(stream_of(path, TASK), out, model)
    after = tree(out)
    assert {entry.name: entry.stat().st_mtime_ns for entry in out.glob("part-*")} == times
    assert {name for name in after if after[name] != before.get(name)} == {MANIFEST, file_of(out)}
    with pytest.raises(OptionError, match="already"):
        write(stream_of(path, TASK), out)
    with pytest.raises(StateError, match="reference 'sft', and reference_id is 'other' now"):
        write(stream_of(path, TASK), out, name="other")
    write(stream_of(path, TASK), out, name="other", overwrite=True)
    assert read_manifest(str(out)).reference["reference_id"] == "other"  # type: ignore[index]


def test_an_interrupted_pass_goes_on(tmp_path: pathlib.Path) -> None:
    path, batching = source(tmp_path), mps.Pad(4)
    write(stream_of(path, TASK, batching), tmp_path / "whole")
    whole = Counting()
    write(stream_of(path, TASK, batching), tmp_path / "counted", whole)
    with pytest.raises(KeyboardInterrupt):
        write(stream_of(path, TASK, batching), tmp_path / "out", Counting(stop=9))
    assert not (tmp_path / "out").exists()
    rest = Counting()
    write(stream_of(path, TASK, batching), tmp_path / "out", rest)
    assert len(rest.shapes) < len(whole.shapes)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")) == ["out"]


def test_it_is_bound_to_its_tokens(tmp_path: pathlib.Path) -> None:
    """Files of one cache in another one, with a manifest that somebody has made fit."""
    first, out = source(tmp_path), tmp_path / "out"
    second = str(json_lines(tmp_path / "more.jsonl", pairs(50, 100)))
    write(stream_of(first, TASK), out)
    write(stream_of(second, TASK), tmp_path / "other")
    shutil.copy(tmp_path / "other" / file_of(tmp_path / "other"), out / file_of(out))
    with pytest.raises(CacheError, match=r"reference-\w+\.npy is damaged"):
        stream_of(str(out), TASK, tokenizer=None)
    ours, theirs = read_manifest(str(out)), read_manifest(str(tmp_path / "other"))
    ours.files[file_of(out)] = theirs.files[file_of(tmp_path / "other")]  # type: ignore[index]
    object.__setattr__(ours, "reference", {**theirs.reference, "file": file_of(out)})  # type: ignore[dict-item]
    (out / MANIFEST).write_text(ours.text(), "utf-8")
    with pytest.raises(StateError, match="belongs to other tokens"):
        stream_of(str(out), TASK, tokenizer=None)


def test_a_flipped_byte_is_found(tmp_path: pathlib.Path) -> None:
    write(stream_of(source(tmp_path), TASK), tmp_path / "out")
    flip(tmp_path / "out" / file_of(tmp_path / "out"), -3)
    assert [one.name for one in verify(str(tmp_path / "out")) if one.problem] == [file_of(tmp_path / "out")]
    with pytest.raises(CacheError, match=r"reference-\w+\.npy is damaged"):
        stream_of(str(tmp_path / "out"), TASK, tokenizer=None)


def test_ten_columns_for_mindrlhf(tmp_path: pathlib.Path) -> None:
    from mindspore.dataset import MindDataset

    path = source(tmp_path)
    write(stream_of(path, TASK), tmp_path / "ragged")
    stream = stream_of(str(tmp_path / "ragged"), TASK, tokenizer=None)
    manifest = mps.write_cache(stream, tmp_path / "out", layout="mindrlhf", rows_per_part=PART)
    assert list(manifest.columns) == COLUMNS
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["about"]["reference_id"] == "sft"
    files = sorted(str(file) for file in (tmp_path / "out").glob("*.mindrecord"))
    dataset = MindDataset(files, columns_list=COLUMNS, shuffle=False)
    for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True):
        chosen, rejected = logps({name: array[None] for name, array in row.items()})
        assert row["chosen_ref_logps"].dtype == np.float32
        assert row["chosen_ref_logps"].tolist() == chosen.astype(np.float32).tolist()
        assert row["rejected_ref_logps"].tolist() == rejected.astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (TASK, {"name": None}, "names the checkpoint"),
        (TASK, {"reference": None}, "expected a function"),
        (mps.Reward(128), {}, "reference is for DPO and KTO, not for Reward"),
        (TASK, {"layout": "mindrlhf"}, "Write that cache first"),
        (TASK, {"reference": lambda batch: 1}, "expected a tuple"),
        (TASK, {"reference": lambda batch: ([1.0], [2.0, 3.0])}, "rejected log-probabilities of shape (2,)"),
        (TASK, {"reference": lambda batch: ([float("nan")], [2.0])}, "1 of them not finite"),
        (TASK, {"reference": lambda batch: (["high"], ["low"])}, "chosen log-probabilities that are no array of num"),
        (TASK, {"reference": lambda batch: ([1.0], [None])}, "rejected log-probabilities of shape (1,)"),
        (TASK, {"reference": lambda batch: ([1.0], [{}])}, "rejected log-probabilities that are no array of numbers"),
        (TASK, {"reference": lambda batch: ([1.0], [[1.0], []])}, "that are no array of numbers"),
    ],
)
def test_what_is_refused(task: Any, options: dict[str, Any], said: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError) as caught:
        write(stream_of(source(tmp_path), task), tmp_path / "out", **options)
    assert said in str(caught.value)


def test_it_is_never_left_out_unseen(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    write(stream_of(path, TASK), tmp_path / "out")
    out = str(tmp_path / "out")
    with pytest.raises(OptionError, match="layout='paired'"):
        stream_of(out, mps.DPO(128, layout="concat"), tokenizer=None)
    with pytest.raises(OptionError, match="layout='paired'"):
        stream_of(out, TASK, mps.Pack(640), tokenizer=None)
    with pytest.raises(OptionError, match="has none"):
        stream_of(mps.mix([(out, 1), (path, 1)]), TASK)
    with pytest.raises(OptionError, match="Copy the folder"):
        mps.write_cache(stream_of(out, TASK, tokenizer=None), tmp_path / "second")


def test_a_replaced_cache_stays_until_the_model_has_run(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(stream_of(path, TASK), out)
    before = tree(out)
    (tmp_path / "more").mkdir()
    more = source(tmp_path / "more", pairs(40))
    with pytest.raises(ZeroDivisionError):
        write(stream_of(more, TASK), out, lambda batch: 1 / 0, "other", overwrite=True)
    assert tree(out) == before
    model = Counting()
    write(stream_of(more, TASK), out, model, "other", overwrite=True)
    assert len(model.shapes) == 40
    assert read_manifest(str(out)).reference["reference_id"] == "other"  # type: ignore[index]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["more", "out", "rows.jsonl"]


def test_replacing_them_is_interrupted_at_each_step(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is whole at any moment, with the former ones or the new ones."""
    path, out = source(tmp_path), tmp_path / "out"
    write(stream_of(path, TASK), out)
    for other in ("second", "third", "fourth", "fifth"):
        write(stream_of(path, TASK), tmp_path / other, lambda batch: tuple(2 * side for side in logps(batch)), other)
    whole = dict(zip(("second", "third", "fourth", "fifth"), range(4), strict=True))
    replace = os.replace
    for name, at in whole.items():
        calls = 0

        def stopped(old: Any, new: Any, at: int = at) -> None:
            nonlocal calls
            if "part-" not in str(new) and (calls := calls + 1) == at + 1:
                raise KeyboardInterrupt
            replace(old, new)

        def model(batch: Batch) -> Any:
            return tuple(2 * side for side in logps(batch))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopped)
            with contextlib.suppress(KeyboardInterrupt):
                write(stream_of(path, TASK), out, model, name, overwrite=True)
        assert not any(one.problem for one in verify(str(out)))
        assert stream_of(str(out), TASK, tokenizer=None).column_names == COLUMNS
        write(stream_of(path, TASK), out, model, name, overwrite=True)
        assert tree(out) == tree(tmp_path / name)


def test_a_damaged_file_of_them_can_be_replaced(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(stream_of(path, TASK), out)
    before = tree(out)
    flip(out / file_of(out), -3)
    write(stream_of(path, TASK), out, overwrite=True)
    assert tree(out) == before
    (out / file_of(out)).unlink()
    write(stream_of(path, TASK), out, overwrite=True)
    assert tree(out) == before


def test_they_are_added_to_whatever_holds_the_same_samples(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """Other files, another spelling of the source, or a stream of the cache itself, when the text is gone."""
    path, whole = source(tmp_path), tmp_path / "whole"
    write(stream_of(path, TASK), whole)
    monkeypatch.chdir(tmp_path)
    for number, stream in enumerate((stream_of("rows.jsonl", TASK), None)):
        out = tmp_path / f"out{number}"
        mps.write_cache(stream_of(path, TASK), out, rows_per_part=PART)
        adding = stream or stream_of(str(out), TASK, tokenizer=None)
        mps.write_cache(adding, out, reference=logps, reference_id="sft")
        assert tree(out) == tree(whole)
    again = stream_of(str(out), TASK, tokenizer=None)
    with pytest.raises(OptionError, match="already"):
        mps.write_cache(again, out, reference=logps, reference_id="sft")
    mps.write_cache(again, out, reference=lambda batch: (logps(batch)[1],) * 2, reference_id="sft", overwrite=True)
    assert tree(out) != tree(whole)
    with pytest.raises(OptionError, match="is the cache that the stream reads"):
        mps.write_cache(again, out, overwrite=True)
    assert read_manifest(str(out)).about["source"] == path


def test_two_passes_at_once(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    mps.write_cache(stream_of(path, TASK), out, rows_per_part=PART)

    def second(batch: Batch) -> Any:
        with pytest.raises(StateError, match="another process is writing"):
            write(stream_of(path, TASK), out)
        with pytest.raises(StateError, match="another process is writing"):
            mps.write_cache(stream_of(path, mps.DPO(64)), out, overwrite=True)
        return logps(batch)

    write(stream_of(path, TASK), out, second)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")) == ["out"]


def test_rows_that_come_only_once_are_not_taken_for_those_of_a_cache(tmp_path: pathlib.Path) -> None:
    def once(rows: Any) -> mps.Stream:
        return stream_of((row for row in rows), TASK, steps_per_epoch=1)

    first, second, out = pairs(20), pairs(40)[20:], tmp_path / "out"
    mps.write_cache(once(first), out)
    with pytest.raises(OptionError, match="exists"):
        write(once(second), out)
    write(once(second), out, overwrite=True)
    write(once(second), tmp_path / "whole")
    parts = [name for name in tree(out) if name.startswith("part")]
    assert [tree(out)[name] for name in parts] == [tree(tmp_path / "whole")[name] for name in parts]


def test_a_cache_that_lacks_a_file_is_written_anew_on_demand(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(stream_of(path, TASK), out)
    before = tree(out)
    (out / "places.npy").unlink()
    with pytest.raises(CacheError, match=r"places\.npy is missing"):
        write(stream_of(path, TASK), out)
    write(stream_of(path, TASK), out, overwrite=True)
    assert tree(out) == before


KTO_COLUMNS = ["input_ids", "labels", "attention_mask", "loss_mask", "desirable", "ref_logps"]


def one_side(batch: Batch) -> Any:
    """`logps` of rows with one response."""
    assert list(batch) == KTO_COLUMNS[:-1]  # without kl columns, whose partners differ from epoch to epoch
    return (-np.log(1.0 + batch["input_ids"]).astype(np.float64) * batch["loss_mask"]).sum(axis=1)


@pytest.mark.parametrize("kl", [True, False])
def test_kto_has_one_column(kl: bool, tmp_path: pathlib.Path) -> None:
    out, task = tmp_path / "out", mps.KTO(128, kl=kl)
    write(stream_of(json_lines(tmp_path / "rows.jsonl", pairs(30)), task, mps.Pad(4)), out, one_side)
    verify(out)
    stream = stream_of(out, task, mps.Pad(4))
    assert stream.column_names[:6] == KTO_COLUMNS
    assert (len(stream.column_names) == 10) == kl
    for batch in stream.batches():
        assert batch["ref_logps"].dtype == np.float32
        expected = one_side({name: batch[name] for name in KTO_COLUMNS[:-1]})
        np.testing.assert_allclose(batch["ref_logps"][:, 0], expected, rtol=1e-6)
    assert_same_batches(list(stream_of(out, mps.KTO(128, kl=kl), mps.Pad(4)).batches()), list(stream.batches()))
    with pytest.raises(OptionError, match="only batches of layout='kto'"):
        stream_of(out, mps.KTO(128, kl=False), batching=mps.Pack(256))


def test_what_a_model_for_kto_must_return(tmp_path: pathlib.Path) -> None:
    stream = stream_of(json_lines(tmp_path / "rows.jsonl", pairs(30)), mps.KTO(128), mps.Pad(4))
    with pytest.raises(OptionError, match="returned log-probabilities of shape"):
        write(stream, tmp_path / "out", lambda batch: [1.0])
