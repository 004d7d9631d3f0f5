"""A worker process and the thread of the parent that keeps it busy: both ends of their protocol.

    parent -> worker    the recipe, then one message per task: (function, argument, raw rows read in the parent)
    worker -> parent    one answer per message, in order: (result, None) or (None, error)

A message is its length, then a pickle. The worker is started with `python -c` and not by `multiprocessing`, so it never
imports the program that started it: scripts need no main guard, and notebooks and programs from standard input work.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from io import FileIO
from typing import Any

from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.workers.parent_rows import SentRows
from ms_prefstream.load.workers.recipe import PackedRecipe, unpack_recipe
from ms_prefstream.load.workers.task_queue import Task, TaskQueue

_IN_FLIGHT = 2  # one in work, one waiting in the pipe, so that a worker never waits for the parent
_DIED_SECONDS = 5.0
# sys.path comes as arguments, so that the worker can import whatever can be imported here.
_CODE = (
    "import sys; parent, shared, sys.path[:] = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]; "
    "from ms_prefstream.load.workers.process import main; main(parent, shared)"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class WorkerProcess(threading.Thread):
    """A worker process, and the thread that sends it tasks until the queue is closed.

    Args:
        number: Which worker, from 1.
        of: How many there are.
        recipe: What the worker makes samples with.
        tasks: The tasks to work on.

    Attributes:
        process: The process, started.
    """

    def __init__(self, number: int, of: int, recipe: PackedRecipe, tasks: TaskQueue) -> None:
        super().__init__(name=f"ms_prefstream-worker-{number}", daemon=True)
        self._recipe: bytes | None = recipe.data  # None once it has arrived
        self._parent_rows = recipe.parent_rows
        self._tasks = tasks
        self._in_flight: deque[Task] = deque()
        self.process = _start(recipe)
        self._title = f"worker process {number} of {of} (pid {self.process.pid})"
        # Both are unbuffered: a fork of this process inherits no lock of theirs.
        self._outgoing: Any = self.process.stdin
        self._incoming: Any = self.process.stdout
        _enlarge(self._outgoing, self._incoming)

    def run(self) -> None:
        """Runs in the thread."""
        try:
            self._send_recipe()
            while self._send_tasks():
                answer = _receive(self._incoming)
                self._in_flight.popleft().set_result(answer)
        except (EOFError, OSError, ValueError):  # ValueError: the interpreter has closed the pipes
            if not self._tasks.closed:
                self.report_death()
        finally:
            self._incoming.close()
            with contextlib.suppress(OSError):
                self._outgoing.close()

    def report_death(self) -> None:
        """Fails the pool with how the process ended and what it did."""
        try:
            code = self.process.wait(_DIED_SECONDS)
        except subprocess.TimeoutExpired:
            self._tasks.fail(f"{self._title} closed its pipes. Start the program again.")
            return
        how = f"ended with exit code {code}"
        remedy = "A format function or a library in it ended the process; run with workers=0 to see where"
        if code < 0:
            how = f"was killed by {_SIGNALS.get(-code, f'signal {-code}')}"
            remedy = (
                "The system may have run out of memory: use fewer workers, or look into the system log"
                if -code == signal.SIGKILL
                else "A library in it crashed; run with workers=0 to see where"
            )
        doing = f"while it {self._in_flight[0]}" if self._in_flight else "while it was idle"
        if self._recipe is not None:
            doing = "before it could work"
        self._tasks.fail(f"{self._title} {how} {doing}. {remedy}.")

    def _send_recipe(self) -> None:
        assert self._recipe is not None  # it is sent once
        _send(self._outgoing, self._recipe)
        _, error = pickle.loads(_receive(self._incoming))
        if error is not None:
            self._tasks.fail(f"{self._title} could not start: {error}")
            raise EOFError
        self._recipe = None
        self._tasks.ready = True

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


_SIGNALS = {number.value: number.name for number in signal.Signals}


def _start(recipe: PackedRecipe) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise OptionError("workers need the Python interpreter, and sys.executable does not name it. Use workers=0.")
    shared = -1 if recipe.shared is None else recipe.shared.fileno()
    defaults = {"TOKENIZERS_PARALLELISM": "false", **dict.fromkeys(_ONE_THREAD, "1")}
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, str(os.getpid()), str(shared), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**defaults, **os.environ},
        pass_fds=() if shared < 0 else (shared,),
        start_new_session=os.name == "posix",  # Ctrl-C reaches the parent alone
    )


_SIZE = struct.Struct("<Q")
_PIPE_BYTES = 1 << 20


def _enlarge(*pipes: Any) -> None:
    """Makes pipes large, so that writing an answer does not wait for the parent; on Linux, and up to its limit."""
    for pipe in pipes:
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl

            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _send(pipe: FileIO, message: bytes) -> None:
    """Sends a message through an unbuffered pipe; an OSError says that the other end is closed."""
    for part in (_SIZE.pack(len(message)), message):
        view = memoryview(part)
        while view:
            view = view[pipe.write(view) :]


def _receive(pipe: FileIO) -> bytearray:
    """Waits for a message.

    Raises:
        EOFError: The other end is closed.
    """
    return _read(pipe, *_SIZE.unpack(_read(pipe, _SIZE.size)))


def _read(pipe: FileIO, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = pipe.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer


_LOOK_SECONDS = 1.0


def main(parent: int, shared: int) -> None:
    """Runs in the worker: answers messages until the parent closes the pipe or ends.

    Args:
        parent: Process id of the parent.
        shared: Descriptor of the shared memory with large arrays, or -1.
    """
    incoming, outgoing = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what format functions print goes to stderr, not between the messages
    messages: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
    if os.name == "posix":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    threading.Thread(target=_listen, args=(incoming, messages), daemon=True).start()
    loader: SampleLoader | None = None
    sources: dict[int, SentRows] = {}
    while True:
        message = messages.get()
        try:
            result = None
            if loader is None:
                recipe, sources = unpack_recipe(message, shared)
                loader = recipe.loader()
            else:
                function, argument, sent = pickle.loads(message)
                for number, rows in sent.items():
                    sources[number].receive(rows)
                result = function(loader, argument)
            answer = pickle.dumps((result, None), protocol=5)
        except BaseException as error:  # SystemExit too: a format function must not end the worker silently
            answer = pickle.dumps((None, _portable(error)), protocol=5)
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


def _watch(parent: int) -> None:
    """Ends the process with the parent, even when another process holds the parent's end of the pipe open."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def _portable(error: BaseException) -> PrefStreamError:
    """Returns an error that can be pickled: the library's own as it is, others as text with their traceback."""
    if isinstance(error, PrefStreamError):
        with contextlib.suppress(Exception):  # a class of the user that cannot be pickled
            pickle.loads(pickle.dumps(error))
            return error
    text = "".join(traceback.format_exception(error)).rstrip()
    return PrefStreamError(
        f"a worker process failed with {type(error).__name__}: {error}. Use workers=0 to see it where it happens. "
        f"Traceback of the worker:\n{text}"
    )
