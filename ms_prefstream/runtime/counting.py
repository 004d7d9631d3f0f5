"""How many rows an epoch has: what a user may say about it, and what a source says itself."""

from __future__ import annotations

from ms_prefstream.errors import OptionError
from ms_prefstream.runtime.rows import Rows


def check_steps_per_epoch(given: int | None, rows: Rows, packs: bool) -> None:
    """Refuse a number of steps where they follow from the rows, or for packs from their lengths.

    Args:
        given: The option of `ms_prefstream.stream`.
        rows: The data.
        packs: Whether samples are packed.

    Raises:
        OptionError: If it was given and is not wanted.
    """
    if given is None or rows.records is None:
        return
    if not packs:
        raise OptionError(
            f"steps_per_epoch is {given}, but {rows.source.name} knows its rows, so its steps follow from them. "
            "Leave it out."
        )
    if rows.index is not None:
        raise OptionError(
            f"steps_per_epoch is {given}, but there is a length index ({rows.index.path}), and packs follow from the "
            "lengths in it. Leave steps_per_epoch out, or pass index=None."
        )


def one_pass_rows(rows: Rows, given: int | None, batch: int, packs: bool) -> int:
    """Rows of an epoch of a source that is read from the front: by the steps that are given, else counted once.

    Args:
        rows: The data.
        given: steps_per_epoch, or None.
        batch: Rows of a step over all ranks.
        packs: Whether samples are packed, so that rows must be counted whatever is given.

    Raises:
        OptionError: The number is not allowed, or rows that can be read only once would have to be counted.
    """
    if packs:
        if rows.front.once or rows.front.continues:
            raise OptionError(
                f"Pack: {rows.front.name} can be read only once, but packs are dealt out in proportion to the number "
                "of its rows, which must be counted first. Pass a file, a list or a function that returns a new "
                "iterator each time, or use Pad or Bucket."
            )
        return rows.counted
    if given is None:
        return rows.counted
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise OptionError(f"steps_per_epoch is {given!r}; expected a whole number of steps, 1 or more.")
    return given * batch
