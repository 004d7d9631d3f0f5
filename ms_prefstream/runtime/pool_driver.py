"""One worker process seen from its parent: a thread that hands it tasks, answers its questions and sees it die."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.runtime.pool_board import Board, Task
from ms_prefstream.runtime.pool_recipe import PackedRecipe
from ms_prefstream.runtime.pool_wire import Channel, Kind

_IN_FLIGHT = 2  # one in work, one waiting in the pipe, so that a worker never waits for this process
_DIED_SECONDS = 5.0
# sys.path comes as arguments, so that what was importable here is importable there.
_CODE = (
    "import sys; parent, shared, sys.path[:] = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]; "
    "from ms_prefstream.runtime.pool_worker import main; main(parent, shared)"
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

    def __init__(self, number: int, of: int, recipe: PackedRecipe, board: Board) -> None:
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
