"""The picture of the README: `ms-prefstream inspect` in a terminal of 96 columns, as an SVG.

    python docs/picture.py docs/inspect.svg

The output is that of the command, read through a pseudo-terminal. The SVG brings its own background and loads nothing.
"""

from __future__ import annotations

import os
import pathlib
import pty
import re
import shlex
import subprocess
import sys
from html import unescape

from rich.cells import cell_len
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = 96
ROW = "ms-prefstream inspect pairs.jsonl --task dpo --max-length 160 --tokenizer bytes --row 4"
STEP = ROW.replace("--row 4", "\\\n      --step 0 --batch-size 4")


def terminal_output(command: str) -> str:
    """Returns what a command line prints on a terminal, with its colours; its log is left out."""
    control, terminal = pty.openpty()
    words = [sys.executable, "-m", "ms_prefstream", *shlex.split(command.replace("\\\n", " "))[1:]]
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "COLUMNS": str(COLUMNS),
        "PYTHONPATH": str(ROOT),
    }
    pairs = ROOT / "ms_prefstream" / "demo"
    with subprocess.Popen(words, cwd=pairs, env=environment, stdout=terminal, stderr=subprocess.DEVNULL) as running:
        os.close(terminal)
        parts = []
        while True:
            try:
                part = os.read(control, 65536)
            except OSError:  # how a pseudo-terminal of Linux ends
                part = b""
            if not part:
                break
            parts.append(part)
    os.close(control)
    if running.returncode:
        raise SystemExit(f"{command} ended with exit code {running.returncode}")
    return b"".join(parts).decode().replace("\r\n", "\n")


def picture() -> str:
    """Returns the SVG of the commands and what they print."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for command in (ROW, STEP):
        console.print(Text("$ " + command, style="bold"), soft_wrap=True)
        console.print(Text.from_ansi(terminal_output(command).strip("\n")))
        console.print()
    svg = console.export_svg(title="ms-prefstream inspect", theme=MONOKAI, unique_id="inspect")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # these would be loaded from the network
    return re.sub(r'textLength="([\d.]+)"([^>]*)>([^<]*)<', with_cells, svg)


def with_cells(text: re.Match[str]) -> str:
    """Returns a text of the SVG as wide as its cells; rich counts a Chinese character as one."""
    words = unescape(text[3])
    return f'textLength="{float(text[1]) * cell_len(words) / len(words):g}"{text[2]}>{text[3]}<'


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
