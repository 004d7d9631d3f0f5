"""What the demo prints, on a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from ms_prefstream.demo.show import Summary, progress, summary_table


def printed(terminal: bool, steps: int) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with progress(console, "DPO", steps, smooth=2) as bar:
        for step in range(steps):
            bar.advance(loss=1.0 - step / steps, accuracy=step / steps)
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = printed(terminal=False, steps=20)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[0] == "DPO: step 1/20  loss 1.000  pair accuracy   0 %"
    assert lines[-1] == "DPO: step 20/20  loss 0.075  pair accuracy  92 %"  # means of the last two steps
    assert 5 <= len(lines) <= 8


def test_few_steps_have_a_line_each() -> None:
    assert [line.split("  ")[0] for line in printed(terminal=False, steps=2).splitlines()] == [
        "DPO: step 1/2",
        "DPO: step 2/2",
    ]


def test_a_bar_on_a_terminal() -> None:
    text = printed(terminal=True, steps=20)
    assert "\x1b[" in text
    assert "20/20" in text
    assert "pair accuracy  92 %" in text


def test_the_closing_table_names_every_figure() -> None:
    out = io.StringIO()
    summary = Summary(
        pairs=84,
        tokens=212_666,
        padding=0.359,
        padding_to_max=0.476,
        max_length=256,
        shapes=[(16, 192), (16, 128), (16, 192)],
        seconds=51.4,
        accuracy=(0.5, 0.966),
        reward_loss=(0.693, 0.119),
        dpo_loss=(0.693, 0.215),
    )
    Console(file=out, width=80).print(summary_table(summary))
    text = out.getvalue()
    figures = ("84", "212,666 in 51 s", "35.9 %", "47.6 % if padded to 256", "16 x 128, 16 x 192\n", "0.693 -> 0.119")
    for figure in figures:
        assert figure in text.replace("  ", "").replace(" \n", "\n"), figure
    assert "50.0 % -> 96.6 %" in text
    assert "0.693 -> 0.215" in text
