"""Checks of option values that several folders share."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ms_prefstream.errors import OptionError

WORD = 2**32 - 1
"""The largest seed and epoch: one 32-bit word each, so that no two (seed, epoch) pairs seed the same sequence."""

LONGEST = 1 << 24
"""Tokens of a sequence, at most: far beyond any model, and few enough for a list of all widths."""

MOST_WORKERS = 1024


def whole_number(name: str, value: object, minimum: int, maximum: int = sys.maxsize) -> int:
    """Returns the value as a plain int (numpy integers are accepted, booleans and floats are not).

    Args:
        name: The option, as the user typed it.
        value: The given value.
        minimum: The smallest allowed value.
        maximum: The largest allowed value; by default the largest that a Python container can count to.

    Raises:
        OptionError: It is not a whole number, or out of bounds.
    """
    if type(value) is int and minimum <= value <= maximum:
        return value  # the usual case; plans check numbers at every step
    allowed = f"a whole number in {minimum}..{maximum}"
    if maximum == sys.maxsize and not (isinstance(value, int) and value > maximum):
        allowed = f"a whole number of at least {minimum}"
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} is {value!r} ({type(value).__name__}); expected {allowed}.") from None
    if not minimum <= number <= maximum:
        raise OptionError(f"{name} is {number}; expected {allowed}.")
    return number


def process_count(value: object, least: int = 0) -> int:
    """Returns the checked option ``workers``."""
    return whole_number("workers", value, least, MOST_WORKERS)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_positive(value: object) -> bool:
    """Returns whether a value is a finite number above 0; booleans are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def check_made(name: str, given: object, attribute: str, example: str) -> None:
    """Checks that an option is an object of this library, not a name, a number or a class.

    Args:
        name: The option, as the user typed it.
        given: The given value.
        attribute: An attribute that every such object has.
        example: An expression that makes one.

    Raises:
        OptionError: It is something else.
    """
    if isinstance(given, type) or not hasattr(given, attribute):
        shown = given.__name__ if isinstance(given, type) else reprlib.repr(given)
        if "\n" in repr(given):  # streams, datasets and reports describe themselves in lines
            shown = f"a {type(given).__name__}"
        raise OptionError(f"{name} is {shown}; expected an object such as {example}.")


Group = TypeVar("Group")


def group_of(group: Callable[..., Group], given: Mapping[str, Any]) -> Group:
    """Returns a group of options, a dataclass, with the given values of the options that it has."""
    names = inspect.signature(group).parameters
    return group(**{name: given[name] for name in names if name in given})


def divisors_near(number: int, wanted: int) -> str:
    """Returns the divisors of `number` just below and above `wanted`, for a remedy: ``"4 or 8"``."""
    small = [d for d in range(1, min(int(number**0.5), 100_000) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below, above = [d for d in divisors if d < wanted], [d for d in divisors if d > wanted]
    return " or ".join(str(d) for d in below[-1:] + above[:1])


Public = TypeVar("Public", bound=Callable[..., Any])

_OTHER_NAMES = {
    "source": "data dataset data_files data_path file files path",
    "task": "loss objective",
    "format": "map_fn preset",
    "fields": "column_mapping field_map field_mapping rename_columns",
    "template": "chat_template",
    "template_variables": "chat_template_kwargs",
    "pad_token_id": "pad_id pad_token",
    "seed": "random_seed",
    "workers": "num_parallel_workers num_proc num_workers",
    "drop_remainder": "drop_last",
    "num_shards": "device_num rank_size world_size",
    "shard_id": "rank rank_id",
    "max_length": "max_len max_seq_len max_seq_length model_max_length",
    "max_prompt_length": "max_source_length prompt_length",
}
"""Options by the names that other libraries give them."""

_PARTS = {
    "batching": {
        "mps.Bucket({}={})": "batch_size max_tokens multiple_of boundaries max_shapes extra round_to",
        "mps.Bucket(batch_size={1})": "batchsize global_batch_size micro_batch_size per_device_train_batch_size",
        "mps.Pack({1})": "pack packing tokens",
    },
    "task": {
        "mps.DPO(max_length={1})": "max_len max_length max_seq_len max_seq_length",
        "mps.DPO(max_length=1024, {}={})": "labels layout margin max_prompt_length truncation",
        "mps.Reward(max_length=1024, {}={})": "reward_token",
        "mps.RLHF(max_prompt_length=512, {}={})": "seq_length",
    },
}
"""Options of an object that is an option itself, by the expression that gives them."""

_TRAINING = frozenset(["beta", "epoch", "epochs", "learning_rate", "lr", "num_epochs", "num_train_epochs", "optimizer"])

_EXAMPLES = {
    "source": '"train.jsonl"',
    "task": "mps.DPO(max_length=1024)",
    "tokenizer": '"path/to/tokenizer"',
    "batching": "mps.Bucket(batch_size=8)",
    "max_length": "1024",
    "max_prompt_length": "512",
    "seq_length": "1024",
    "batch_size": "8",
    "tokens": "4096",
}


def checked_call(made: Public) -> Public:
    """Decorates a public function or class: a call with wrong arguments raises an `OptionError` that names the remedy.

        mps.stream(..., num_workers=4)  ->  mps.stream has no option num_workers; use workers=4.

    Of a class, the constructor and all public methods are decorated. The signature stays as it is.
    """
    if not isinstance(made, type):
        return cast(Public, _checked_call(made, f"mps.{made.__name__}"))
    for name, method in list(vars(made).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            shown = made.__name__ if name == "__init__" else f"{made.__name__.lower()}.{name}"
            setattr(made, name, _checked_call(method, shown))
    return made


def _checked_call(function: Any, name: str) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            if not (problems := list(_wrong_arguments(name, function, args, kwargs))):
                raise  # from inside the function
        raise OptionError(" ".join(problems))

    return call


def _wrong_arguments(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    """Yields why a function cannot be called with these arguments, as sentences."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
        return
    except TypeError:
        pass
    allowed = {at: one for at, one in signature.parameters.items() if at not in ("self", "_")}
    by_place = [at for at, one in allowed.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    given = args[1:] if "self" in signature.parameters else args
    instead = {at: _instead_of(at, reprlib.repr(value), allowed) for at, value in kwargs.items() if at not in allowed}
    for wrong in kwargs:
        if wrong in instead:
            yield f"{name} has no option {wrong}; {instead[wrong]}."
        elif wrong in by_place[: len(given)]:
            yield f"{name}: {wrong} is given twice, without its name and with it; expected it once."
    if len(given) > len(by_place):
        most = ", ".join(by_place) or "none"
        further = next((at for at in allowed if at not in by_place), "")
        yield (
            f"{name} takes {most} without a name, and {len(given)} values were given so; expected the others with "
            f"their names{f', such as {further}' if further else ''}."
        )
    for at, one in allowed.items():
        if any(f" {at}=" in text for text in instead.values()):
            continue
        if one.default is one.empty and at not in kwargs and at not in by_place[: len(given)]:
            example = f"{at}={_EXAMPLES.get(at, '...')}"
            yield f"{name}: {at} is missing; expected a value, such as {example}."


def _instead_of(wrong: str, value: str, allowed: Mapping[str, Any]) -> str:
    """Returns what to do instead of giving an option that does not exist."""
    for option, names in _OTHER_NAMES.items():
        if option in allowed and wrong in names.split():
            return f"use {option}={value}"
    for option, makers in _PARTS.items():
        for maker, names in makers.items():
            if wrong in names.split():
                what = "use" if option in allowed else "it is an option of mps.stream:"
                return f"{what} {option}={maker.format(wrong, value)}"
    if wrong in _TRAINING:
        return "it belongs to the training, as in model.train(epochs, stream.dataset()): leave it out"
    near = difflib.get_close_matches(wrong, allowed, n=1)
    value = "..." if near == ["storage_options"] else value  # which may hold credentials
    return f"did you mean {near[0]}={value}" if near else f"it takes {', '.join(allowed)}"


class _NoAttributeError(OptionError, AttributeError):
    """An attribute does not exist; `hasattr` is False."""


class NoDataset:
    """Parent of `Stream`, which is no data set: what is only possible with one raises a sentence with the remedy."""

    _PASS = "pass stream.dataset() to MindSpore, or iterate over stream.batches() for numpy arrays"

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        raise OptionError(f"a stream cannot be iterated over; {self._PASS}.")

    def __next__(self) -> Any:
        return next(iter(self))

    def __len__(self) -> int:
        raise OptionError(
            "a stream has no len(); expected stream.steps_per_epoch (steps of an epoch) or stream.report.rows (rows)."
        )

    def __getitem__(self, step: object) -> Any:
        raise OptionError(f"a stream cannot be indexed; {self._PASS}.")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            public = [one for one in dir(type(self)) if not one.startswith("_")]
            near = difflib.get_close_matches(name, public, n=1, cutoff=0.8)
            what = f"did you mean {near[0]}? If not, {self._PASS}" if near else f"it is no data set: {self._PASS}"
            raise _NoAttributeError(f"a stream has no attribute {name}; {what}.")
