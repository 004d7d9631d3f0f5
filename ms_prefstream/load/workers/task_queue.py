"""Queue of the tasks that no worker process has begun."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.load.loader import SampleLoader


class Task(Future[Any]):
    """A call of a function in a worker, and the future of its result.

    Args:
        function: Called with the worker's loader and the argument; defined in a module, so that workers can import it.
        argument: Anything that can be pickled.
        rows: Row ids that the function loads.
        long: Whether it may take minutes. Only an idle worker takes such a task, and the parent never runs it.
    """

    def __init__(
        self, function: Callable[[SampleLoader, Any], Any], argument: Any, rows: Sequence[int] = (), long: bool = False
    ) -> None:
        super().__init__()
        self.function, self.argument, self.rows, self.long = function, argument, rows, long

    def __str__(self) -> str:
        """Returns what a worker did with it, for the error when the worker dies."""
        if self.long:
            return f"worked on {self.argument}"
        if not self.rows:
            return f"encoded {len(self.argument)} rows"
        first = ", ".join(map(str, self.rows[:3]))
        return f"loaded {len(self.rows)} rows ({first}{', ...' if len(self.rows) > 3 else ''})"


class TaskQueue:
    """Waiting tasks, and whether the pool can still work on them. Thread-safe.

    Attributes:
        ready: Whether a worker has started and can work.
        closed: Whether the pool was closed.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._idle = 0  # workers that wait for a task
        self._failure = ""
        self.ready = False
        self.closed = False

    def post(self, tasks: Iterable[Task]) -> None:
        """Adds tasks.

        Raises:
            PrefStreamError: See `check`.
        """
        with self._changed:
            self.check()
            self._waiting.extend(tasks)
            self._changed.notify_all()

    def take(self, busy: bool) -> Task | None:
        """Removes the oldest task for a worker; an idle worker waits for one.

        A busy worker gets None rather than a long task, or one that an idle worker could begin at once.
        """
        with self._changed:
            while not busy and not self._waiting and not self.closed:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            if self.closed or not self._waiting:
                return None
            if busy and (self._waiting[0].long or len(self._waiting) <= self._idle):
                return None
            task = self._waiting.popleft()
            task.set_running_or_notify_cancel()
            return task

    def claim(self, task: Task) -> bool:
        """Removes a task for the parent itself, which may run it while no worker is ready. Returns whether it may.

        Raises:
            PrefStreamError: See `check`.
        """
        with self._changed:
            self.check()
            may = not self.ready and not task.long and task in self._waiting
            if may:
                self._waiting.remove(task)
            return may

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Cancels tasks that have not started; the results of others are dropped with the tasks."""
        with self._changed:
            for task in tasks:
                if task in self._waiting:
                    self._waiting.remove(task)
                    task.cancel()

    def check(self) -> None:
        """Checks that the pool can work.

        Raises:
            PrefStreamError: The pool has failed or is closed.
        """
        if self._failure:
            raise PrefStreamError(self._failure)
        if self.closed:
            raise PrefStreamError("the worker processes of this stream were closed. Create a new stream.")

    def fail(self, problem: str) -> None:
        """Ends the pool with an error; the first one counts."""
        with self._changed:
            if not self._failure and not self.closed:
                self._failure = problem

    def close(self) -> None:
        """Ends the pool: workers get no more tasks."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
