"""What a batch is given that it never should be: a mistake of this library, not of the person who uses it."""

from __future__ import annotations


def internal_error(problem: str) -> RuntimeError:
    """An error that no option and no row can cause, as a sentence.

    Args:
        problem: What was found and what was expected, as a sentence without its full stop.

    Returns:
        The error, for the caller to raise.
    """
    return RuntimeError(
        f"ms_prefstream, internal error while building a batch: {problem}. "
        "Rows and options are checked before this point, so please report it together with the row."
    )
