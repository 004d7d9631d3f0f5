from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats.messages import tools_of

from .conversations import refusal

SCHEMA = {"type": "function", "function": {"name": "add"}}


def test_tools_as_a_list_as_json_text_and_as_an_array() -> None:
    assert tools_of({"tools": [SCHEMA]}) == (SCHEMA,)
    assert tools_of({"tools": '[{"type": "function", "function": {"name": "add"}}]'}) == (SCHEMA,)
    assert tools_of({"tools": np.array([SCHEMA], object)}) == (SCHEMA,)


@pytest.mark.parametrize("value", [None, "", " ", [], "[]"])
def test_no_tools_is_none(value: Any) -> None:
    assert tools_of({"tools": value}) is None
    assert tools_of({}) is None


@pytest.mark.parametrize("value", ["no json", '{"a": 1}', 5, {"a": 1}])
def test_what_is_no_list_of_tools(value: Any) -> None:
    assert "field 'tools'" in refusal(Reason.BAD_TYPE, tools_of, {"tools": value})
