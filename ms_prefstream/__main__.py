"""``python -m ms_prefstream`` and the console script: how Ctrl-C ends a command at any moment."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

_AGAIN_SECONDS = 0.05


def main() -> None:
    """Runs the command line."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell may have it ignored
    if heeded:
        signal.signal(signal.SIGINT, _leave)
    from ms_prefstream.cli import main as cli

    try:
        if heeded:
            sys.unraisablehook = _interrupt_again
            signal.signal(signal.SIGINT, _interrupt)
        cli.main()
    finally:
        if heeded:
            signal.signal(signal.SIGINT, _leave)  # what Python does at its end would show a traceback


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; ends the process during an import, where packages make another error of it or crash.

    Whatever is being written may stay unfinished, as if the process was killed.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Repeats an interrupt that Python has dropped because it came within a destructor or a callback."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    import threading

    again = signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
    threading.Timer(_AGAIN_SECONDS, *again).start()  # after the callback


def _leave(*_: Any) -> None:
    os.write(2, b"ms-prefstream: interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
