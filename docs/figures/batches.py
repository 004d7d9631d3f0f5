"""All batches of the first bundled pairs by `Pad`, `Bucket` and `Pack`, to one scale: the area is what is computed."""

from __future__ import annotations

import tempfile
from typing import Any

from drawing import MARGIN, ROOT, SIDES, WIDTH, Drawing

import ms_prefstream as mps
from ms_prefstream.inspection.steps import Step, step_of

PAIRS = ROOT / "ms_prefstream" / "demo" / "pairs.jsonl"
ROWS, LENGTH, SIZE = 16, 256, 4
PACKED = ROWS // SIZE * LENGTH
SCALE = (WIDTH - 2 * MARGIN) / PACKED
RULES = (
    (f"Pad({SIZE})", mps.Pad(SIZE), f"batches, each as wide as max_length={LENGTH}"),
    (f"Bucket({SIZE}, multiple_of=32)", mps.Bucket(SIZE, multiple_of=32), "batches, each as wide as its longest row"),
    (f"Pack({PACKED})", mps.Pack(PACKED), "batches of one row that pairs share; the last holds the rest"),
)


def batches(theme: str) -> str:
    """Returns the picture."""
    drawing = Drawing(
        theme, f"{ROWS} pairs in batches by Pad, Bucket and Pack: the wider they are padded, the more is computed"
    )
    for call, rule, words in RULES:
        steps = _steps(rule)
        columns = sum(len(strip.ids) for step in steps for strip in step.strips)
        padding = sum(strip.counts[2] for step in steps for strip in step.strips)
        drawing.y += 14
        drawing.cells(MARGIN, drawing.y, call, bold=True)
        drawing.text(WIDTH - MARGIN, drawing.y, f"padding {100 * padding / columns:.1f} %", anchor="end", bold=True)
        drawing.text(MARGIN, drawing.y + 20, f"{len(steps)} {words}", "quiet")
        drawing.y += 30
        _draw(drawing, steps)
        drawing.y += 16
    drawing.y -= 16
    drawing.legend(MARGIN, {**SIDES, "": "padding"})
    return drawing.svg()


def _steps(rule: Any) -> list[Step]:
    """Returns the steps of an epoch; a length index makes packs exact."""
    options: dict[str, Any] = {"task": mps.DPO(LENGTH), "tokenizer": "bytes", "verbose": False}
    rows = mps.read(str(PAIRS))[:ROWS]
    with tempfile.TemporaryDirectory() as folder:
        mps.build_index(rows, f"{folder}/lengths", task=options["task"], tokenizer="bytes", verbose=False)
        stream = mps.stream(rows, batching=rule, index=f"{folder}/lengths", **options)
        steps = [step_of(stream, number) for number in range(stream.steps_per_epoch)]
    return sorted(steps, key=lambda step: step.padding > 0.5)  # a pack that is not full at the end


def _draw(drawing: Drawing, steps: list[Step]) -> None:
    """Draws steps side by side as long as they fit, else below."""
    x, top = float(MARGIN), drawing.y
    for step in steps:
        width = step.width * SCALE
        if x + width > WIDTH - MARGIN + 0.01:
            x, top = float(MARGIN), drawing.y
        drawing.y = top
        for strip in step.strips:
            drawing.strip(x, SCALE, strip, height=8)
            drawing.y += 1 if strip.side == "chosen" else 4
        x += width
        if x < WIDTH - MARGIN - 0.01:
            drawing.box(x - 2, top, 4, drawing.y - top, "paper")
