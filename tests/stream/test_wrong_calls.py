"""Calls with wrong arguments, and streams that are taken for data sets: a sentence with the remedy each time."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import pairs

USUAL: dict[str, Any] = {"task": mps.DPO(96), "tokenizer": "bytes", "batching": mps.Pad(2)}
PUBLIC = [name for name in mps.__all__ if callable(getattr(mps, name)) and not name.endswith("Error")]


def stream(**options: Any) -> mps.Stream:
    return mps.stream(pairs(8), **USUAL | options)


@pytest.mark.parametrize("name", sorted({*PUBLIC} - {"Diagnosis", "PartReport", "Reason", "Report", "Stats", "Stream"}))
def test_every_public_name_answers_a_wrong_option(name: str) -> None:
    made = getattr(mps, name)
    required = [one.name for one in inspect.signature(made).parameters.values() if one.default is one.empty]
    with pytest.raises(mps.OptionError, match=rf"{name} has no option no_such_option; "):
        made(**dict.fromkeys(required, 1), no_such_option=1)
    with pytest.raises(mps.OptionError, match=r"takes .* without a name, and 40 values were given"):
        made(*range(40))
    if [one for one in required if one != "tokens" and name != "Part"]:
        with pytest.raises(mps.OptionError, match=rf"{name}: {required[0]} is missing; expected a value"):
            made()


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no length": (lambda: mps.DPO(), r"DPO: max_length is missing; expected a value, such as max_length=1024\."),
    "no batch size": (lambda: mps.Pad(), r"Pad: batch_size is missing; .* batch_size=8\."),
    "bucket": (lambda: mps.Bucket(), r"Bucket\(batch_size=8\)"),
    "batch_size": (
        lambda: mps.stream([], batch_size=4),
        r"batch_size; use batching=mps.Bucket\(batch_size=4",
    ),
    "num_workers": (lambda: stream(num_workers=4), r"no option num_workers; use workers=4\."),
    "max_length": (lambda: stream(max_length=9), r"use task=mps\.DPO\(max_length=9\)\."),
    "lr": (lambda: stream(lr=1), r"lr; it belongs to the training"),
    "misspelt": (lambda: stream(shufle=False), r"shufle; did you mean shuffle=False\."),
    "of another": (lambda: mps.DPO(8, batch_size=2), r"it is an option of mps\.stream: batching=mps\.Bucket\(batch_s"),
    "twice": (lambda: mps.DPO(8, max_length=8), r"max_length is given twice"),
    "of a method": (lambda: stream().batches(epochs=2), r"stream\.batches has no option epochs"),
    "len": (lambda: len(stream()), r"stream\.steps_per_epoch"),
    "for": (lambda: list(stream()), r"cannot be iterated over; pass stream\.dataset\(\).*stream\.batches\(\)"),
    "next": (lambda: next(stream()), r"cannot be iterated over; pass stream\.dataset\(\)"),
    "item": (lambda: stream()[0], r"cannot be indexed; pass stream\.dataset\(\)"),
    "data set": (lambda: stream().get_dataset_size(), r"no attribute get_dataset_size; .* pass stream\.dataset\(\)"),
    "path of an index": (
        lambda: mps.build_index(pairs(8), 3, task=mps.DPO(64), tokenizer="bytes", verbose=False),
        r"index is 3; expected the path of a file\.",
    ),
    "verbose": (lambda: stream(verbose="no"), r"verbose is 'no'; expected True or False\."),
    "attribute": (lambda: stream().bathces(), r"no attribute bathces; did you mean batches\?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_ends_in_a_sentence(case: str) -> None:
    call, said = WRONG[case]
    with pytest.raises(mps.PrefStreamError) as caught:
        call()
    assert re.search(said, str(caught.value)), str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_batching_is_not_called_missing_where_it_is_the_remedy() -> None:
    with pytest.raises(mps.OptionError) as caught:
        mps.stream([], task=mps.DPO(8), tokenizer="bytes", batch_size=4)
    assert "missing" not in str(caught.value)


def test_what_is_not_wrong_stays_as_it_is() -> None:
    made = stream()
    assert made
    assert not hasattr(made, "get_dataset_size")
    assert getattr(made, "no_such", None) is None
    with pytest.raises(AttributeError):
        made.nothing_like_it  # noqa: B018
    assert "max_length" in inspect.signature(mps.DPO).parameters
    assert "self" not in inspect.signature(mps.DPO).parameters
    assert next(iter(inspect.signature(mps.stream).parameters)) == "source"
    task = mps.DPO(9)
    assert pickle.loads(pickle.dumps(task)) == task == copy.copy(task)


def test_a_type_error_inside_a_function_stays_one() -> None:
    def wrong() -> Any:
        return len(3)

    class Odd(list[Any]):
        def __len__(self) -> int:
            raise TypeError("from inside")

    with pytest.raises(TypeError, match="from inside"):
        mps.stream(Odd(pairs(2)), **USUAL)
    with pytest.raises(TypeError):
        wrong()


@pytest.mark.mindspore
def test_model_train_names_the_data_set() -> None:
    from mindspore import Model, nn

    with pytest.raises(mps.PrefStreamError, match=r"pass stream\.dataset\(\)"):
        Model(nn.Dense(2, 2), nn.MSELoss(), nn.SGD(nn.Dense(2, 2).trainable_params())).train(1, stream())
