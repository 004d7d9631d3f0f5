"""A worker process and the thread of the parent that keeps it busy: both ends of their protocol.

    parent -> worker    an empty message, then one per task: (function, argument, raw rows read in the parent)
    worker -> parent    one answer per message, in order: (result, None) or (None, error)

A message is its length, then a pickle; the first answer says that the worker has read the recipe. The worker is
started with `python -c` and not by `multiprocessing`, so it never imports the program that started it: scripts need no
main guard, and notebooks and programs from standard input work.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from io import FileIO
from typing import Any

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.workers.parent_rows import SentRows
from ms_prefstream.load.workers.recipe import PackedRecipe, unpack_recipe
from ms_prefstream.load.workers.task_queue import Task, TaskQueue

_IN_FLIGHT = 2  # one in work, one waiting in the pipe, so that a worker never waits for the parent
_DIED_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
# sys.path comes as arguments, so that the worker can import whatever can be imported here.
_CODE = (
    "import sys; parent, recipe, sys.path[:] = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]; "
    "from ms_prefstream.load.workers.process import main; main(parent, recipe)"
)
_PIPE_BYTES = 1 << 20  # so that writing an answer does not wait for the parent
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", **dict.fromkeys(_ONE_THREAD, "1")}
_SIGNALS = {number.value: number.name for number in signal.Signals}


class WorkerProcess(threading.Thread):
    """Worker process `number` of `of`, and the thread that starts it and sends it tasks until the queue is closed.

    The process ends with this thread at the latest, because the kernel ends it with the thread that started it.

    Attributes:
        process: The process, started.
        ready: Whether it has read the recipe.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, number: int, of: int, recipe: PackedRecipe, tasks: TaskQueue) -> None:
        super().__init__(name=f"ms_prefstream-worker-{number}", daemon=True)
        self._parent_rows = recipe.parent_rows
        self._tasks = tasks
        self._in_flight: deque[Task] = deque()
        self._begun: Future[None] = Future()
        self._file = recipe.file.fileno()
        self._title = f"worker process {number} of {of}"
        self.ready = False
        self.start()
        self._begun.result()

    def _begin(self) -> None:
        """Starts the process."""
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # multiprocessing asks it, too
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", _CODE, str(os.getpid()), str(self._file), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**ENVIRONMENT, **os.environ},
            pass_fds=[self._file],
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        self._title = f"{self._title} (pid {self.process.pid})"
        pipes: list[Any] = [self.process.stdin, self.process.stdout]
        self._outgoing, self._incoming = pipes  # unbuffered: a fork of this process inherits no lock of theirs
        for pipe in pipes:
            with contextlib.suppress(AttributeError, OSError):  # Linux has it, up to a limit
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def run(self) -> None:
        """Runs in the thread."""
        try:
            self._begin()
        except BaseException as failed:
            self._begun.set_exception(failed)
            return
        self._begun.set_result(None)
        try:
            _send(self._outgoing, b"")
            _, error = pickle.loads(_receive(self._incoming))
            if error is not None:
                self._tasks.fail(f"{self._title} could not start: {error}")
                return
            self.ready = self._tasks.ready = True
            while self._send_tasks():
                answer = _receive(self._incoming)
                self._in_flight.popleft().set_result(answer)
        except (EOFError, OSError, ValueError):  # ValueError: the interpreter has closed the pipes
            if not self._tasks.closed:
                self.report_death()
        finally:
            self._incoming.close()
            self._outgoing.close()

    def report_death(self) -> None:
        """Fails the pool with how the process ended and what it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_DIED_SECONDS)
        code = self.process.returncode
        how = f"ended with exit code {code}"
        remedy = "A format function or a library in it ended the process; run with workers=0 to see where"
        if code is not None and code < 0:
            how = f"was killed by {_SIGNALS.get(-code, f'signal {-code}')}"
        if code == -signal.SIGKILL:
            remedy = "The system may have run out of memory: use fewer workers, or look into the system log"
        doing = f"while it {self._in_flight[0]}" if self._in_flight else "while it was idle"
        if not self.ready:
            doing = "before it could work"
        self._tasks.fail(f"{self._title} {how} {doing}. {remedy}.")

    def _send_tasks(self) -> bool:
        """Sends tasks until the worker has enough. Returns False once the queue is closed and all are answered."""
        while len(self._in_flight) < _IN_FLIGHT:
            task = self._tasks.take(busy=bool(self._in_flight))
            if task is None:
                break
            try:
                message = (task.function, task.argument, self._parent_rows.read(task.rows))
                data = pickle.dumps(message, protocol=5)
            except BaseException as error:  # of a source of the user, too: the caller of the pool gets it
                task.set_exception(error)
                continue
            self._in_flight.append(task)
            _send(self._outgoing, data)
        return bool(self._in_flight)


def _send(pipe: FileIO, message: bytes) -> None:
    """Sends a message; an OSError says that the other end is closed."""
    for part in (len(message).to_bytes(8, "little"), message):
        view = memoryview(part)
        while view:
            view = view[pipe.write(view) :]


def _receive(pipe: FileIO) -> bytearray:
    """Waits for a message; an EOFError says that the other end is closed."""
    return _read(pipe, int.from_bytes(_read(pipe, 8), "little"))


def _read(pipe: FileIO, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = pipe.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer


def main(parent: int, file: int) -> None:
    """Runs in the worker: answers messages until the parent process ends or closes the pipe.

    `file` is the descriptor of the recipe's file.
    """
    _end_with_parent()
    incoming, outgoing = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what format functions print goes to stderr, not between the messages
    messages: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    threading.Thread(target=_listen, args=(incoming, messages), daemon=True).start()
    loader: SampleLoader | None = None
    sources: dict[int, SentRows] = {}
    while True:
        message = messages.get()
        try:
            result = None
            if loader is None:
                recipe, sources = unpack_recipe(file)
                loader = recipe.loader()
            else:
                function, argument, sent = pickle.loads(message)
                for number, rows in sent.items():
                    sources[number].receive(rows)
                result = function(loader, argument)
            answer = pickle.dumps((result, None), protocol=5)
        except BaseException as error:  # SystemExit too: a format function must not end the worker silently
            answer = pickle.dumps((None, portable(error)), protocol=5)
        try:
            _send(outgoing, answer)
        except OSError:
            os._exit(0)
        if messages.empty():
            sys.stdout.flush()  # what format functions print


def _listen(incoming: FileIO, messages: queue.SimpleQueue[bytearray]) -> None:
    """Receives without pause, so that the parent never blocks while it sends. Ends the process with the parent."""
    try:
        while True:
            messages.put(_receive(incoming))
    except (EOFError, OSError):
        os._exit(0)


def _end_with_parent() -> None:
    """Lets the kernel end this process with its parent, even while a library here holds the interpreter's lock."""
    with contextlib.suppress(AttributeError, OSError):  # Linux has it
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def _watch(parent: int) -> None:
    """Ends the process with the parent, even when another process holds the parent's end of the pipe open."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def portable(error: BaseException, remedy: str = "Use workers=0") -> PrefStreamError:
    """Returns an error that can be pickled: the library's own as it is, others as text with their traceback."""
    if isinstance(error, PrefStreamError):
        with contextlib.suppress(Exception):  # a class of the user that cannot be pickled
            pickle.loads(pickle.dumps(error))
            return error
    text = "".join(traceback.format_exception(error)).rstrip()
    return PrefStreamError(
        f"a worker process failed with {type(error).__name__}: {error}. {remedy} to see it where it happens. "
        f"Traceback of the worker:\n{text}"
    )
