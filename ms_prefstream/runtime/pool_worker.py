"""A worker process: receives a recipe, then rows to load, until its parent closes the pipe or is gone.

It is started by `python -c`, not by `multiprocessing`, so it never imports the program that started it: scripts need
no main guard, and notebooks and programs from standard input work.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from io import FileIO
from typing import Any

import numpy as np

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.lengths.measure import measure
from ms_prefstream.runtime.loader import SampleLoader
from ms_prefstream.runtime.pool_pack import pack
from ms_prefstream.runtime.pool_recipe import unpack_recipe
from ms_prefstream.runtime.pool_wire import Channel, Kind

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
