"""Dropped rows, written aside with their origin so that a person can look at them. One file a rank."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import IO, Any

from ms_prefstream.errors import OptionError, RowError, SourceError
from ms_prefstream.sources.jsonl import dump_row


class Quarantine:
    """A JSON Lines file of dropped rows: ``{"origin", "reason", "problem", "row"}``, made with the first of them.

    Args:
        path: The file; with several ranks the rank is put before the suffix (``bad.rank1.jsonl``).
        rank: This rank.
        world: The number of ranks.

    Attributes:
        path: The file of this rank.

    Raises:
        OptionError: It is no path.
        SourceError: It lies in no folder, or is one: better now than hours later.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int = 0, world: int = 1) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise OptionError(f"quarantine is {path!r}; expected the path of a file to write.")
        self.rank, self.world = rank, world
        file = self._given = pathlib.Path(path)
        self.path = file if world == 1 else file.with_name(f"{file.stem}.rank{rank}{file.suffix}")
        self._mode = "wb"
        self._file: IO[bytes] | None = None
        self._known: set[str] = set()
        if not file.parent.is_dir():
            raise self._not_written(f"there is no folder {file.parent}")
        if file.is_dir():
            raise self._not_written("it is a folder")

    def keep(self) -> None:
        """Add to what an earlier part of the run wrote, on any number of ranks, without writing a row twice."""
        self._mode = "ab"
        name = re.compile(rf"{re.escape(self._given.stem)}(\.rank\d+)?{re.escape(self._given.suffix)}")
        try:
            for path in self._given.parent.iterdir():
                if name.fullmatch(path.name):
                    self._known.update(_origins(path.read_bytes()))
            if self._file is None and self.path.exists():
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # a killed run may leave half a line
        except OSError as error:
            raise self._not_written(str(error.strerror)) from None

    def add(self, error: RowError, row: Any) -> None:
        """Write one dropped row, unless an earlier part of the run did.

        Raises:
            SourceError: If the file cannot be written.
        """
        if error.origin in self._known:
            return
        why = dump_row({"origin": error.origin, "reason": str(error.reason), "problem": error.problem})
        line = why[:-1] + b',"row":' + dump_row(row) + b"}\n"  # the row by itself: it may hold what JSON cannot
        try:
            if self._file is None:
                self._file = open(self.path, self._mode)  # noqa: SIM115 - lives as long as the stream
            self._file.write(line)
            self._file.flush()
        except OSError as error_:
            raise self._not_written(str(error_.strerror)) from None

    def _not_written(self, why: str) -> SourceError:
        return SourceError(
            f"quarantine file {self.path} cannot be written: {why}. Name a file in a folder that exists and can be "
            "written to."
        )


def _origins(content: bytes) -> list[str]:
    """The origins in a quarantine file; a line without its end, which nobody finishes any more, is left out."""
    origins = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            origins.append(str(json.loads(line)["origin"]))
        except (ValueError, LookupError, TypeError):
            continue
    return origins
