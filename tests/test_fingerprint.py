"""Functions of one name are told apart by what they do."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.fingerprint import code_hash

ROWS = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]


def enclosing(value: Any) -> Any:
    return lambda row: {**row, "prompt": value}


class Callable:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, row: Any) -> Any:
        return {**row, "prompt": self.value}


def with_default(row: Any, value: Any) -> Any:
    return {**row, "prompt": value}


@pytest.mark.parametrize("made", [enclosing, Callable, lambda value: functools.partial(with_default, value=value)])
def test_values_that_cannot_change_count(made: Any) -> None:
    assert code_hash(made("a")) == code_hash(made("a"))
    assert code_hash(made("a")) != code_hash(made("b"))
    assert code_hash(made(("a", 1))) != code_hash(made(("a", 2)))
    assert code_hash(made([1])) == code_hash(made([2]))  # a list may change while it runs
    assert code_hash(made(object())) == code_hash(made(object()))


def test_code_counts() -> None:
    assert code_hash(lambda row: row["a"]) != code_hash(lambda row: row["b"])
    assert code_hash(lambda row: [x for x in row if x > 1]) != code_hash(lambda row: [x for x in row if x > 2])
    assert code_hash(dict) == code_hash(dict)


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from ms_prefstream.fingerprint import code_hash\n"
        "print(code_hash(lambda row: {'a': frozenset('xyz'), **row, 'b': row['c']}))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", "PYTHONPATH": "."}, {"PYTHONHASHSEED": "2", "PYTHONPATH": "."})
    }
    assert len(found) == 1


def stream_of(rows: Any, fmt: Any) -> mps.Stream:
    return mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", format=fmt, batching=mps.Pad(2))


def test_a_state_of_another_function_is_refused() -> None:
    def swapped(row: Any) -> Any:
        return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}

    def same(row: Any) -> Any:
        return row

    swapped.__qualname__ = same.__qualname__
    with pytest.raises(mps.StateError, match="format was"):
        stream_of(ROWS, swapped).resume(stream_of(ROWS, same).state(1))


def test_a_state_of_another_list_is_refused() -> None:
    rows = [{**row, "prompt": "q" * n} for n, row in enumerate(ROWS * 40)]
    changed = [*rows]
    changed[201] = {**changed[201], "chosen": "other"}
    with pytest.raises(mps.StateError, match="data was"):
        stream_of(changed, "auto").resume(stream_of(rows, "auto").state(1))
