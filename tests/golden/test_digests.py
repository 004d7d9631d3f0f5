"""Batches, states, index and cache files are bit for bit what they were: see `tests/golden/digests.py`."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.golden.digests import CASES, STORED, digest, found

DIGESTS: dict[str, str] = json.loads(STORED.read_text("utf-8"))


def test_every_case_is_stored_and_every_stored_one_is_a_case() -> None:
    assert sorted(DIGESTS) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_digest(name: str, tmp_path: pathlib.Path) -> None:
    assert found(name, tmp_path) == DIGESTS[name], "what that means stands in tests/golden/digests.py"


def test_a_digest_sees_names_order_dtype_shape_and_content() -> None:
    ids, mask = np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((2, 3), np.int32)
    others: list[list[Any]] = [
        [{"ids": ids, "mask": mask}],
        [{"mask": mask, "ids": ids}],
        [{"ids": ids, "other": mask}],
        [{"ids": ids.reshape(3, 2), "mask": mask}],
        [{"ids": ids.view(np.uint32), "mask": mask}],
        [{"ids": ids + 1, "mask": mask}],
        [{"ids": ids}, {"mask": mask}, b""],
    ]
    assert len({digest(other) for other in others}) == len(others)
