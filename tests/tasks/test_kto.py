"""`mps.KTO`: arrays written out by hand, partners, pairs, reasons, and the weights that a report suggests."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.batch.layouts.kto import partners, with_partners
from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.sample import Block, Sample, Sequence
from tests.tasks.test_task_golden import IG, P, assert_batch

A, B, C = 65, 66, 67
END = 258
ROWS: list[dict[str, Any]] = [
    {"prompt": "Q?", "completion": "A", "label": True},
    {"prompt": "Q?", "completion": "BB", "label": False},
    {"prompt": "Z", "completion": "C", "label": True},
]
OWN = {
    "input_ids": ("i4", [[81, 63, A, END, P], [81, 63, B, B, END], [90, C, END, P, P]]),
    "labels": ("i4", [[IG, IG, A, END, IG], [IG, IG, B, B, END], [IG, C, END, IG, IG]]),
    "attention_mask": ("i4", [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "loss_mask": ("i4", [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]),
    "desirable": ("i4", [1, 0, 1]),
}
KL = {
    "kl_input_ids": ("i4", [[81, 63, C, END, P], [81, 63, C, END, P], [90, A, END, P, P]]),
    "kl_labels": ("i4", [[IG, IG, C, END, IG], [IG, IG, C, END, IG], [IG, A, END, IG, IG]]),
    "kl_attention_mask": ("i4", [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
    "kl_loss_mask": ("i4", [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]),
}


def stream_of(rows: Any, task: Any, batching: Any = None, **options: Any) -> mps.Stream:
    given = {"tokenizer": "bytes", "template": None, "shuffle": False} | options
    return mps.stream(rows, task=task, batching=batching or mps.Pad(len(rows)), **given)


def batch_of(rows: Any, task: Any, batching: Any = None, **options: Any) -> Any:
    (batch,) = stream_of(rows, task, batching, **options).batches()
    return batch


def test_with_kl() -> None:
    assert_batch(batch_of(ROWS, mps.KTO(5)), OWN | KL)


def test_without_kl() -> None:
    assert_batch(batch_of(ROWS, mps.KTO(5, kl=False)), OWN)


def test_packed() -> None:
    assert_batch(
        batch_of(ROWS, mps.KTO(5, kl=False), mps.Pack(14, max_segments=5), steps_per_epoch=1),
        {
            "input_ids": ("i4", [[81, 63, A, END, 81, 63, B, B, END, 90, C, END, P, P]]),
            "labels": ("i4", [[IG, IG, A, END, IG, IG, B, B, END, IG, C, END, IG, IG]]),
            "loss_mask": ("i4", [[0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0]]),
            "position_ids": ("i4", [[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 0, 0]]),
            "segment_ids": ("i4", [[1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0]]),
            "pair_ids": ("i4", [[1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0]]),
            "desirable": ("i4", [[1, 0, 1, 0, 0]]),
            "actual_seq_len": ("i4", [[4, 9, 12, 14, 14]]),
        },
    )


ALPACA = {"instruction": "Q?", "output": "A", "kto_tag": True}
SHAREGPT = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A"}], "kto_tag": True}
SWIFT = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}], "label": True}
TRL = {
    "prompt": [{"role": "user", "content": "Q?"}],
    "completion": [{"role": "assistant", "content": "A"}],
    "label": True,
}
IDS = {"prompt_ids": [81, 63], "response_ids": [A, END], "label": True}


@pytest.mark.parametrize("row", [ALPACA, SHAREGPT, SWIFT, TRL, IDS], ids=["alpaca", "sharegpt", "swift", "trl", "ids"])
def test_rows_of_every_kind(row: dict[str, Any]) -> None:
    mark = "label" if "label" in row else "kto_tag"
    batch = batch_of([row, {**row, mark: False}], mps.KTO(4))
    assert batch["input_ids"].tolist() == [[81, 63, A, END]] * 2
    assert batch["desirable"].tolist() == [1, 0]
    assert not stream_of([row, row], mps.KTO(4)).report.warnings


@pytest.mark.parametrize("ids", [False, True])
def test_a_pair_gives_two_samples(ids: bool) -> None:
    texts = {"prompt": "Q?", "chosen": "A", "rejected": "BB"}
    numbers = {"prompt_ids": [81, 63], "chosen_ids": [A, END], "rejected_ids": [B, B, END]}
    stream = stream_of([numbers if ids else texts, ROWS[2]], mps.KTO(5), mps.Pad(3))
    assert stream.report.rows == 3
    assert_batch(next(iter(stream.batches())), OWN | KL)
    records: Any = stream.data.records
    assert list(map(records.origin, range(3))) == ["row 0 of list#1", "row 0 of list#2", "row 1 of list"]


def test_a_ranked_list_gives_its_pairs() -> None:
    row = {"prompt": "Q?", "responses": ["x", "y", "z"], "scores": [3, 1, 2]}
    task, every = mps.KTO(5, kl=False), mps.formats.ranked("all")
    assert stream_of([row], task, mps.Pad(6), format=every).report.rows == 6
    assert batch_of([row], task, mps.Pad(2))["desirable"].tolist() == [1, 0]  # the best and the worst


class Counted(list[Any]):
    """Rows that count how many are read."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        type(self).reads += 1
        return super().__getitem__(at)


def test_a_source_without_pairs_is_not_counted() -> None:
    Counted.reads = 0
    stream = mps.stream(
        Counted(ROWS * 1000), task=mps.KTO(5), tokenizer="bytes", template=None, batching=mps.Pad(4), verbose=False
    )
    assert stream.report.rows == 3000
    assert Counted.reads < 1000


def test_a_pair_where_none_was_seen_is_a_bad_row() -> None:
    rows = [*ROWS * 200, {"prompt": "Q", "chosen": "A", "rejected": "B"}, *ROWS * 200]
    stream = stream_of(rows, mps.KTO(5), mps.Pad(3), on_bad_row="drop", index=None, window=1)
    for _ in stream.batches():
        pass
    assert stream.report.dropped == {"bad_type": 1}


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({"prompt": "Q", "completion": "A"}, Reason.MISSING_FIELD, "expected a field 'label' or 'kto_tag'"),
        (
            {"prompt": "Q", "completion": "A", "label": 1},
            Reason.BAD_TYPE,
            "field 'label' is int 1; expected true or false",
        ),
        ({"prompt": "Q", "completion": "A", "kto_tag": "no"}, Reason.BAD_TYPE, "field 'kto_tag' is str 'no'"),
        (
            {"prompt": "Q", "completion": "A", "label": True, "kto_tag": False},
            Reason.AMBIGUOUS_FORMAT,
            "the fields kto_tag, label contradict each other",
        ),
        ({"prompt": "Q", "label": True}, Reason.MISSING_FIELD, "the row has no response"),
        ({"prompt": "Q", "completion": "", "label": True}, Reason.EMPTY_RESPONSE, "empty"),
        ({"prompt": "Q", "completions": ["a"], "labels": [True]}, Reason.MISSING_FIELD, "several responses or steps"),
    ],
)
def test_reasons(row: dict[str, Any], reason: Reason, said: str) -> None:
    found = mps.encode(row, task=mps.KTO(8), tokenizer="bytes", template=None)
    assert found.reason is reason
    assert said in found.problem


@pytest.mark.parametrize("marks", [{"label": True, "kto_tag": True}, {"label": "helpful", "kto_tag": True}])
def test_two_fields_that_do_not_contradict_each_other(marks: dict[str, Any]) -> None:
    found = mps.encode({"prompt": "Q", "completion": "A", **marks}, task=mps.KTO(8), tokenizer="bytes", template=None)
    assert found.kept
    assert found.sample.columns == {"desirable": 1}


def test_at_least_two_rows() -> None:
    with pytest.raises(OptionError, match="needs 2 of them on each rank at least"):
        stream_of(ROWS, mps.KTO(5), mps.Pad(1))
    with pytest.raises(OptionError, match="found a budget of tokens"):
        stream_of(ROWS, mps.KTO(5), mps.Bucket(max_tokens=64))
    with pytest.raises(OptionError, match=r"Pack: the columns kl_\* of kl=True have rows of their own"):
        stream_of(ROWS, mps.KTO(5), mps.Pack(64))
    assert len(batch_of(ROWS[:1], mps.KTO(5, kl=False), mps.Pad(1))) == 5


def test_share_and_weights() -> None:
    stream = stream_of([*ROWS, *ROWS, ROWS[0]], mps.KTO(5, kl=False))
    list(stream.batches())
    assert (stream.report.desirable, stream.report.undesirable) == (5, 2)
    assert stream.report.desirable_share == 5 / 7
    assert stream.report.kto_weights == {"desirable_weight": (0.4, 0.53), "undesirable_weight": (1.88, 2.5)}
    line = "desirable rows: 5 (71.4 %), balanced by desirable_weight 0.4 to 0.53 or undesirable_weight 1.88 to 2.5"
    assert line in str(stream.report)
    assert "desirable" not in mps.Report().as_dict()
    assert mps.Report().kto_weights == {}
    assert mps.Report().desirable_share is None


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"), [(299, 40, (5.62, 7.47)), (1, 1, (0.75, 1.0)), (1, 8, (0.09, 0.12))]
)
def test_weights_are_rounded_as_by_trl(desirable: int, undesirable: int, weights: tuple[float, float]) -> None:
    report = mps.Report(desirable=desirable, undesirable=undesirable)
    assert report.kto_weights["undesirable_weight"] == weights


def test_dropped_rows_are_in_no_share() -> None:
    stream = stream_of([*ROWS, {"prompt": "Q", "completion": "", "label": False}], mps.KTO(5, kl=False), mps.Pad(2))
    list(stream.batches())
    assert (stream.report.desirable, stream.report.undesirable) == (2, 1)


def test_kl_rows_are_cut_to_the_length() -> None:
    rows = [
        {"prompt_ids": [1, 2, 3, 4], "response_ids": [9], "label": True},
        {"prompt_ids": [5], "response_ids": [6, 7, 8, 9], "label": False},
    ]
    left = batch_of(rows, mps.KTO(5), tokenizer=None, pad_token_id=0)
    assert left["kl_input_ids"].tolist() == [[4, 6, 7, 8, 9], [5, 9, 0, 0, 0]]
    assert left["kl_loss_mask"].tolist() == [[0, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    right = batch_of(rows, mps.KTO(5, truncation="response_right"), tokenizer=None, pad_token_id=0)
    assert right["kl_input_ids"].tolist() == [[1, 2, 3, 4, 6], [5, 9, 0, 0, 0]]
    assert right["kl_labels"].tolist() == [[IG, IG, IG, IG, 6], [IG, 9, IG, IG, IG]]
    dropped = batch_of(rows, mps.KTO(5, truncation="drop"), tokenizer=None, pad_token_id=0)
    assert dropped["kl_input_ids"].tolist() == left["kl_input_ids"].tolist()


def test_the_width_holds_the_kl_rows() -> None:
    rows = [
        {"prompt_ids": [1, 2, 3, 4], "response_ids": [9], "label": True},
        {"prompt_ids": [5], "response_ids": [6, 7, 8, 9], "label": False},
    ]
    batch = batch_of(rows, mps.KTO(16), mps.Bucket(2, multiple_of=2), tokenizer=None, pad_token_id=0)
    assert {array.shape for name, array in batch.items() if name != "desirable"} == {(2, 8)}
    batch = batch_of(rows, mps.KTO(16, kl=False), mps.Bucket(2, multiple_of=2), tokenizer=None, pad_token_id=0)
    assert batch["input_ids"].shape == (2, 6)


def test_with_an_index_all_ranks_have_one_width(tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt_ids": [1 + row % 5] * (1 + row % 7), "response_ids": [9] * (1 + row % 11), "label": True}
        for row in range(48)
    ]
    path = tmp_path / "rows.prefidx"
    options: Any = {"tokenizer": None, "pad_token_id": 0, "shuffle": True}
    index = stream_of(rows, mps.KTO(20), mps.Pad(2), **options).build_index(path).path
    worlds = []
    for world in (1, 2, 4):
        ranks = [
            stream_of(
                rows, mps.KTO(20), mps.Bucket(8 // world, multiple_of=2), num_shards=world, shard_id=rank, index=index,
                **options,
            )
            for rank in range(world)
        ]  # fmt: skip
        widths = [[batch["kl_input_ids"].shape[1] for batch in stream.batches()] for stream in ranks]
        assert len({tuple(one) for one in widths}) == 1
        assert all(len(np.unique([batch[name].shape[1] for name in KL])) == 1 for batch in ranks[0].batches())
        worlds.append(widths[0])
    assert worlds[1] == worlds[2]
    assert all(one <= other for one, other in zip(worlds[0], worlds[1], strict=True))


SAMPLES = st.lists(
    st.tuples(
        st.lists(st.integers(1, 2), max_size=3), st.lists(st.integers(3, 5), min_size=1, max_size=4), st.booleans()
    ),
    min_size=2,
    max_size=7,
)


@given(SAMPLES, st.integers(2, 8), st.booleans())
def test_partners_are_the_next_rows_with_another_prompt(samples: Any, length: int, cuts_prompts: bool) -> None:
    samples = [(prompt[: length - 1], response, halved) for prompt, response, halved in samples]
    rows = []
    for prompt, response, halved in samples:
        begin, end = len(prompt), len(prompt) + len(response)
        spans = ((begin, begin + 1), (end - 1, end)) if halved and len(response) > 2 else ((begin, end),)
        rows.append(Sample((Sequence(np.array([*prompt, *response], np.int32), spans),)))
    block = Block.of(rows)
    expected = []
    for row, (prompt, _, _) in enumerate(samples):
        others = [(row + step) % len(samples) for step in range(1, len(samples))]
        expected.append(next((other for other in others if samples[other][0] != prompt), others[0]))
    assert partners(block).tolist() == expected
    for row, one in enumerate(with_partners(block, length, cuts_prompts)):
        prompt, response = samples[row][0], samples[expected[row]][1]
        beyond = max(0, len(prompt) + len(response) - length)
        if cuts_prompts:
            prompt = prompt[min(beyond, len(prompt)) :]
        response = response[: length - len(prompt)]
        (sequence,) = one.sample.sequences
        assert sequence.ids.tolist() == [*prompt, *response]
        marks = [at for begin, end in rows[expected[row]].sequences[0].spans for at in range(begin, end)]
        shift = len(prompt) - len(samples[expected[row]][0])
        kept = [at + shift for at in marks if at + shift < length]
        assert [at for begin, end in sequence.spans for at in range(begin, end)] == kept
