"""``python -m ms_prefstream`` and the console script. While the commands are loaded, Ctrl-C ends the process."""

from __future__ import annotations

import os
import signal
from typing import Any


def main() -> None:
    """Runs the command line."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell may have it ignored
    if heeded:
        signal.signal(signal.SIGINT, _leave)
    from ms_prefstream.cli import main as cli

    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    finally:
        if heeded:
            signal.signal(signal.SIGINT, _leave)  # what Python does at its end would show a traceback


def _leave(*_: Any) -> None:
    os.write(2, b"ms-prefstream: interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
