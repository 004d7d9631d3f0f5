from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats import alpaca
from ms_prefstream.formats.record import Completion, Pair

from ..conversations import assistant, refusal, system, user

ROW = {"instruction": "Add", "input": "1 2", "chosen": "3", "rejected": "4"}
PAIR = Pair((user("Add\n1 2"),), (assistant("3"),), (assistant("4"),))


def test_polarity_and_meaning() -> None:
    assert alpaca()(ROW) == PAIR


@pytest.mark.parametrize("output", [["3", "4"], ("3", "4"), np.array(["3", "4"])])
def test_the_first_of_two_outputs_is_better(output: Any) -> None:
    assert alpaca()({"instruction": "Add", "input": "1 2", "output": output}) == PAIR


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}])
def test_without_input(given: dict[str, Any]) -> None:
    row = {"instruction": "Add", **given, "chosen": "3", "rejected": "4"}
    assert alpaca()(row).prompt == (user("Add"),)  # type: ignore[union-attr]


def test_one_output_is_a_completion() -> None:
    assert alpaca()({"instruction": "Add", "output": "3"}) == Completion((user("Add"),), (assistant("3"),))


def test_system_history_and_margin_are_read() -> None:
    row = {**ROW, "system": "s", "history": [["a", "b"]], "margin": 2}
    prompt = (system("s"), user("a"), assistant("b"), user("Add\n1 2"))
    assert alpaca()(row) == Pair(prompt, (assistant("3"),), (assistant("4"),), 2.0)


def test_what_is_refused() -> None:
    refusal(Reason.MISSING_FIELD, alpaca(), {"chosen": "3", "rejected": "4"})
    refusal(Reason.MISSING_FIELD, alpaca(), {"instruction": "x"})
    refusal(Reason.BAD_TYPE, alpaca(), {"instruction": "x", "output": ["1", "2", "3"]})
    refusal(Reason.BAD_TYPE, alpaca(), {"instruction": "x", "output": ["1", None]})
    refusal(Reason.BAD_TYPE, alpaca(), {**ROW, "input": 5})
    assert "item 1 of field 'history'" in refusal(Reason.BAD_TYPE, alpaca(), {**ROW, "history": [["a"]]})
    refusal(Reason.BAD_TYPE, alpaca(), {**ROW, "history": "a"})
