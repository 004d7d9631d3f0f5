"""The laws of every task, over a table: a new task gets them by a line in `CASES`.

Row 17 has the text ``#17#`` in its prompt, so the ids of a batch say which rows it holds.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.errors import OptionError
from ms_prefstream.inspection.steps import step_of
from ms_prefstream.tasks import TASKS
from ms_prefstream.tasks.base import given_options, traits
from tests.cli.running import run
from tests.helpers import Batch, Row, assert_resumes_everywhere, assert_same_batches, json_lines, pairs

_NAME = re.compile(rb"#(\d+)#")


def labelled(count: int) -> list[Row]:
    """Rows of one response that is good or bad."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 3 > 0}
        for number, row in enumerate(pairs(count))
    ]


def in_steps(count: int) -> list[Row]:
    """Rows of one to four steps."""
    return [
        {
            "prompt": row["prompt"],
            "completions": [f"step {step} is " + "so " * (row_number % 5) for step in range(1 + row_number % 4)],
            "labels": [(row_number + step) % 2 == 0 for step in range(1 + row_number % 4)],
        }
        for row_number, row in enumerate(pairs(count))
    ]


def rated(count: int) -> list[Row]:
    """The same with numbers as labels."""
    return [{**row, "labels": [float(label) + 0.25 for label in row["labels"]]} for row in in_steps(count)]


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with rows for it.

    Attributes:
        task: The task.
        rows: Makes so many rows, each with its name in its prompt.
        samples: Samples of a row.
        copies: Rows of `ids` for each sample.
        ids: The column with the names.
    """

    task: Any
    rows: Callable[[int], list[Row]] = pairs
    samples: int = 1
    copies: int = 1
    ids: str = "input_ids"


CASES = {
    "dpo": Case(mps.DPO(128, margin=True), ids="chosen_input_ids"),
    "dpo concat": Case(mps.DPO(128, layout="concat", labels="shifted"), copies=2),
    "reward": Case(mps.Reward(128), copies=2),
    "reward token": Case(mps.Reward(128, layout="reward_token", reward_token=256), copies=2),
    "rlhf": Case(mps.RLHF(64, 128), labelled, ids="pretrain_ids"),
    "kto": Case(mps.KTO(128), labelled),
    "kto of pairs": Case(mps.KTO(128), samples=2),
    "kto without kl": Case(mps.KTO(128, kl=False), labelled),
    "process-reward": Case(mps.ProcessReward(192), in_steps),
    "process-reward values": Case(mps.ProcessReward(192, values=True), rated),
    "prompts": Case(mps.Prompts(64), labelled, ids="prompt_ids"),
    "prompts left": Case(mps.Prompts(64, padding_side="left", repeat=3), copies=3, ids="prompt_ids"),
}
COUNT, SIZE = 24, 4
RULES = {"pad": mps.Pad(SIZE), "bucket": mps.Bucket(SIZE, multiple_of=32)}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def stream_of(case: Case, source: Any = None, rule: Any = RULES["bucket"], **options: Any) -> mps.Stream:
    given: dict[str, Any] = {"tokenizer": "bytes", "seed": 5, "window": 2, "verbose": False} | options
    return mps.stream(case.rows(COUNT) if source is None else source, task=case.task, batching=rule, **given)


def names_in(ids: Any) -> list[int]:
    """The names in rows of ids, in order."""
    found = [_NAME.search(row[row < 256].astype(np.uint8).tobytes()) for row in ids]
    assert None not in found
    return [int(name[1]) for name in found if name]


def test_the_table_has_every_task() -> None:
    assert {case.task.name for case in CASES.values()} == set(TASKS)


@every_rule
@every_case
def test_every_sample_once_an_epoch_in_the_planned_order(case: Case, rule: Any) -> None:
    stream = stream_of(case, rule=rule)
    assert stream.steps_per_epoch == COUNT * case.samples // SIZE
    for epoch in (0, 1):
        seen: Counter[int] = Counter()
        for step, batch in enumerate(stream.batches(epoch)):
            assert list(batch) == stream.column_names
            assert batch[case.ids].shape in stream.shapes
            names = names_in(batch[case.ids])
            planned = [row // case.samples for row in stream.rows(epoch, step, resolved=True).tolist()]
            repeated = traits(case.task).layout_options.get("repeat", 1)
            assert names == (np.repeat(planned, repeated).tolist() if repeated > 1 else planned * case.copies)
            seen.update(names)
        assert seen == dict.fromkeys(range(COUNT), case.samples * case.copies)
    assert (stream.report.read, stream.report.dropped.total()) == (COUNT * case.samples, 0)


@every_case
def test_arrays_are_fresh_and_masks_lie_inside(case: Case) -> None:
    stream = stream_of(case)
    for batch, again in zip(stream.batches(), stream.batches(), strict=True):
        for name, array in batch.items():
            assert array.flags.c_contiguous
            assert array.dtype in (np.int32, np.float32, np.float16)
            assert not np.shares_memory(array, again[name])
        for name in batch:
            if name.endswith("loss_mask") and (attention := name.replace("loss", "attention")) in batch:
                half = len(batch[attention]) // len(batch[name])  # one mask for both sides of a pair
                assert half > 1 or (batch[name] <= batch[attention]).all()
            selects = name.replace("labels", "loss_mask")
            if name.endswith("labels") and case.task.layout != "paired" and selects in batch:
                assert ((batch[name] == -100) == (batch[selects] == 0)).all()


@every_case
def test_workers_change_nothing(case: Case, tmp_path: pathlib.Path) -> None:
    source = json_lines(tmp_path / "rows.jsonl", case.rows(COUNT))
    expected = list(stream_of(case, source).batches())
    assert_same_batches(list(stream_of(case, source, workers=2).batches()), expected)


@pytest.mark.mindspore
@every_rule
@every_case
def test_a_cache_gives_the_same_batches(case: Case, rule: Any, tmp_path: pathlib.Path) -> None:
    stream = stream_of(case, rule=rule)
    mps.write_cache(stream, tmp_path / "out", rows_per_part=7)
    cached = stream_of(case, tmp_path / "out", rule, tokenizer=None, index=None)
    expected = list(stream_of(case, rule=rule, index=stream_index(case, tmp_path)).batches(1))
    assert_same_batches(list(cached.batches(1)), expected)


@pytest.mark.mindspore
@pytest.mark.parametrize(
    ("written", "read"),
    [("kto", "kto without kl"), ("kto without kl", "kto"), ("prompts", "prompts left"), ("prompts left", "prompts")],
)
def test_a_cache_fits_other_options_of_batches(written: str, read: str, tmp_path: pathlib.Path) -> None:
    rows = labelled(COUNT)
    mps.write_cache(stream_of(CASES[written], rows), tmp_path / "out")
    found = stream_of(CASES[read], tmp_path / "out", tokenizer=None, index=None)
    index = stream_of(CASES[read], rows).build_index(tmp_path / "rows.prefidx").path
    assert_same_batches(list(found.batches()), list(stream_of(CASES[read], rows, index=index).batches()))


def stream_index(case: Case, folder: pathlib.Path) -> str:
    """The path of a length index, as a cache has one."""
    return stream_of(case).build_index(folder / "rows.prefidx").path


@every_case
def test_it_resumes_at_every_step(case: Case) -> None:
    assert_resumes_everywhere(lambda: stream_of(case))


@every_case
def test_with_an_index_it_resumes_at_every_step(case: Case, tmp_path: pathlib.Path) -> None:
    index = stream_index(case, tmp_path)
    assert_resumes_everywhere(lambda: stream_of(case, index=index))


@every_case
def test_ranks_share_the_rows_of_a_step(case: Case) -> None:
    def steps(world: int) -> list[Counter[int]]:
        rule = mps.Pad(8 // world)
        ranks = [stream_of(case, rule=rule, num_shards=world, shard_id=rank, logical_shards=4) for rank in range(world)]
        together = zip(*[stream.batches() for stream in ranks], strict=True)
        return [Counter(name for batch in batches for name in names_in(batch[case.ids])) for batches in together]

    alone = steps(1)
    assert sum(alone, Counter()) == dict.fromkeys(range(COUNT), case.samples * case.copies)
    assert steps(2) == alone
    assert steps(4) == alone


@every_case
def test_yaml_describes_the_same_stream(case: Case, tmp_path: pathlib.Path) -> None:
    source = json_lines(tmp_path / "rows.jsonl", case.rows(COUNT))
    section = {"type": type(case.task).__name__, **given_options(case.task)}
    keys = {
        "source": str(source),
        "task": section,
        "batching": {"type": "Pad", "batch_size": SIZE},
        "tokenizer": "bytes",
    }
    found = stream_from({**keys, "seed": 5, "window": 2, "verbose": False})
    assert found.task == case.task
    assert_same_batches(list(found.batches()), list(stream_of(case, source, RULES["pad"]).batches()))


@every_case
def test_packs_hold_every_sample_once_or_say_why_not(case: Case) -> None:
    rule = mps.Pack(400, max_segments=16)
    if traits(case.task).no_packs is not None:
        with pytest.raises(OptionError, match=r"^Pack: .*(Leave|Pass|Use|use) "):
            stream_of(case, rule=rule)
        return
    stream = stream_of(case, rule=rule, steps_per_epoch=COUNT)
    seen: Counter[int] = Counter()
    for batch in stream.batches():
        seen.update(_packed_names(batch))
    assert set(seen) == set(range(COUNT))
    assert stream.report.dropped.total() == 0


def _packed_names(batch: Batch) -> list[int]:
    found = []
    for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            found += names_in([ids[segments == segment]])
    return found


@every_case
def test_carried_fields_follow_every_row(case: Case) -> None:
    rows = [{**row, "number": number} for number, row in enumerate(case.rows(COUNT))]
    stream = stream_of(case, rows, carry={"number": "int64"})
    assert stream.column_names[-1] == "number"
    for batch in stream.batches():
        assert names_in(batch[case.ids])[: len(batch["number"])] == batch["number"].tolist()


@every_case
@given(count=st.integers(2, 9), size=st.integers(2, 4), masked=st.booleans())
@settings(settings.get_profile("costly"))
def test_a_row_mask_marks_every_sample_once(case: Case, count: int, size: int, masked: bool) -> None:
    rows, size = case.rows(count), min(size, count * case.samples)
    stream = stream_of(case, rows, mps.Pad(size), drop_remainder="mask" if masked else True)
    seen: Counter[int] = Counter()
    repeated = traits(case.task).layout_options.get("repeat", 1)
    for batch in stream.batches():
        names = names_in(batch[case.ids])[: size * repeated]
        mask = batch["row_mask"] if masked else np.ones(len(names))
        seen.update(name for name, counts in zip(names, mask.tolist(), strict=True) if counts)
    left_out = 0 if masked else stream.report.remainder_per_epoch
    assert sum(seen.values()) == (count * case.samples - left_out) * repeated
    assert max(seen.values()) <= case.samples * repeated


@every_case
def test_people_can_look_at_it(case: Case) -> None:
    rows = case.rows(COUNT)
    row = mps.encode(rows[4], task=case.task, tokenizer="bytes")
    assert row.kept
    assert "#4# why?" in str(row)
    stream = stream_of(case)
    step, batch = step_of(stream, 0), next(stream.batches(0))
    assert {strip.origins for strip in step.strips} == {
        (stream.data.records.origin(row),)  # type: ignore[union-attr]
        for row in stream.rows(0, 0, resolved=True).tolist()
    }
    own = [strip for strip in step.strips if strip.side != "kl"]
    attention = next((name for name in batch if name.endswith("attention_mask")), None)
    if attention is not None and case.ids == "input_ids":
        assert sum(len(strip.ids) - strip.counts[2] for strip in own) == batch[attention].sum()
    assert mps.doctor(rows, task=case.task, tokenizer="bytes").ok
    assert mps.stats(rows, task=case.task, tokenizer="bytes").rows == COUNT * case.samples


@every_case
def test_the_command_line_describes_the_same_task(
    case: Case, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = json_lines(tmp_path / "rows.jsonl", case.rows(COUNT))
    words = ["--task", case.task.name]
    for name, value in given_options(case.task).items():
        flag = "--task-layout" if name == "layout" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else [flag.replace("--", "--no-")] if name == "kl" else []
        elif value is not None:
            words += [flag, str(value)]
    assert run(monkeypatch, "bench", source, *words, "--tokenizer", "bytes", "--repeats", 1) == 0
    assert f"{type(case.task).__name__}" in capsys.readouterr().err
