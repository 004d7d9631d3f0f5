"""The data of a stream: which options reach the recipe, caches, workers and chosen columns."""

from __future__ import annotations

import functools
import itertools
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
from tests.helpers import Positioned, error_of, json_lines, pairs

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
    [
        (mps.Pad(4), {}),
        (mps.Pad(5), {"drop_remainder": False}),
        (mps.Pack(128, batch_size=5), {"steps_per_epoch": 3}),
        (mps.Pack(128, batch_size=5), "index"),
    ],
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


def test_parts_of_a_mix_state_what_an_incomplete_step_leaves_out() -> None:
    """The last three of 48 rows make no step of five: two of one part, and a repeat of the other."""
    made = stream(mps.mix([(pairs(24), 1), (pairs(6, first=24), 1)], stop="all"), batching=mps.Pad(5))
    assert [(part.repeats_per_epoch, part.left_out_per_epoch) for part in made.report.parts.values()] == [
        (0, 2),
        (17, 0),
    ]


def test_what_a_state_names() -> None:
    """Files of earlier runs have these names and values."""
    mixed = mps.mix([(pairs(24), 1), (pairs(6, first=24), 2)], stop="all")
    made = stream(mixed, batching=mps.Bucket(4), num_shards=2, shard_id=1)
    state = made.state(3)
    hashes = {name: state.pop(name) for name in ("data", "tokenizer", "template")}
    assert all(re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", text) for text in hashes.values())
    assert state == {
        "version": 1,
        "plan_version": 1,
        "epoch": 0,
        "step": 3,
        "steps_per_epoch": 8,
        "seed": 0,
        "global_batch": 8,
        "global_batch_of": "rows",
        "logical_shards": 2,
        "window": 64,
        "shuffle": True,
        "drop_remainder": True,
        "longest_first": False,
        "sorted": False,
        "rows": 71,
        "widths": [64],
        "max_segments": None,
        "pad_token_id": 259,
        "mix": {"weights": [1, 2], "stop": "all"},
        "index": None,
        "task": "DPO(max_length=64, max_prompt_length=None, truncation='prompt_left', layout='paired', "
        "labels='unshifted', margin=False)",
        "format": "auto(), auto()",
        "boundary": "joint",
        "special_tokens_in_content": "escape",
    }


def test_an_epoch_is_counted_with_its_last_step() -> None:
    made = stream(pairs(14))
    assert (made.report.remainder_per_epoch, made.report.repeats_per_epoch) == (2, 0)
    left = [made.report.ledger()["remainder"] for _ in made.batches()]
    assert left == [0, 0, 2]
    filled = stream(pairs(10), drop_remainder=False)
    assert (filled.report.remainder_per_epoch, filled.report.repeats_per_epoch) == (0, 2)


def test_a_named_index_stays_whatever_a_state_says(tmp_path: pathlib.Path) -> None:
    """The state was saved with another boundary, whose index lies beside the rows."""
    path, named = json_lines(tmp_path / "rows.jsonl", pairs(12)), tmp_path / "named.mprefidx"
    state = stream(path, template=None, boundary="joint", index="build").state(1)
    stream(path, template=None, boundary="inference", index=None).build_index(named)
    made = stream(path, template=None, index=named)
    with pytest.raises(mps.StateError, match="boundary was 'joint' and is 'inference' now"):
        made.resume(state)
    assert made.data.index is not None
    assert made.data.index.path == str(named)


def test_a_state_brings_the_index_that_it_was_saved_with(tmp_path: pathlib.Path) -> None:
    """Without a boundary that is named, one of two indexes beside the rows is used; a state may be of the other."""
    path = json_lines(tmp_path / "rows.jsonl", pairs(24))
    made = {which: stream(path, template=None, boundary=which, index="build") for which in ("joint", "inference")}
    for which, before in made.items():
        assert "order_by" not in before.data.index.fingerprint, "named only where it is given"  # type: ignore[union-attr]
        after = stream(path, template=None, workers=1).resume(before.state(2))
        assert after.data.workers == 1
        assert after.data.encoding["boundary"] == which
        assert after.data.index is not None
        assert after.data.index.checksum == before.data.index.checksum  # type: ignore[union-attr]
        for one, other in zip(after.batches(), before.batches(0, 2), strict=True):
            np.testing.assert_array_equal(one["chosen_input_ids"], other["chosen_input_ids"])
    fresh = stream(path, template=None)
    other = next(which for which in made if which != fresh.data.encoding["boundary"])
    state = made[other].state(2)
    with pytest.raises(mps.StateError, match="index was 'ffffffff'"):
        fresh.resume(state | {"index": "ffffffff"})
    pathlib.Path(made[other].data.index.path).unlink()  # type: ignore[union-attr]
    with pytest.raises(mps.StateError, match=f"boundary was '{other}'"):
        fresh.resume(state)


def test_a_cache_in_a_mix_is_compared_with_what_was_given_for_all(tmp_path: pathlib.Path) -> None:
    """A format is of the other parts; a boundary that is named must be that of the cache."""
    mps.write_cache(stream(pairs(12), boundary="joint"), tmp_path / "cache")
    mixed = mps.mix([(tmp_path / "cache", 1), (pairs(24)[12:], 1)])
    assert stream(mixed, format="strings").steps_per_epoch == 6
    assert stream(mixed).data.encoding["boundary"] == "joint"
    with pytest.raises(mps.OptionError, match=r"format is 'strings', but .*cache is a cache"):
        stream(tmp_path / "cache", format="strings")
    with pytest.raises(mps.StateError, match="boundary"):
        stream(mixed, boundary="inference")


def test_a_source_that_ends_by_time_is_for_one_rank(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(8))
    followed = mps.follow(path, timeout=0.1, poll=0.05)
    assert len(list(stream(followed, steps_per_epoch=2).batches())) == 2
    with pytest.raises(mps.OptionError, match=r"ends after a time without data, and 2 ranks would not agree"):
        stream(followed, steps_per_epoch=2, num_shards=2, shard_id=0)


class Nothing:
    """A format that filters out every row."""

    def count(self, row: Any) -> int:
        return 0

    def __call__(self, row: Any) -> Any:
        raise AssertionError


def test_a_source_of_which_no_row_passes() -> None:
    said = "has no rows that pass the filter of its format; expected at least one step of them. Check the path and the "
    assert said + "options of the format." in error_of(functools.partial(stream, pairs(8), format=Nothing()))


def test_positions_of_a_source_are_kept_for_the_last_windows() -> None:
    """However many there were: a state of a later step is the usual one, and an older one skips rows instead."""
    made = stream(Positioned(100), steps_per_epoch=100, window=1, batching=mps.Pad(1), task=mps.DPO(128))
    assert len(list(made.batches())) == 100
    known = [step for step in range(100) if "source" in made.state(step)]
    assert known == list(range(36, 100))


def test_a_damaged_position_of_a_source_is_named() -> None:
    made = stream(Positioned(24), steps_per_epoch=6, window=1)
    list(itertools.islice(made.batches(), 3))
    state = made.state(3)
    damaged = state | {"source": state["source"] | {"rows": -1}}
    with pytest.raises(
        mps.StateError, match=r"the state's source is damaged: Expected `int` >= 0 - at `\$\.rows`\. Take"
    ):
        stream(Positioned(24), steps_per_epoch=6, window=1).resume(damaged)


@pytest.mark.parametrize("indexed", [True, False])
def test_widths_are_chosen_from_the_longest_rows_of_steps(indexed: bool, tmp_path: pathlib.Path) -> None:
    """In source order each step has a long row; no step of short rows needs a width of its own."""
    rows = [{"prompt": "q", "chosen": "y" * (40 if n % 4 == 0 else 1), "rejected": f"{n}"} for n in range(96)]
    source = json_lines(tmp_path / "rows.jsonl", rows) if indexed else rows
    made = stream(source, batching=mps.Bucket(24, max_shapes=3), shuffle=False, index="build" if indexed else None)
    assert [width for width in made.report.chosen_widths if width < 64] == []
    alone = stream(source, batching=mps.Bucket(1, max_shapes=3), shuffle=False, index="build" if indexed else None)
    assert min(alone.report.chosen_widths) < 64


def test_half_of_the_rows_is_not_most_of_them() -> None:
    rows = [{"prompt": "word " * 20, "chosen": "y" * (1 + 40 * (n % 2)), "rejected": f"n{n}"} for n in range(60)]
    made = stream(rows, task=mps.DPO(48), shuffle=False)
    list(made.batches())
    (warning,) = made.report.warnings
    assert warning.startswith("max_length 48: 22 of 45 rows lose their whole question.")


def test_a_stream_is_judged_by_a_whole_window_unless_most_rows_are_alike() -> None:
    """Cut rows are noticed although the first rows are whole."""
    rows = [{"prompt": "word " * (20 * (n > 11)), "chosen": f"y{n}", "rejected": f"n{n}"} for n in range(60)]
    made = stream(rows, task=mps.DPO(48), shuffle=False)
    list(made.batches())
    (warning,) = made.report.warnings
    assert warning.startswith("max_length 48: 33 of 45 rows are cut.")
