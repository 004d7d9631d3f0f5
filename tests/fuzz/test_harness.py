"""The harness finds what a case must never do."""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from ms_prefstream.errors import PrefStreamError
from tests.fuzz import harness


def refuse() -> None:
    raise PrefStreamError("it cannot be read")


def work() -> None:
    while True:
        pass


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "another exception": (lambda: {}["key"], "KeyError: 'key'"),
    "an error without a place": (refuse, "no place in the error: it cannot be read"),
    "memory": (lambda: bytearray(b"x") * (60 << 20), r"it took \d+ MB"),
    "more memory than is left": (lambda: bytearray(1 << 40), "MemoryError"),
    "a signal": (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process ended with -9"),
    "slow": (work, "it took more than 0.1 s"),
    "hangs": (lambda: time.sleep(60), "it hangs"),
}


class Faulty:
    """A target with a fault that one of its mutations sets off."""

    place = "row"

    def __init__(self, fault: Callable[[], Any]) -> None:
        self._fault = fault

    def start(self, draw: random.Random) -> Any:
        return []

    def mutate(self, value: Any, draw: random.Random) -> Any:
        return [*value, draw.randrange(3)]

    def run(self, value: Any) -> bool:
        if 0 in value:
            self._fault()
        return True

    def is_parsed(self, value: Any) -> bool:
        return False


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, said = FAULTS[name]
    monkeypatch.setattr(harness, "ROOM", 30 << 20)
    monkeypatch.setattr(harness, "SECONDS", 0.1 if name in ("slow", "hangs") else 20)
    monkeypatch.setattr(harness, "PATIENCE", 6 if name == "hangs" else 100)

    def make(folder: pathlib.Path) -> harness.Target:
        return Faulty(fault)

    values = [harness._value(make(pathlib.Path()), "faulty", 0, at, harness._seeds("faulty", 0, at)) for at in range(6)]
    outcome = harness.run_target("faulty", make, 0, range(6))
    assert outcome.cases == 6
    assert outcome.past == sum(0 not in value for value in values)
    first = next(at for at, value in enumerate(values) if 0 in value)
    text = next(text for text in outcome.faults.values() if text.startswith(f"case {first}: "))
    assert re.search(said, text)
    assert f"python -m tests.fuzz faulty --seed 0 --only {first}" in text
    if "input: " in text:
        assert "input: [0]\n" in text  # the least mutations
