"""Errors as sentences: where it happened, what was found, what was expected, what to do.

Every error that a user can cause is a `PrefStreamError`. A row that cannot become a sample raises `RowError`, whose
`Reason` decides whether `on_bad_row` applies (malformed) or the row is always dropped and counted (unusable).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any


class Reason(str, enum.Enum):
    """The reason why a row does not become a sample; its value appears in reports and quarantine files."""

    # Malformed rows: `on_bad_row` applies.
    BAD_JSON = "bad_json"
    MISSING_FIELD = "missing_field"
    BAD_TYPE = "bad_type"
    UNKNOWN_ROLE = "unknown_role"
    SPECIAL_TOKEN = "special_token"
    HISTORY_DIFFERS = "history_differs"
    AMBIGUOUS_FORMAT = "ambiguous_format"
    ROW_TOO_LARGE = "row_too_large"
    TEMPLATE_REFUSED = "template_refused"
    PROMPT_ENDS_WITH_ANSWER = "prompt_ends_with_answer"
    CONTENT_LOST = "content_lost"
    # Left out by a length index that was built with `dedup` or `exclude`.
    DUPLICATE = "duplicate"
    CONTAMINATED = "contaminated"
    # Unusable rows: always dropped and counted.
    IDENTICAL = "identical"
    TIE = "tie"
    EMPTY_RESPONSE = "empty_response"
    NO_RESPONSE_TOKENS = "no_response_tokens"
    IDENTICAL_AFTER_TRUNCATION = "identical_after_truncation"
    TOO_LONG = "too_long"

    @property
    def malformed(self) -> bool:
        """True if `on_bad_row` applies; unusable rows are always dropped."""
        return self not in _UNUSABLE

    def __str__(self) -> str:
        return self.value


_UNUSABLE = frozenset(
    {
        Reason.IDENTICAL,
        Reason.TIE,
        Reason.EMPTY_RESPONSE,
        Reason.NO_RESPONSE_TOKENS,
        Reason.IDENTICAL_AFTER_TRUNCATION,
        Reason.TOO_LONG,
        Reason.DUPLICATE,
        Reason.CONTAMINATED,
    }
)


# Control characters but line feed and tab, marks that change the direction of text, line separators, surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int | None = 300) -> str:
    """Returns text from outside as it may appear on a terminal: unsafe characters as escapes, long text shortened.

        "\x1b]0;owned\x07"  ->  r"\x1b]0;owned\x07"

    Args:
        text: Text from data, file names, templates or other libraries.
        most: Characters that are kept; the middle of longer text is left out. None keeps all.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


_LONGEST = 5000  # characters of an error, which may show an option that a program made


class PrefStreamError(Exception):
    """The parent of every error that a user of this library can cause. Its text is safe to print, see `printable`."""

    def __str__(self) -> str:
        return printable(super().__str__(), most=_LONGEST)


class OptionError(PrefStreamError, ValueError):
    """An option has a value that is not allowed, or two options contradict each other."""


class SourceError(PrefStreamError):
    """A source cannot be opened or read, or does not support the operation."""


class TokenizerError(PrefStreamError):
    """A tokenizer cannot be loaded, or lacks something (a pad id, a reward token) that the task needs."""


class TemplateError(PrefStreamError):
    """A chat template cannot be compiled, or does not fit the rows it is used on.

    Attributes:
        row: The place of the row that showed it, among those that were encoded together; None where there is none.
    """

    row: int | None = None

    def at(self, origin: Callable[[int], str]) -> TemplateError:
        """Returns the same error with the origin of its row, which `origin` gives for the row's place."""
        return self if self.row is None else TemplateError(f"{origin(self.row)}: {self}")


class StateError(PrefStreamError):
    """A saved state, an index or a cache belongs to other data or other settings than those in use."""


class CacheError(PrefStreamError):
    """A cache cannot be written, or is damaged or incomplete; the error names the file."""


class NoUsableRowsError(PrefStreamError):
    """No row is left to train on: all rows of the source, or of one window, were dropped."""


_CORRECT_OR_DROP = 'Correct the row, or pass on_bad_row="drop" to leave such rows out and count them'


class RowError(PrefStreamError):
    """One raw row cannot become a sample.

    Raise it without an origin where only the row is known; the caller that has the origin adds it with `at`.

    Args:
        reason: The code under which reports count it.
        problem: What was found and what was expected, e.g. ``"field 'chosen' is missing; found fields: prompt"``.
        remedy: What the user can do, as a sentence without its full stop; may be empty.
        origin: Where the row comes from, e.g. ``"data/train.jsonl:17"``.

    Attributes:
        trace: The traceback of an exception in the user's own function, as text, which can be pickled.
    """

    def __init__(self, reason: Reason, problem: str, remedy: str = "", origin: str = "") -> None:
        self.reason = reason
        self.problem = problem
        self.remedy = remedy
        self.origin = origin
        self.trace = ""
        where = f"{origin}: " if origin else ""
        what_to_do = f" {remedy}." if remedy else ""
        super().__init__(f"{where}{problem} [{reason}].{what_to_do}")

    @property
    def malformed(self) -> bool:
        """True if `on_bad_row` decides about the row."""
        return self.reason.malformed and not isinstance(self, DroppedRowError)

    def at(self, origin: str) -> RowError:
        """Returns the same error with its origin filled in; keeps an origin that is already set."""
        if self.origin:
            return self
        found = self._kind(self.reason, self.problem, self.remedy, origin)
        found.trace, found.__cause__ = self.trace, self.__cause__
        return found

    def as_value(self) -> RowError:
        """Returns the error itself, to be kept instead of raised: without its frames, which hold rows and streams."""
        self.__traceback__ = self.__context__ = None
        return self

    def raised(self, origin: str) -> RowError:
        """Returns the error as ``on_bad_row="raise"`` raises it: with its origin, and what to do about the row."""
        found = RowError(self.reason, self.problem, self.remedy or _CORRECT_OR_DROP, self.origin or origin)
        found.__cause__ = self.cause()
        return found

    def cause(self) -> BaseException | None:
        """Returns the exception to raise it from, so that the line of the user's own function is shown."""
        return self.__cause__ or (CarriedTraceback(self.trace) if self.trace else None)

    @property
    def _kind(self) -> type[RowError]:
        """The class to copy and unpickle as; the constructor of a user's subclass may differ."""
        return DroppedRowError if isinstance(self, DroppedRowError) else RowError

    def __reduce__(self) -> tuple[Any, ...]:
        return self._kind, (self.reason, self.problem, self.remedy, self.origin), {"trace": self.trace}


class CarriedTraceback(Exception):
    """An exception of a user's function in a worker process: its traceback as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class DroppedRowError(RowError):
    """A row that is dropped whatever `on_bad_row` says, because an option or the writer of a cache decided so."""
