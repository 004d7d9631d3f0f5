"""The errors, as sentences: where it happened, what was found, what was expected, what to do.

Every error that a user can cause is a `PrefStreamError`. A row that cannot become a sample raises `RowError`, whose
`Reason` decides whether `on_bad_row` applies (malformed) or the row is always dropped and counted (unusable).
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from typing import Any, TypeVar

Row = TypeVar("Row", bound="RowError")


class Reason(str, enum.Enum):
    """Reason why a row does not become a sample. Reports and quarantine files show the value."""

    # Malformed rows: `on_bad_row` decides.
    BAD_JSON = "bad_json"
    MISSING_FIELD = "missing_field"
    BAD_TYPE = "bad_type"
    UNKNOWN_ROLE = "unknown_role"
    SPECIAL_TOKEN = "special_token"
    HISTORY_DIFFERS = "history_differs"
    AMBIGUOUS_FORMAT = "ambiguous_format"
    ROW_TOO_LARGE = "row_too_large"
    TEMPLATE_REFUSED = "template_refused"
    # Unusable rows: always dropped and counted.
    IDENTICAL = "identical"
    TIE = "tie"
    EMPTY_RESPONSE = "empty_response"
    NO_RESPONSE_TOKENS = "no_response_tokens"
    IDENTICAL_AFTER_TRUNCATION = "identical_after_truncation"
    TOO_LONG = "too_long"

    @property
    def malformed(self) -> bool:
        """Whether `on_bad_row` applies; an unusable row is dropped whatever that option says."""
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
    }
)


class PrefStreamError(Exception):
    """The parent of every error that a user of this library can cause."""


class OptionError(PrefStreamError, ValueError):
    """An option has a value that is not allowed, or two options contradict each other."""


class SourceError(PrefStreamError):
    """A source cannot be opened or read, or cannot do what was asked of it."""


class TokenizerError(PrefStreamError):
    """A tokenizer cannot be loaded, or lacks something (a pad id, a reward token) that the task needs."""


class TemplateError(PrefStreamError):
    """A chat template cannot be compiled, or does not fit the rows it is used on."""


class StateError(PrefStreamError):
    """A saved state, an index or a cache belongs to other data or other settings than those in use."""


class CacheError(PrefStreamError):
    """A cache cannot be written, or is damaged or incomplete; names the file."""


class NoUsableRowsError(PrefStreamError):
    """Nothing is left to train on: every row (of the source, or of one window) was dropped."""


class RowError(PrefStreamError):
    """One raw row cannot become a sample.

    Raise it without an origin where only the row is known; whoever knows the origin calls `at`.

    Args:
        reason: The code that reports count by.
        problem: What was found and what was expected, e.g. ``"field 'chosen' is missing; found fields: prompt"``.
        remedy: What the person can do, as a sentence without its full stop; may be empty.
        origin: Where the row comes from, e.g. ``"data/train.jsonl:17"``.

    Attributes:
        trace: The traceback of an exception in the user's own function, as text: it survives a worker process.
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

    def at(self: Row, origin: str) -> Row:
        """Returns the error with its origin filled in; an origin that is already known is kept."""
        if self.origin:
            return self
        other = type(self)(self.reason, self.problem, self.remedy, origin)
        other.trace, other.__cause__ = self.trace, self.__cause__
        return other

    def cause(self) -> BaseException | None:
        """Returns what to raise it from, so that the line of the user's own function is shown."""
        return self.__cause__ or (CarriedTraceback(self.trace) if self.trace else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.problem, self.remedy, self.origin), {"trace": self.trace}


class CarriedTraceback(Exception):
    """An exception of a user's function in a worker process: its traceback as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class DroppedRowError(RowError):
    """A row that a cache left out when it was written: its drop was decided then and is not raised again."""


_INSTALL = {
    "mindspore": "pip install mindspore==2.9.0",
    "mindformers": "pip install mindformers==1.9.0, which goes with mindspore 2.9.0; MindSpore 2.10 has none",
}


@contextlib.contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Raises a `PrefStreamError` if the package, imported inside the `with` block by `what`, is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise PrefStreamError(
            f"{what} needs the package {package}, which is not installed here. Install it: {_INSTALL[package]}."
        ) from error
