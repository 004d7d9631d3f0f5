"""Where a pool's tasks are posted and their results are put up: what the caller and the drivers share."""

from __future__ import annotations

import enum
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ms_prefstream.errors import PrefStreamError


class Kind(enum.IntEnum):
    """What a message says, and what follows it."""

    RECIPE = 1  # to the worker: the size of the shared buffers, then the packed recipe
    READY = 2  # from the worker: it can work now
    LOAD = 3  # to the worker: row ids, int64
    SAMPLES = 4  # to the worker: pickled records
    MEASURE = 5  # to the worker: row ids, int64
    RESULT = 6  # from the worker: the answer to the oldest task that is not answered yet
    FAILED = 7  # from the worker: a pickled error instead
    ASK = 8  # from the worker: pickled (number of a source, row ids), in the middle of a task
    ROWS = 9  # to the worker: pickled (rows, origins)
    GONE = 10  # to the worker: these rows cannot be read; nobody waits for the task any longer
    CALL = 11  # to the worker: pickled (function, argument); the answer is pickled function(loader, argument)


_WAIT_SECONDS = 0.2  # between looks at whether the workers are alive, and for Ctrl-C


class Task(NamedTuple):
    """Something for a worker to do.

    Attributes:
        kind: LOAD, MEASURE, SAMPLES or CALL.
        rows: Row ids; for SAMPLES the records, for CALL a function and its argument.
    """

    kind: Kind
    rows: Sequence[Any]

    def payload(self) -> bytes:
        """What is sent to a worker."""
        if self.kind in (Kind.SAMPLES, Kind.CALL):
            return pickle.dumps(self.rows, protocol=5)  # canonical records: plain values only
        return np.array(self.rows, np.int64).tobytes()


class TaskQueue:
    """Tasks that wait, results that wait, and what went wrong. Safe for threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._idle = 0  # workers that wait for a task
        self._waiting: deque[int] = deque()
        self._tasks: dict[int, Task] = {}  # of every ticket that is neither answered nor forgotten
        self._results: dict[int, bytearray | Exception] = {}
        self._failure = ""
        self.ready = False  # whether a worker can work
        self.closed = False

    def post(self, task: Task) -> int:
        """Put up a task; the ticket to its result.

        Raises:
            PrefStreamError: The pool has failed or is closed.
        """
        with self._changed:
            self._check()
            ticket, self._next = self._next, self._next + 1
            self._tasks[ticket] = task
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def take(self, busy: bool) -> tuple[int, Task] | None:
        """The oldest task for a worker.

        Args:
            busy: Whether the worker has one in work. If so, and no task is to spare, there is None: those that have
                nothing to do come first, and a call, which may take minutes, waits for the first of them.
        """
        with self._changed:
            while not busy and not self._waiting and not self.closed:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            if self.closed or not self._waiting:
                return None
            ticket = self._waiting[0]
            task = self._tasks[ticket]
            if busy and (len(self._waiting) <= self._idle or task.kind is Kind.CALL):
                return None
            self._waiting.popleft()
            return ticket, task

    def claim(self, ticket: int) -> Task | None:
        """The task itself, taken off the board, if no worker has begun it and none can work yet."""
        with self._changed:
            self._check()
            if self.ready or ticket not in self._waiting:
                return None
            self._waiting.remove(ticket)
            return self._tasks.pop(ticket)

    def put(self, ticket: int, result: bytearray | Exception) -> None:
        """Put up a result, unless nobody wants it any longer."""
        with self._changed:
            if self._tasks.pop(ticket, None) is not None:
                self._results[ticket] = result
                self._changed.notify_all()

    def forget(self, tickets: Iterable[int]) -> None:
        """Nobody wants these any longer: what is not begun never will be."""
        with self._changed:
            for ticket in tickets:
                self._results.pop(ticket, None)
                if self._tasks.pop(ticket, None) is not None and ticket in self._waiting:
                    self._waiting.remove(ticket)

    def get(self, ticket: int, look: Callable[[], None]) -> bytearray:
        """The result of a task; waits for it, and calls `look` now and then.

        Raises:
            PrefStreamError: The pool has failed or is closed, or the task ended in this error.
        """
        with self._changed:
            while ticket not in self._results:
                self._check()
                if ticket not in self._tasks:
                    raise KeyError(ticket)
                if not self._changed.wait(_WAIT_SECONDS):
                    look()
            result = self._results.pop(ticket)
        if isinstance(result, Exception):
            raise result
        return result

    def wait(self, look: Callable[[], None]) -> None:
        """Wait until a worker can work, and call `look` now and then.

        Raises:
            PrefStreamError: The pool has failed or is closed.
        """
        with self._changed:
            while not self.ready:
                self._check()
                if not self._changed.wait(_WAIT_SECONDS):
                    look()

    def can_work(self) -> None:
        """A worker has its recipe; whoever waits may leave the rest to it."""
        with self._changed:
            self.ready = True
            self._changed.notify_all()

    def fail(self, problem: str) -> None:
        """The pool cannot go on; the first problem counts."""
        with self._changed:
            if not self._failure and not self.closed:
                self._failure = problem
            self._changed.notify_all()

    def close(self) -> None:
        """No more tasks."""
        with self._changed:
            self.closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure:
            raise PrefStreamError(self._failure)
        if self.closed:
            raise PrefStreamError("the worker processes of this stream were closed. Make a new stream to go on.")
