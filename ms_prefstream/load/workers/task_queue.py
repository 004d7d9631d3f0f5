"""Queue between the caller of a pool and its worker processes: tasks that wait, and their answers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.load.loader import SampleLoader

_WAIT_SECONDS = 0.2  # between looks at whether the workers are alive, and for Ctrl-C


class Task(NamedTuple):
    """One call of a function in a worker.

    Attributes:
        function: Called with the worker's loader and the argument; defined in a module, so that workers can import it.
        argument: Anything that can be pickled.
        rows: Row ids that the function loads.
        long: Whether it may take minutes. Only an idle worker takes such a task, and this process never runs it.
    """

    function: Callable[[SampleLoader, Any], Any]
    argument: Any
    rows: Sequence[int] = ()
    long: bool = False

    def __str__(self) -> str:
        """Returns what the worker did, for the error when it dies."""
        if self.long:
            return f"worked on {self.argument}"
        if not self.rows:
            return f"encoded {len(self.argument)} rows"
        first = ", ".join(map(str, self.rows[:3]))
        return f"loaded {len(self.rows)} rows ({first}{', ...' if len(self.rows) > 3 else ''})"


class TaskQueue:
    """Tasks by ticket, their answers, and what went wrong. Thread-safe.

    Attributes:
        ready: Whether a worker has started and can work.
        closed: Whether the pool was closed.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._idle = 0  # workers that wait for a task
        self._waiting: deque[int] = deque()
        self._tasks: dict[int, Task] = {}  # of every ticket that is neither answered nor cancelled
        self._answers: dict[int, bytearray | BaseException] = {}
        self._failure = ""
        self.ready = False
        self.closed = False

    def post(self, tasks: Iterable[Task]) -> list[int]:
        """Adds tasks and returns the ticket of each.

        Raises:
            PrefStreamError: The pool has failed or is closed.
        """
        with self._changed:
            self._check()
            begin = self._next
            for task in tasks:
                self._tasks[self._next] = task
                self._waiting.append(self._next)
                self._next += 1
            self._changed.notify_all()
            return list(range(begin, self._next))

    def take(self, busy: bool) -> tuple[int, Task] | None:
        """Returns the oldest task for a worker; an idle worker waits for one.

        Args:
            busy: Whether the worker has a task already. It then gets None rather than a long task, or one that an idle
                worker could begin at once.
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
            if busy and (task.long or len(self._waiting) <= self._idle):
                return None
            self._waiting.popleft()
            return ticket, task

    def put(self, ticket: int, answer: bytearray | BaseException) -> None:
        """Stores the answer to a task, unless the task was cancelled."""
        with self._changed:
            if self._tasks.pop(ticket, None) is not None:
                self._answers[ticket] = answer
                self._changed.notify_all()

    def get(self, ticket: int, look: Callable[[], None]) -> bytearray | Task:
        """Waits for the answer to a task, and calls `look` now and then.

        While no worker is ready, it returns the task itself instead: the caller runs it.

        Raises:
            PrefStreamError: The pool has failed or is closed.
            Exception: The task's rows could not be read in this process.
        """
        with self._changed:
            self._check()
            while ticket not in self._answers:
                self._check()
                task = self._tasks[ticket]
                if not self.ready and not task.long and ticket in self._waiting:
                    self._waiting.remove(ticket)
                    return self._tasks.pop(ticket)
                if not self._changed.wait(_WAIT_SECONDS):
                    look()
            answer = self._answers.pop(ticket)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self, tickets: Iterable[int]) -> None:
        """Cancels tasks: drops their answers, skips those that have not started."""
        with self._changed:
            for ticket in tickets:
                self._answers.pop(ticket, None)
                if self._tasks.pop(ticket, None) is not None and ticket in self._waiting:
                    self._waiting.remove(ticket)

    def wait_ready(self, look: Callable[[], None]) -> None:
        """Waits until a worker is ready, and calls `look` now and then.

        Raises:
            PrefStreamError: The pool has failed or is closed.
        """
        with self._changed:
            while not self.ready:
                self._check()
                if not self._changed.wait(_WAIT_SECONDS):
                    look()

    def set_ready(self) -> None:
        """Notes that a worker can work: the caller runs no tasks any more."""
        with self._changed:
            self.ready = True
            self._changed.notify_all()

    def fail(self, problem: str) -> None:
        """Ends the pool with an error; the first one counts."""
        with self._changed:
            if not self._failure and not self.closed:
                self._failure = problem
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the queue: workers get no more tasks."""
        with self._changed:
            self.closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure:
            raise PrefStreamError(self._failure)
        if self.closed:
            raise PrefStreamError("the worker processes of this stream were closed. Make a new stream to go on.")
