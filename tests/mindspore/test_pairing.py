"""Pairings of columns and names, and batch sizes, that are refused; no trainer is needed."""

from __future__ import annotations

from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore.trainer_checks import check_network, check_pairing, check_rows

COLUMNS = ["input_ids", "labels"]


@pytest.mark.parametrize("keys", [None, COLUMNS, tuple(COLUMNS), ["tokens", "labels"], ["labels", "tokens"]])
def test_the_same_names_and_other_names_are_paired(keys: Any) -> None:
    check_pairing(COLUMNS, keys)


@pytest.mark.parametrize("keys", [["labels", "input_ids"], ["input_ids"], [*COLUMNS, "mask"], [], "ab", 2])
def test_an_order_a_length_and_a_word_are_refused(keys: Any) -> None:
    with pytest.raises(OptionError, match="construct_args_key"):
        check_pairing(COLUMNS, keys)


def _stream(batching: Any) -> Any:
    return type("Stream", (), {"batching": batching})


@pytest.mark.parametrize(
    ("batching", "runner"),
    [
        (mps.Pad(4), {"batch_size": 4, "mini_batch_size": 4}),
        (mps.Pad(4), {"batch_size": 4, "mini_batch_size": 1}),
        (mps.Pack(64, batch_size=2), {"batch_size": 2}),
        (mps.Bucket(max_tokens=1024), {"batch_size": 7}),
        (mps.Pad(4), {}),
    ],
)
def test_equal_rows_and_a_budget_may_be_counted(batching: Any, runner: dict[str, int]) -> None:
    check_rows(_stream(batching), runner)


def test_other_rows_are_refused_with_the_number_to_set() -> None:
    with pytest.raises(OptionError, match=r"of 4 rows .* counts 16 .* Set runner_config\.batch_size: 4,"):
        check_rows(_stream(mps.Pad(4)), {"batch_size": 16, "mini_batch_size": 16})
    with pytest.raises(OptionError, match=r"counts 8 \(runner_config\.batch_size times 2; .*\.batch_size: 2,"):
        check_rows(_stream(mps.Pad(4)), {"batch_size": 8, "mini_batch_size": 4})
    with pytest.raises(OptionError, match=r"counts 8 .* Make the two equal, or .* batch_size=8"):
        check_rows(_stream(mps.Pad(5)), {"batch_size": 8, "mini_batch_size": 4})


def test_a_number_that_was_forgotten_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"of 4 rows .* counts 1 .* Set runner_config\.batch_size: 4,"):
        check_rows(_stream(mps.Pad(4)), {"batch_size": 1, "mini_batch_size": 1})
    with pytest.warns(UserWarning, match=r"counts 2 \(runner_config\.batch_size times 2"):
        check_rows(_stream(mps.Pad(4)), {"batch_size": 2, "mini_batch_size": 1})


def test_a_callback_finds_the_names_in_the_network() -> None:
    """As `StreamCheckpoint` and `PrefStreamReport` do when a training begins, without a wrapped trainer."""
    wrapper = type("DataOrderWrapperCell", (), {"construct_args_key": ["labels", "input_ids"]})()
    network = type("Network", (), {"cells_and_names": lambda self: [("", self), ("network", wrapper)]})()
    dataset = type("Dataset", (), {"get_col_names": lambda self: COLUMNS})()
    with pytest.raises(OptionError, match="the same names in another order"):
        check_network(dataset, network)
    wrapper.construct_args_key = COLUMNS
    check_network(dataset, network)
    check_network(dataset, None)
