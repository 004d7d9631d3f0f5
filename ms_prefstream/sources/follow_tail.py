"""The bytes of a file that is still growing, in blocks, up to the end that somebody declares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.blocks import without_bom
from ms_prefstream.sources.files import Handle, unreadable
from ms_prefstream.sources.follow_end import Ending
from ms_prefstream.sources.line_index import refuse_foreign

_BLOCK = 1 << 18  # stays in the processor's cache while its newlines are looked for
_OVERLAP = 32  # bytes read again with each new block, which must still be what they were


class GrowingFile:
    """A file that is only ever appended to; it is read without a lock.

    Args:
        path: The file.

    Attributes:
        read: Bytes read so far.

    Raises:
        SourceError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.read = 0
        self._path = path
        self._handle = Handle(path)  # stays open when the file is renamed, closes itself
        self._last = b""

    def block(self) -> bytes:
        """The next bytes; empty if there are none yet.

        Raises:
            SourceError: The file was cut off or written anew.
        """
        try:
            size = os.fstat(self._handle.fd).st_size
            more = size > self.read
            seen = os.pread(self._handle.fd, len(self._last), self.read - len(self._last)) if more else self._last
            block = os.pread(self._handle.fd, _BLOCK, self.read) if more else b""
        except OSError as error:
            raise unreadable(self._path, error) from error
        if size < self.read or seen != self._last:
            found = f"has {size} bytes now" if size < self.read else "has other contents there now"
            raise SourceError(
                f"{self._path}: {self.read} bytes of the file were read, but it {found}: it was cut off or written "
                "anew. A file that is followed may only be appended to. Rotate it by renaming it and creating a new "
                "one (logrotate: create, not copytruncate)."
            )
        if self.read == 0 and block:
            refuse_foreign(self._path, block[:4])
        self._last = (self._last + block[-_OVERLAP:])[-_OVERLAP:]
        self.read += len(block)
        return block


def grow(file: GrowingFile, ending: Ending, complete: Callable[[], bool]) -> Iterator[bytes]:
    """The contents of a growing file, as they are written, up to its end.

    Args:
        file: The file, unread.
        ending: Ends the waiting.
        complete: Whether nothing more is going to be written to this file; asked when there is no more data.
    """
    return without_bom(_blocks(file, ending, complete))


def _blocks(file: GrowingFile, ending: Ending, complete: Callable[[], bool]) -> Iterator[bytes]:
    over = False
    while True:
        nothing = True
        while block := file.block():
            nothing = False
            ending.data()
            yield block
        if not nothing:
            over = False
        elif over:  # declared before this last reading: what was written by then was read to the last byte
            return
        else:
            over = ending.over() or complete()
            if not over:
                ending.wait()
