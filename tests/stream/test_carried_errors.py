"""What goes wrong in a user's function or text is shown where it is, with and without workers."""

from __future__ import annotations

import traceback

import pytest

import ms_prefstream as mps

ROWS = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(4)]


def fails_here(row: dict[str, str]) -> dict[str, str]:
    return {**row, "chosen": row["no such field"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_line_of_a_format_function(workers: int) -> None:
    stream = mps.stream(
        ROWS, task=mps.DPO(64), tokenizer="bytes", format=fails_here, batching=mps.Pad(2), workers=workers
    )
    with pytest.raises(mps.RowError, match="fails_here raised KeyError") as caught:
        next(stream.batches())
    shown = "".join(traceback.format_exception(caught.value))
    assert 'row["no such field"]' in shown


@pytest.mark.parametrize(
    ("field", "where"), [("prompt", "the user turn"), ("rejected", "the assistant turn of the rejected side")]
)
def test_a_lone_surrogate_is_counted_in_its_own_text(field: str, where: str) -> None:
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"} | {field: "b\udc00"}
    stream = mps.stream([row], task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(1))
    with pytest.raises(mps.RowError, match=rf"{where}: .*U\+DC00 at character 1,"):
        next(stream.batches())


def test_longest_first_names_options_that_there_are() -> None:
    with pytest.raises(mps.OptionError, match=r"batches of one width have none. .* use Bucket with several widths"):
        mps.stream(ROWS, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2), longest_first=True)


def test_a_state_whose_epoch_is_another_is_refused() -> None:
    stream = mps.stream(ROWS, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2))
    state = stream.state(3) | {"epoch": 55}
    with pytest.raises(mps.StateError, match="the state's epoch is 55, but step 3 with 2 steps an epoch is in epoch 1"):
        stream.resume(state)
