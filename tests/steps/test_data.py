"""The data of a stream: which options reach the recipe, caches, workers and chosen columns."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.steps.collate import select_columns
from ms_prefstream.steps.data import Encoding
from tests.helpers import pairs

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
        with pytest.raises(mps.PrefStreamError) as raised:
            select_columns(steps, columns)
        assert str(raised.value) == said
    assert select_columns(steps, "labels").column_names == ["labels"]
