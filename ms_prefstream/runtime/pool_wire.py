"""Messages between a pool and its workers: a kind, a size, and bytes, over a pair of pipes."""

from __future__ import annotations

import contextlib
import enum
import struct
from io import FileIO

_HEAD = struct.Struct("<BQ")
_PIPE_BYTES = 1 << 20


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
