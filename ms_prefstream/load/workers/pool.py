"""Pool of worker processes that load samples.

The same rows give the same samples, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from typing import Any, TypeVar

from ms_prefstream.checks import process_count
from ms_prefstream.errors import PrefStreamError, RowError, TemplateError
from ms_prefstream.formats.record import Record
from ms_prefstream.lengths.index import Measure, Measured, measure_rows
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.load.workers.process import WorkerProcess
from ms_prefstream.load.workers.recipe import PackedRecipe, pack_recipe
from ms_prefstream.load.workers.task_queue import Task, TaskQueue
from ms_prefstream.sample import Block, Ready

_Argument = TypeVar("_Argument")
_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")

CHUNK = 1024  # rows of one task, at most: what a task costs is shared by many rows
LEAST = 64  # rows of one task, at least, where rows are shared out evenly: enough to be worth a message
_LOOK_SECONDS = 0.2  # between looks at whether the workers are alive, and for Ctrl-C
_END_SECONDS = 2.0


class LoaderPool(contextlib.AbstractContextManager["LoaderPool"]):
    """A `SampleLoader` that works in other processes.

    The processes start with the first task. They do not run the program that uses them again, so a script needs no
    main guard. Callables are pickled; a format function with a state has a separate state in each process. Rows of
    sources in memory are read in this process and sent. Until the first worker is ready, this process loads rows too.
    A worker that dies ends the pool: every later call raises an error that says why.

    Args:
        recipe: What samples are made with.
        workers: How many processes, 1 or more.
        local: A loader that follows the same recipe in this process; None makes one.

    Raises:
        OptionError: The number is not allowed, or a part of the recipe cannot be pickled.
    """

    def __init__(self, recipe: Recipe, workers: int, local: SampleLoader | None = None) -> None:
        self.workers = process_count(workers, 1)
        self._tasks = TaskQueue()
        self._processes: list[WorkerProcess] = []
        self._starting = threading.Lock()
        self._owner = os.getpid()
        self._packed = pack_recipe(recipe, workers)
        self._local = recipe.loader() if local is None else local
        self._end = weakref.finalize(self, _end, self._owner, self._tasks, self._packed, self._processes)

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order, loaded by all workers."""
        return self.collect(self.spread(rows))

    def spread(self, rows: Sequence[int], least: int = LEAST) -> list[Task]:
        """Lets all workers load these rows, in tasks of at least so many. Returns the tasks for `collect`."""
        return self._post([Task(load_block, chunk, chunk) for chunk in self._chunks(rows, least)])

    def spread_records(self, records: Sequence[Record | Ready | RowError]) -> list[Task]:
        """Submits tasks that make samples of these records. Returns the tasks, for `collect`."""
        return self._post([Task(samples_block, chunk) for chunk in self._chunks(records)])

    def collect(self, tasks: Sequence[Task]) -> Block:
        """Waits for these tasks and returns their samples, in this order.

        Raises:
            PrefStreamError: A worker died, or loading failed with this error.
        """
        blocks: list[Block] = []
        try:
            for task in tasks:
                blocks.append(self._result(task))
        except BaseException as error:
            self.cancel(tasks)
            if isinstance(error, TemplateError) and error.row is not None:  # counted from the task's first row
                error.row += sum(map(len, blocks))
            raise
        return Block.join(blocks)

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Cancels the tasks that have not started."""
        self._tasks.cancel(tasks)

    def measured(self, chunks: Iterable[range], how: Measure = measure_rows) -> Iterator[Measured]:
        """Measures each chunk of rows, in order; a few chunks per worker are under way at any time."""
        return self._in_order((Task(how, chunk, chunk) for chunk in chunks), 3 * self.workers + 1)

    def calls(
        self,
        function: Callable[[SampleLoader, _Argument], _Answer],
        arguments: Iterable[_Argument],
        rows_of: Callable[[_Argument], Sequence[int]],
    ) -> Iterator[_Answer]:
        """Yields ``function(loader, argument)`` for each argument, in order; two per worker are under way at any time.

        A call may take minutes, and loads the rows `rows_of(argument)`. The text of an argument says what a worker did
        if it dies.
        """
        tasks = (Task(function, argument, rows_of(argument), long=True) for argument in arguments)
        return self._in_order(tasks, 2 * self.workers)

    def close(self) -> None:
        """Ends the processes. Happens with the end of the pool, too; a second call does nothing."""
        self._end()

    def __exit__(self, *details: object) -> None:
        self.close()

    def _in_order(self, tasks: Iterable[Task], most: int) -> Iterator[Any]:
        """Yields the results of tasks in order, with at most this many under way."""
        started: deque[Task] = deque()
        try:
            for task in tasks:
                started += self._post([task])
                if len(started) >= most:
                    yield self._result(started.popleft())
            while started:
                yield self._result(started.popleft())
        finally:
            self.cancel(started)

    def _chunks(self, items: Sequence[_Item], least: int = LEAST) -> Iterator[list[_Item]]:
        """Yields the items of each task: every worker gets an equal share, in one task or several."""
        size = min(CHUNK, max(least, -(-len(items) // self.workers)))
        return (list(items[begin : begin + size]) for begin in range(0, len(items), size))

    def _post(self, tasks: list[Task]) -> list[Task]:
        if os.getpid() != self._owner:
            raise PrefStreamError(
                "a stream with workers was used in a process that was forked from the one that made it. Make the "
                "stream in the process that uses it, or use workers=0."
            )
        self._start()
        self._look()
        self._tasks.post(tasks)
        return tasks

    def _result(self, task: Task) -> Any:
        """Waits for the result of a task; runs the task here while no worker is ready."""
        if self._tasks.claim(task):
            return self._run_here(task)
        while not task.done():
            wait([task], _LOOK_SECONDS)
            self._look()
            self._tasks.check()
        result, error = pickle.loads(task.result())
        if error is not None:
            raise error
        return result

    def _run_here(self, task: Task) -> Any:
        try:
            return task.function(self._local, task.argument)
        except SystemExit as error:  # as in a worker, where it would not end the program either
            raise PrefStreamError(
                f"loading rows failed with SystemExit: {error}. With workers a format function cannot end the program: "
                "raise another exception, or use workers=0."
            ) from error

    def _start(self) -> None:
        """Starts the processes, unless they run.

        Raises:
            PrefStreamError: The pool has failed or is closed.
        """
        with self._starting:
            if self._processes:
                return
            self._tasks.check()
            try:
                for number in range(1, self.workers + 1):
                    self._processes.append(WorkerProcess(number, self.workers, self._packed, self._tasks))
            except OSError as error:
                self._tasks.fail(f"workers={self.workers} cannot be started: {error}. Use fewer, or workers=0.")
            finally:
                self._packed.file.close()

    def _look(self) -> None:
        """Notices a dead worker, even an idle one, or one whose child process holds its pipe open."""
        for worker in self._processes:
            if worker.process.poll() is not None and not self._tasks.closed:
                worker.report_death()


def _end(owner: int, tasks: TaskQueue, recipe: PackedRecipe, workers: list[WorkerProcess]) -> None:
    """Ends the workers and waits for them; does nothing in a fork of the process that started them."""
    if os.getpid() != owner:
        return
    tasks.close()
    recipe.file.close()
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # a library in the worker handles the signal
            worker.process.kill()
            worker.process.wait()
        with contextlib.suppress(RuntimeError):  # it has not started, or runs this function
            worker.join(_END_SECONDS)


def load_block(loader: SampleLoader, rows: Sequence[int]) -> Block:
    """Loads rows; runs in a worker."""
    return loader.load(rows)


def samples_block(loader: SampleLoader, records: Sequence[Record | Ready | RowError]) -> Block:
    """Makes samples of records; runs in a worker."""
    return loader.samples(records)
