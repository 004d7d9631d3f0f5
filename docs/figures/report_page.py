"""The HTML report of the bundled pairs in a browser, as PNG: its top and its first sample, in a narrow window.

It needs Chromium and Playwright; `CHROMIUM` names a browser.
"""

from __future__ import annotations

import io
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from drawing import ROOT, WIDTH, palette

COMMAND = "inspect pairs.jsonl --rows 84 --task dpo --max-length 160 --tokenizer bytes"
SHARPNESS = 2  # dots a unit
COLOURS = 128


def report(theme: str) -> bytes:
    """Returns the picture."""
    from PIL import Image, ImageDraw
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page = pathlib.Path(folder, "report.html")
        call = [sys.executable, "-m", "ms_prefstream", *shlex.split(COMMAND), "--html", str(page)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(call, cwd=ROOT / "ms_prefstream" / "demo", env=environment, check=True, capture_output=True)
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        window = browser.new_page(
            viewport={"width": WIDTH, "height": 900},
            device_scale_factor=SHARPNESS,
            color_scheme=theme,
            locale="en-US",
        )
        window.goto(page.as_uri())
        parts = [(0, _top(window, "figure", 1)), (_top(window, "#samples h2", 0) - 14, _top(window, "article", 1))]
        whole = Image.open(io.BytesIO(window.screenshot(full_page=True))).convert("RGB")
        browser.close()
    pieces = [whole.crop((0, SHARPNESS * begin, whole.width, SHARPNESS * end)) for begin, end in parts]
    picture = Image.new("RGB", (whole.width, sum(piece.height for piece in pieces)))
    for number, piece in enumerate(pieces):
        picture.paste(piece, (0, sum(one.height for one in pieces[:number])))
    edge = ((0, 0), (picture.width - 1, picture.height - 1))
    ImageDraw.Draw(picture).rectangle(edge, outline=palette(theme)["line"], width=SHARPNESS)
    file = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _top(window: Any, selector: str, number: int) -> int:
    return int(window.locator(selector).nth(number).bounding_box()["y"])
