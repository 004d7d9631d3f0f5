"""The command line in this process, as the tests call it."""

from __future__ import annotations

import sys

import pytest

from ms_prefstream.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Runs a command and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["ms-prefstream", *map(str, words)])
    try:
        main.main()
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0
