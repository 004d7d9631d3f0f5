"""MindFormers trains from a YAML file: the same rows and losses as every other way, resumed where it stopped."""

from __future__ import annotations

from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import flat, pairs, rows_of
from tests.trainer.configs import BATCH, EPOCHS, ROWS, SEED, K

pytestmark = [pytest.mark.mindspore, pytest.mark.training]
Steps = list[dict[str, Any]]
SMOKE = [pytest.param(way, marks=pytest.mark.smoke) for way in ("functional", "dpo_from_yaml")]
RESUMED_EARLY = pytest.param("dpo_resumed_in_epoch_0", 3, marks=pytest.mark.smoke)


def planned(layout: str = "concat", **options: Any) -> list[list[int]]:
    """The rows of all steps of all epochs."""
    settings = {"batching": mps.Bucket(BATCH, boundaries=(96, 128)), "window": 2, "seed": SEED} | options
    stream = mps.stream(pairs(ROWS), task=mps.DPO(128, layout=layout), tokenizer="bytes", **settings)
    return [rows for epoch in range(EPOCHS) for rows in rows_of(stream.batches(epoch))]


def rows(found: Steps) -> list[list[int]]:
    return [step["rows"] for step in found]


def losses(found: Steps) -> list[float]:
    return [step["loss"] for step in found]


def test_a_llama_trains_from_yaml(steps: Any) -> None:
    found = steps("llama_from_yaml")
    assert rows(found) == planned(batching=mps.Pad(BATCH, length=129))
    assert losses(found)[0] == pytest.approx(5.7, abs=0.1)  # ln 300: it knows nothing yet
    assert losses(found) == sorted(losses(found), reverse=True)


@pytest.mark.parametrize("way", [*SMOKE, "model_train", "dpo_with_dataset"])
def test_every_way_to_train_has_the_same_losses(way: str, steps: Any) -> None:
    found, expected = steps(way), steps("functional")
    assert rows(found) == planned()
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    assert losses(found)[0] == pytest.approx(0.693147, abs=1e-5)  # ln 2: policy and reference are the same
    assert losses(found)[-1] < 0.5


@pytest.mark.parametrize(("way", "done"), [RESUMED_EARLY, ("dpo_resumed_in_epoch_1", K + 1)])
def test_resume_training_continues_after_the_checkpoint(way: str, done: int, steps: Any) -> None:
    found, whole = steps(way), steps("dpo_from_yaml")
    assert rows(found) == planned()[done:]
    # The checkpoint holds the reference of the test's loss as well, so the losses go on.
    assert losses(found) == pytest.approx(losses(whole)[done:], rel=1e-5)


def test_data_skip_steps_leaves_out_just_these(steps: Any) -> None:
    assert rows(steps("dpo_skipped")) == planned()[3:]


@pytest.mark.smoke
def test_shards_follow_the_parallel_mode(steps: Any) -> None:
    found = steps("shards")

    def rank(world: int, number: int) -> list[list[int]]:
        options = {"batching": mps.Bucket(2, boundaries=(96, 128)), "num_shards": world, "shard_id": number}
        return planned(**options)[: ROWS // (2 * world)]

    assert found["stand alone"] == [rank(1, 0)]
    assert found["data parallel"] == [rank(4, number) for number in range(4)]
    assert found["full batch"] == [rank(1, 0)] * 4
    assert found["dataset strategy"] == [rank(2, 0), rank(2, 0), rank(2, 1), rank(2, 1)]
    assert len(set(flat(flat(found["data parallel"])))) == 16


@pytest.mark.smoke
def test_a_yaml_file_registers_by_itself(steps: Any) -> None:
    assert steps("auto_registered") == ROWS // 2


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("another batch size", "data_loader.batching.batch_size is 4, but the trainer makes steps of 2 rows"),
        ("keys without columns", "train_dataset.input_columns is missing"),
        ("fewer keys than columns", "of 4 columns and 2 names MindFormers would pair the first 2 and drop the rest"),
        ("keys in another order", "[labels, attention_mask, input_ids, loss_mask]: the same names in another order"),
        ("one column as a word", "input_columns is 'input_ids'; expected a list such as input_columns: [input_ids"),
        ("one key as a word", "construct_args_key is 'input_ids'; expected a list such as construct_args_key: [in"),
        ("no size but in batching", "Set runner_config.batch_size, or give no data_loader.batching.batch_size"),
        ("unknown column", "column 'tokens' does not exist in this stream; its batches hold input_ids, labels"),
        ("eod_reset", "eod_reset is True"),
        ("dynamic_batch", "a small closed set"),
        ("repeat", "Set runner_config.epochs instead"),
        ("smaller last batch", "set data_loader.drop_remainder: False"),
        ("stream option beside data_loader", "shuffle is not an option of PrefStreamDataset"),
        ("no data_loader", "data_loader is None"),
        ("another loader", "data_loader: {type: PrefStreamDataLoader, ...}"),
        ("no usable row", "row 0 of list: field 'pos_type' is missing"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_a_sentence(case: str, part: str, steps: Any) -> None:
    sentence = steps("refusals")[case]
    assert part in sentence
    assert sentence.startswith("PrefStreamDataset: ")
    assert "\n" not in sentence


@pytest.mark.smoke
def test_the_loader_feeds_datasets_that_batch_themselves(steps: Any) -> None:
    found = steps("batched_by_others")
    expected = planned("paired", batching=mps.Bucket(2, boundaries=(96, 128)))[: ROWS // 2]
    assert found["rows"] == expected
    assert found["skipped"] == expected[3:]
