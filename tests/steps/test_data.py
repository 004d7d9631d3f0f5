"""The data of a stream: which options reach the recipe, caches, workers and chosen columns."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.steps.collate import select_columns
from ms_prefstream.steps.data import Encoding
from ms_prefstream.steps.look import can_look, first_rows, whole_lengths
from tests.helpers import error_of, json_lines, pairs

TURNS = "{% for m in messages %}<|im_start|>{{ name }}{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def test_every_option_of_the_encoding_reaches_the_recipe() -> None:
    options: dict[str, Any] = {
        "task": mps.DPO(64),
        "template": TURNS,
        "template_variables": {"name": "x"},
        "boundary": "inference",
        "special_tokens_in_content": "allow",
        "content_lost": "drop",
        "continue_final_message": "join",
        "train_empty_think": True,
        "template_limit_s": 3.0,
    }
    encoding = Encoding(tokenizer="bytes", vocab_size=300, **options)
    recipe = encoding.recipe(ready=False)
    assert {name: getattr(recipe, name) for name in options} == options
    assert recipe.tokenizer is not None
    assert (recipe.tokenizer.ids, recipe.records, recipe.ready, recipe.template_date) == (300, None, False, None)
    dated = Encoding(task=mps.DPO(64), tokenizer="bytes", template=TURNS + "{{ strftime_now('%d') }}")
    assert dated.recipe(ready=False).template_date is not None
    assert dated.recipe(ready=True).template_date is None
    assert dated.recipe(ready=True).template_variables is None
    bare = Encoding(task=mps.DPO(64), tokenizer=None).recipe(ready=True)
    assert (bare.tokenizer, bare.template, bare.ready) == (None, None, True)


def stream(source: Any, **options: Any) -> mps.Stream:
    usual: dict[str, Any] = {"task": mps.DPO(64), "tokenizer": "bytes", "batching": mps.Pad(4), "verbose": False}
    return mps.stream(source, **usual | options)


def test_a_cache_states_its_pad_id_and_another_one_can_be_given(tmp_path: pathlib.Path) -> None:
    mps.write_cache(stream(pairs(12), pad_token_id=5), tmp_path / "cache")
    for given, pad in (({}, 5), ({"pad_token_id": 9}, 9)):
        batch = next(stream(tmp_path / "cache", tokenizer=None, **given).batches())
        assert set(batch["chosen_input_ids"][batch["chosen_attention_mask"] == 0].tolist()) == {pad}


def test_workers_are_those_that_were_asked_for() -> None:
    assert stream(pairs(12)).data.workers == 0
    made = stream(pairs(12), workers=2)
    assert made.data.workers == 2


@pytest.mark.parametrize("columns", [["rejected_input_ids"], ["chosen_labels", "chosen_input_ids"]])
def test_chosen_columns_come_in_their_order_from_any_step_on(columns: list[str]) -> None:
    made = stream(pairs(24))
    chosen = select_columns(made._steps, columns)
    assert (chosen.column_names, chosen.steps_per_epoch) == (columns, made.steps_per_epoch)
    found = list(chosen.start(1, 2))
    expected = list(made.batches(1, 2))
    assert [list(batch) for batch in found] == [columns] * len(expected) != []
    for batch, whole in zip(found, expected, strict=True):
        for name in columns:
            np.testing.assert_array_equal(batch[name], whole[name], strict=True)


def test_columns_that_cannot_be_chosen() -> None:
    steps = stream(pairs(24), task=mps.DPO(64, layout="concat"))._steps
    names = "input_ids, labels, attention_mask, loss_mask"
    for columns, said in {
        "gone": f"column 'gone' does not exist in this stream; its batches hold {names}.",
        (): f"columns is []; expected some of {names}, each once.",
        ("labels", "labels"): f"columns is ['labels', 'labels']; expected some of {names}, each once.",
    }.items():
        assert error_of(functools.partial(select_columns, steps, columns)) == said
    assert select_columns(steps, "labels").column_names == ["labels"]


BAD = [*pairs(8), {"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": 3}, *pairs(2)]


def test_an_index_is_named_or_lies_beside_and_fits_or_is_not_used(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(24))
    beside = stream(path, index="build")
    assert beside.data.index is not None
    assert stream(path).data.index is not None
    assert stream(path, index=None).data.index is None
    named = tmp_path / "named.mprefidx"
    stream(path, index=None).build_index(named)
    found = stream(path, index=named).data.index
    assert found is not None
    assert found.path == str(named)
    other = stream(path, task=mps.DPO(48))
    assert other.data.index is None
    (warning,) = [one for one in other.report.warnings if "It is not used" in one]
    assert warning.endswith('It is not used. Pass index="build" for one with these settings, or index=None.')
    with pytest.raises(mps.PrefStreamError, match="max_length"):
        stream(path, task=mps.DPO(48), index=named)
    state = stream(path, index=named).state(3)
    assert stream(path, index=named).resume(state).data.index is not None
    with pytest.raises(mps.StateError, match="index was "):
        stream(path, index=None).resume(state)


def test_rows_that_an_index_knows_to_be_bad(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", BAD)
    made = stream(path, index="build", on_bad_row="drop", quarantine=tmp_path / "bad.jsonl")
    assert made.report.dropped == {"identical": 1, "bad_type": 1}
    assert made.report.origins["bad_type"] == [f"{path}:10"]
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["origin"], line["row"]) for line in lines] == [(f"{path}:9", BAD[8]), (f"{path}:10", BAD[9])]
    with pytest.raises(mps.RowError, match=rf"^{re.escape(str(path))}:10: "):
        stream(path)


def test_bad_rows_of_a_window_are_quarantined_and_counted_in_their_part(tmp_path: pathlib.Path) -> None:
    mixed = mps.mix([(pairs(12), 1), (BAD, 1)])
    made = stream(mixed, on_bad_row="drop", quarantine=tmp_path / "bad.jsonl", index=None)
    list(made.batches())
    assert made.report.dropped == {"identical": 1, "bad_type": 1}
    parts = list(made.report.parts.values())
    assert [part.dropped.total() for part in parts] == [0, 2]
    assert sum(part.read for part in parts) == made.report.read
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_copies_that_an_index_leaves_out(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [*pairs(10), *pairs(3)])
    made = stream(path, index=None, quarantine=tmp_path / "bad.jsonl")
    assert made.data.left_out() is None
    plain = made.data.fingerprints()
    made.build_index(dedup="row")
    assert made.report.dropped.total() == 3
    left_out = made.data.left_out()
    assert left_out is not None
    assert np.flatnonzero(left_out).tolist() == [10, 11, 12]
    assert made.data.fingerprints() != plain
    origins = [json.loads(line)["origin"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert origins == [f"{path}:{line}" for line in (11, 12, 13)]


def test_lengths_before_anything_is_cut() -> None:
    data = stream(pairs(4), task=mps.DPO(32, max_prompt_length=20)).data
    records = data.records.read(range(4))  # type: ignore[union-attr]
    whole = stream(pairs(4), task=mps.DPO(512)).data.local.load(range(4)).longest.tolist()
    lengths = whole_lengths(data.recipe, records)
    assert lengths["max_length"] == lengths["seq_length"] == whole
    cut = [*data.local.load(range(4))]
    assert whole_lengths(data.recipe, records, cut)["max_length"] == whole
    prompts = stream(pairs(4), task=mps.RLHF(16, 32)).data
    asked = whole_lengths(prompts.recipe, prompts.records.read(range(4)))["max_prompt_length"]  # type: ignore[union-attr]
    assert min(asked) > 16


def test_the_first_rows_of_every_part_are_looked_at() -> None:
    mixed = mps.mix([(pairs(12), 1), (pairs(12), 1)])
    made = stream(mixed)
    looked = list(first_rows(made.data.source, made.data._formats, 6))
    assert len(looked) == 6
    assert len(list(first_rows(made.data.source, made.data._formats, 1))) == 2
    assert can_look(made.data.source, made.data._formats)
    own = stream(pairs(12), format=lambda row: row)
    assert not can_look(own.data.source, own.data._formats)


@pytest.mark.parametrize(
    ("batching", "options"),
    [(mps.Pad(4), {}), (mps.Pack(128, batch_size=5), {"steps_per_epoch": 3}), (mps.Pack(128, batch_size=5), "index")],
)
def test_parts_of_a_mix_state_what_an_epoch_takes_of_them(batching: Any, options: Any, tmp_path: pathlib.Path) -> None:
    """The smaller part is repeated until the larger one is read: 24 rows of each, whatever form the batches have."""
    parts: list[Any] = [pairs(24), pairs(6, first=24)]
    if options == "index":
        parts = [json_lines(tmp_path / f"{at}.jsonl", rows) for at, rows in enumerate(parts)]
        options = {"index": "build"}
    made = stream(mps.mix([(part, 1) for part in parts], stop="all"), batching=batching, **options)
    found = [
        (part.share, part.rows, part.repeats_per_epoch, part.left_out_per_epoch) for part in made.report.parts.values()
    ]
    assert found == [(0.5, 24, 0, 0), (0.5, 6, 18, 0)]
