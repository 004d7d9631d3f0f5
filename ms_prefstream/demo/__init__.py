"""The bundled demo: preference pairs, a small model, reward training and DPO in MindSpore on the CPU."""

from __future__ import annotations

from pathlib import Path


def data_path() -> str:
    """Returns the path of the bundled preference pairs: JSON Lines, chat messages, Chinese and English."""
    return str(Path(__file__).parent / "pairs.jsonl")
