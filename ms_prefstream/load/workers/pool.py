"""Worker processes that load samples: the same rows give the same samples, however many there are."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from ms_prefstream.errors import OptionError, PrefStreamError, RowError
from ms_prefstream.formats.record import Record
from ms_prefstream.lengths.index import Measured, measure
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.load.workers.blocks import unpack
from ms_prefstream.load.workers.board import Kind, Task, TaskQueue
from ms_prefstream.load.workers.process import Driver
from ms_prefstream.load.workers.recipe import pack_recipe
from ms_prefstream.sample import Loaded, Ready

_Argument = TypeVar("_Argument")
_Answer = TypeVar("_Answer")

CHUNK = 64  # rows of one task: small enough to share a window out evenly, large enough to be worth a message
_END_SECONDS = 2.0


class LoaderPool:
    """A `SampleLoader` that works in other processes.

    The processes start with the first task. They do not run the program that uses them again, so a script needs no
    main guard. Callables travel by value; a format function with a state has a state of its own in each of them.
    Rows of sources in memory are read in this process and sent. Until the first worker is ready, whoever waits for
    rows loads them in this process. A worker that dies ends the pool: every later call says why.

    Args:
        recipe: What samples are made with.
        workers: How many processes, 1 or more.
        local: A loader that follows the same recipe in this process; made from the recipe when it is needed.

    Raises:
        OptionError: The number is not allowed, or a part of the recipe cannot be sent.
    """

    def __init__(self, recipe: Recipe, workers: int, local: SampleLoader | None = None) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise OptionError(f"workers is {workers!r}; expected a whole number of processes, 0 for none.")
        self.workers = workers
        self._recipe = recipe
        self._local = local
        self._board = TaskQueue()
        self._drivers: list[Driver] = []
        self._starting = threading.Lock()
        self._started = False
        self._process = os.getpid()
        self._packed = pack_recipe(recipe, workers)
        self._end = weakref.finalize(self, _end, self._process, self._board, self._drivers)

    def start(self) -> None:
        """Start the processes, unless they run; the first task does so too."""
        with self._starting:
            if not self._started and not self._board.closed:
                self._started = True
                try:
                    for number in range(1, self.workers + 1):
                        self._drivers.append(Driver(number, self.workers, self._packed, self._board))
                except OSError as error:
                    self._board.fail(f"workers={self.workers} cannot be started: {error}. Use fewer, or workers=0.")
                finally:
                    if self._packed.shared is not None:
                        self._packed.shared.close()
                for driver in self._drivers:
                    driver.start()

    def wait(self) -> None:
        """Start the processes and wait until one of them can work.

        Raises:
            PrefStreamError: One of them could not start.
        """
        self.start()
        self._board.wait(self._look)

    def load(self, rows: Sequence[int]) -> list[Loaded]:
        """The samples of these rows, in this order, shared out over the workers."""
        return self.collect(self.spread(rows))

    def samples(self, found: Sequence[Record | Ready | RowError]) -> list[Loaded]:
        """The samples of these records, in this order, likewise."""
        return self.collect(self.spread_records(found))

    def submit(self, rows: Sequence[int]) -> int:
        """Have these rows loaded by one worker; the ticket for `result`."""
        return self._post(Task(Kind.LOAD, list(rows)))

    def result(self, ticket: int) -> list[Loaded]:
        """What was loaded for a ticket, once; waits for it.

        Raises:
            PrefStreamError: A worker died, or loading ended in this error.
        """
        task = self._board.claim(ticket)
        if task is not None:
            return self._here(task)
        return unpack(self._board.get(ticket, self._look))

    def spread(self, rows: Sequence[int]) -> list[int]:
        """Have these rows loaded by all workers; the tickets for `collect`."""
        return [self.submit(rows[begin : begin + CHUNK]) for begin in range(0, len(rows), CHUNK)]

    def spread_records(self, found: Sequence[Record | Ready | RowError]) -> list[int]:
        """Have samples made of these records by all workers; the tickets for `collect`."""
        chunks = (found[begin : begin + CHUNK] for begin in range(0, len(found), CHUNK))
        return [self._post(Task(Kind.SAMPLES, list(chunk))) for chunk in chunks]

    def collect(self, tickets: Sequence[int]) -> list[Loaded]:
        """What was loaded for these tickets, one behind the other."""
        loaded: list[Loaded] = []
        try:
            for ticket in tickets:
                loaded += self.result(ticket)
        except BaseException:
            self.forget(tickets)
            raise
        return loaded

    def forget(self, tickets: Iterable[int]) -> None:
        """Nobody will ask for these any longer."""
        self._board.forget(tickets)

    def measured(self, chunks: Iterable[range]) -> Iterator[Measured]:
        """Each chunk of rows, measured, in order; a few chunks a worker are under way at any time."""
        flying: deque[int] = deque()
        try:
            for chunk in chunks:
                flying.append(self._post(Task(Kind.MEASURE, chunk)))
                if len(flying) > 3 * self.workers:
                    yield self._measured(flying.popleft())
            while flying:
                yield self._measured(flying.popleft())
        finally:
            self.forget(flying)

    def calls(
        self, function: Callable[[SampleLoader, _Argument], _Answer], arguments: Iterable[_Argument]
    ) -> Iterator[_Answer]:
        """``function(loader, argument)`` for each argument, in order; two a worker are under way at any time.

        Args:
            function: Of a module, so that workers can import it.
            arguments: Can be pickled; their text says what a worker does, should it die.
        """
        flying: deque[int] = deque()
        try:
            for argument in arguments:
                flying.append(self._post(Task(Kind.CALL, (function, argument))))
                if len(flying) >= 2 * self.workers:
                    yield self._answer(flying.popleft())
            while flying:
                yield self._answer(flying.popleft())
        finally:
            self.forget(flying)

    def close(self) -> None:
        """End the processes; may be called twice, and happens by itself with the pool's end."""
        self._end()

    def __enter__(self) -> LoaderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, ticket: int) -> Any:
        return pickle.loads(self._board.get(ticket, self._look))

    def _measured(self, ticket: int) -> Measured:
        task = self._board.claim(ticket)
        if task is not None:
            return measure(self._here(task))
        found: Measured = pickle.loads(self._board.get(ticket, self._look))
        return found

    def _post(self, task: Task) -> int:
        if os.getpid() != self._process:
            raise PrefStreamError(
                "a stream with workers was used in a process that was forked from the one that made it. Make the "
                "stream in the process that uses it, or use workers=0."
            )
        self.start()
        self._look()
        return self._board.post(task)

    def _look(self) -> None:
        """See a worker die even if it was idle, or if a process it had started holds its pipe open."""
        for driver in self._drivers:
            if driver.process.poll() is not None and not self._board.closed:
                driver.report_death()

    def _here(self, task: Task) -> list[Loaded]:
        if self._local is None:
            self._local = self._recipe.loader()
        try:
            return self._local.samples(task.rows) if task.kind is Kind.SAMPLES else self._local.load(task.rows)
        except SystemExit as error:  # as in a worker, where it would not end the program either
            raise PrefStreamError(
                f"loading rows failed with SystemExit: {error}. With workers a format function cannot end the program: "
                "raise another exception, or use workers=0."
            ) from error


def _end(process: int, board: TaskQueue, drivers: list[Driver]) -> None:
    """End the workers and wait until they are gone; in a fork of the process that started them, do nothing."""
    if os.getpid() != process:
        return
    board.close()
    for driver in drivers:
        driver.process.terminate()
    for driver in drivers:
        try:
            driver.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # a library in the worker handles the signal
            driver.process.kill()
            driver.process.wait()
    for driver in drivers:
        if driver is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # not started
                driver.join(_END_SECONDS)
