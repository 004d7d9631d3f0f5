"""The whole demo: streamed pairs, both trainings, the summary, and what it says when nothing was learned."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ms_prefstream.demo import data_path
from ms_prefstream.demo.run import _verdict, run
from ms_prefstream.demo.show import Summary


def test_the_data_is_where_it_says() -> None:
    assert Path(data_path()).is_file()


@pytest.mark.parametrize(
    ("accuracy", "dpo_loss", "learned"), [(0.9, 0.3, True), (0.89, 0.3, False), (0.95, 0.66, False)]
)
def test_the_verdict_needs_both_models(accuracy: float, dpo_loss: float, learned: bool) -> None:
    out = io.StringIO()
    summary = Summary(
        pairs=1,
        tokens=1,
        padding=0.0,
        padding_to_max=0.0,
        max_length=1,
        shapes=[(2, 1)],
        seconds=1.0,
        accuracy=(0.5, accuracy),
        reward_loss=(0.7, 0.1),
        dpo_loss=(0.7, dpo_loss),
    )
    assert _verdict(Console(file=out, width=200), summary) is learned
    assert ("did not learn" in out.getvalue()) is not learned


@pytest.mark.long
@pytest.mark.mindspore
def test_the_demo_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(seed=0)
    text = capsys.readouterr().out
    for part in ("reward model: step", "DPO: step", "pair accuracy", "shapes used", "Both models learned"):
        assert part in text
