"""A worker process: receives a recipe, then rows to load, until its parent closes the pipe or is gone.

It is started by `python -c`, not by `multiprocessing`, so it never imports the program that started it: scripts need
no main guard, and notebooks and programs from standard input work.
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
from collections.abc import Sequence
from io import FileIO
from typing import Any

import numpy as np

from ms_prefstream.errors import OptionError, PrefStreamError, SourceError
from ms_prefstream.lengths.index import measure
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.workers.blocks import pack
from ms_prefstream.load.workers.board import Kind, Task, TaskQueue
from ms_prefstream.load.workers.recipe import PackedRecipe, unpack_recipe

_HEAD = struct.Struct("<BQ")
_PIPE_BYTES = 1 << 20


class Channel:
    """One end of the pipes. One thread sends, one receives; they may be two.

    Args:
        incoming: What is read from, unbuffered.
        outgoing: What is written to, unbuffered.
    """

    def __init__(self, incoming: FileIO, outgoing: FileIO) -> None:
        self._in, self._out = incoming, outgoing
        for file in (incoming, outgoing):
            with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux only, and up to the system's limit
                import fcntl

                fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def send(self, kind: Kind, *parts: bytes | bytearray | memoryview) -> None:
        """Send a message made of these buffers, one behind the other.

        Raises:
            OSError: The other end is gone.
        """
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        self._write(memoryview(_HEAD.pack(kind, sum(map(len, views)))))
        for view in views:
            self._write(view)

    def receive(self) -> tuple[Kind, bytearray]:
        """The next message.

        Raises:
            EOFError: The other end is gone.
        """
        kind, size = _HEAD.unpack(self._read(_HEAD.size))
        return Kind(kind), self._read(size)

    def close(self) -> None:
        """Close both pipes."""
        self._in.close()
        with contextlib.suppress(OSError):
            self._out.close()

    def _write(self, view: memoryview) -> None:
        while view:
            view = view[self._out.write(view) :]

    def _read(self, size: int) -> bytearray:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            count = self._in.readinto(view)
            if not count:
                raise EOFError
            view = view[count:]
        return buffer


_IN_FLIGHT = 2  # one in work, one waiting in the pipe, so that a worker never waits for this process
_DIED_SECONDS = 5.0
# sys.path comes as arguments, so that what was importable here is importable there.
_CODE = (
    "import sys; parent, shared, sys.path[:] = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]; "
    "from ms_prefstream.load.workers.process import main; main(parent, shared)"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class Driver(threading.Thread):
    """Starts a worker and keeps it busy until the board is closed.

    Args:
        number: Which worker, from 1.
        of: How many there are.
        recipe: What the worker needs.
        board: Where tasks come from and results go.
    """

    def __init__(self, number: int, of: int, recipe: PackedRecipe, board: TaskQueue) -> None:
        super().__init__(name=f"ms_prefstream-worker-{number}", daemon=True)
        self._place = f"worker process {number} of {of}"
        self._recipe: bytes | None = pickle.dumps((recipe.sizes, recipe.text), protocol=5)
        self._asked = recipe.asked
        self._board = board
        self._flying: deque[tuple[int, Task]] = deque()
        self.process = _start(recipe)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._channel = Channel(self.process.stdout, self.process.stdin)  # type: ignore[arg-type]  # unbuffered

    def run(self) -> None:
        """What the thread does."""
        try:
            self._begin()
            while self._hand_out():
                self._receive()
        except (EOFError, OSError, ValueError):  # ValueError: close() has closed the pipes
            if not self._board.closed:
                self.report_death()
        finally:
            with contextlib.suppress(OSError):
                self._channel.close()

    def report_death(self) -> None:
        """Say on the board how the process ended; nothing if it has not."""
        try:
            code = self.process.wait(_DIED_SECONDS)
        except subprocess.TimeoutExpired:
            self._board.fail(f"{self._place} (pid {self.process.pid}) closed its pipes. Start the program again.")
            return
        how = f"ended with exit code {code}"
        remedy = "A format function or a library in it ended the process; run with workers=0 to see where"
        if code < 0:
            how = f"was killed by {_signal_name(-code)}"
            remedy = (
                "The system may have run out of memory: use fewer workers, or look into the system log"
                if -code == signal.SIGKILL
                else "A library in it crashed; run with workers=0 to see where"
            )
        self._board.fail(f"{self._place} (pid {self.process.pid}) {how} {self._doing()}. {remedy}.")

    def _doing(self) -> str:
        if self._recipe is not None:
            return "before it could work"
        if not self._flying:
            return "while it was idle"
        kind, rows = self._flying[0][1]
        if kind is Kind.CALL:
            return f"while it worked on {rows[1]}"
        if kind is Kind.SAMPLES:
            return f"while it encoded {len(rows)} rows"
        return f"while it loaded {len(rows)} rows ({', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''})"

    def _begin(self) -> None:
        assert self._recipe is not None  # a driver begins once
        self._channel.send(Kind.RECIPE, self._recipe)
        kind, payload = self._channel.receive()
        if kind is Kind.FAILED:
            self._board.fail(f"{self._place} could not start: {pickle.loads(payload)}")
            raise EOFError
        self._recipe = None
        self._board.can_work()

    def _hand_out(self) -> bool:
        """Send tasks until the worker has enough; whether it has any."""
        while len(self._flying) < _IN_FLIGHT:
            taken = self._board.take(busy=bool(self._flying))
            if taken is None:
                break
            self._flying.append(taken)
            task = taken[1]
            self._channel.send(task.kind, task.payload())
        return bool(self._flying)

    def _receive(self) -> None:
        """Handle one message of the worker."""
        kind, payload = self._channel.receive()
        if kind is Kind.ASK:
            self._answer(*pickle.loads(payload))
            return
        ticket = self._flying.popleft()[0]
        self._board.put(ticket, payload if kind is Kind.RESULT else pickle.loads(payload))

    def _answer(self, number: int, rows: Sequence[int]) -> None:
        """Read rows of a source in memory for the worker; what goes wrong goes to whoever waits for the task."""
        try:
            source = self._asked[number]
            found = source.read(rows)
            origins = [source.origin(row) for row in rows]
            payload = _sendable((found, origins), source.name)
        except Exception as error:
            self._board.put(self._flying.popleft()[0], error)
            self._channel.send(Kind.GONE)
            return
        self._channel.send(Kind.ROWS, payload)


def _sendable(rows: Any, name: str) -> bytes:
    try:
        return pickle.dumps(rows, protocol=5)
    except Exception as error:
        raise SourceError(
            f"rows of {name} cannot be sent to worker processes: {type(error).__name__}: {error}. Use workers=0, or "
            "rows of plain values."
        ) from error


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
        start_new_session=os.name == "posix",  # Ctrl-C is for this process alone
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_LOOK_SECONDS = 1.0


class _Gone(Exception):
    """Nobody waits for the task any longer."""


class _Worker:
    """The conversation with the parent process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._tasks: queue.SimpleQueue[tuple[Kind, bytearray]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Kind, bytearray]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, shared: int) -> None:
        """Work for ever; `_listen` ends the process."""
        loader: SampleLoader | None = None
        while True:
            kind, payload = self._tasks.get()
            try:
                if kind is Kind.RECIPE:
                    sizes, text = pickle.loads(payload)
                    loader = unpack_recipe(text, sizes, shared, self._ask).loader()
                    self._channel.send(Kind.READY)
                else:
                    assert loader is not None  # the recipe comes first
                    self._channel.send(Kind.RESULT, *_work(loader, kind, payload))
            except _Gone:
                pass
            except OSError as error:
                self._give_up(error)
            except BaseException as error:  # SystemExit too: a format function must not end the worker unseen
                self._channel.send(Kind.FAILED, _as_bytes(error))
            if not self._tasks.qsize():
                sys.stdout.flush()  # what format functions print

    def _listen(self) -> None:
        """Receive without pause, so that the parent never waits while writing; end with the parent."""
        try:
            while True:
                kind, payload = self._channel.receive()
                (self._answers if kind in (Kind.ROWS, Kind.GONE) else self._tasks).put((kind, payload))
        except (EOFError, OSError):
            os._exit(0)

    def _ask(self, number: int, rows: Sequence[int]) -> tuple[list[Any], list[str]]:
        self._channel.send(Kind.ASK, pickle.dumps((number, list(rows)), protocol=5))
        kind, payload = self._answers.get()
        if kind is Kind.GONE:
            raise _Gone
        rows_and_origins: tuple[list[Any], list[str]] = pickle.loads(payload)
        return rows_and_origins

    def _give_up(self, error: OSError) -> None:
        """An OSError is the pipe's if the parent is gone, otherwise the task's own."""
        try:
            self._channel.send(Kind.FAILED, _as_bytes(error))
        except OSError:
            os._exit(0)


def _work(loader: SampleLoader, kind: Kind, payload: bytearray) -> list[Any]:
    """The answer to a task, as buffers."""
    if kind is Kind.SAMPLES:
        return pack(loader.samples(pickle.loads(payload)))
    if kind is Kind.CALL:
        function, argument = pickle.loads(payload)
        return [pickle.dumps(function(loader, argument), protocol=5)]
    loaded = loader.load(np.frombuffer(payload, np.int64).tolist())
    return pack(loaded) if kind is Kind.LOAD else [pickle.dumps(measure(loaded), protocol=5)]


def _as_bytes(error: BaseException) -> bytes:
    """An error for the parent: one of the library's own as it is, others as text with their traceback."""
    if isinstance(error, PrefStreamError):
        try:
            data = pickle.dumps(error)
            pickle.loads(data)
            return data
        except Exception:  # a class of the user that does not survive it
            pass
    text = "".join(traceback.format_exception(error)).rstrip()
    return pickle.dumps(
        PrefStreamError(
            f"a worker process failed with {type(error).__name__}: {error}. Use workers=0 to see it where it happens. "
            f"Traceback of the worker:\n{text}"
        )
    )


def _watch(parent: int) -> None:
    """End with the parent even when another process holds its end of the pipe open."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def main(parent: int, shared: int) -> None:
    """The worker's main function.

    Args:
        parent: Process id of the parent.
        shared: Descriptor of the file that holds large arrays, or -1.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what format functions print goes where errors go, not between the messages
    if os.name == "posix":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _Worker(Channel(FileIO(incoming, "rb"), FileIO(outgoing, "wb"))).run(shared)
