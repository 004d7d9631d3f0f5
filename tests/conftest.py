"""Fixtures that several test packages share."""

from __future__ import annotations

import os
import pathlib

import hypothesis
import pytest

pytest_plugins = ["tests.fixtures_tokenizers"]

os.environ.setdefault("GLOG_v", "3")  # MindSpore's deprecation notices hide what a failing test says

# `make test` draws the same examples everywhere; `make test-long` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("exploring")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real rows and tokenizers that stands beside the checkout; tests that need it skip without it."""
    root = pathlib.Path(os.environ.get("MS_PREFSTREAM_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
    if not (root / "tokenizers").is_dir():
        pytest.skip("needs ../shared (real rows and tokenizers)")
    return root
