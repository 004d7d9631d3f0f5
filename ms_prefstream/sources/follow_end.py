"""When waiting for more data ends: a sentinel file, or a time without data."""

from __future__ import annotations

import os
import time


class Ending:
    """Decides whether a pass over followed files is over, and waits.

    Only time spent waiting here counts towards the timeout, not the time in which the reader is busy elsewhere.

    Args:
        sentinel: A file whose existence means that everything has been written; None for none.
        timeout: Seconds without data; None for ever.
        poll: Seconds between two looks.
    """

    def __init__(self, sentinel: str | None, timeout: float | None, poll: float) -> None:
        self._sentinel, self._timeout, self._poll = sentinel, timeout, poll
        self._idle_since: float | None = None
        self.reason = ""

    def over(self) -> bool:
        """Whether nothing more is going to come. What is there by then must still be read."""
        if self._sentinel is not None and os.path.exists(self._sentinel):
            self.reason = f" (the sentinel file {self._sentinel} was there)"
            return True
        idle = 0.0 if self._idle_since is None else time.monotonic() - self._idle_since
        if self._timeout is not None and idle >= self._timeout:
            self.reason = f" (nothing was written for timeout={self._timeout:g} seconds)"
            return True
        return False

    def data(self) -> None:
        """Something new was there."""
        self._idle_since = None

    def wait(self) -> None:
        """Sleep until the next look; short, so that an interrupt is heard."""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        left = self._poll if self._timeout is None else self._idle_since + self._timeout - now
        time.sleep(max(0.0, min(self._poll, left)))
