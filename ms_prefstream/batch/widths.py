"""Which width of a closed set a batch gets."""

from __future__ import annotations

from bisect import bisect_left

from ms_prefstream.batch.faults import internal_error


def smallest_width(longest: int, widths: tuple[int, ...], extra: int = 0) -> int:
    """The smallest width that holds a sequence and leaves `extra` columns free behind it.

    Args:
        longest: Tokens of the longest sequence of the batch.
        widths: The allowed widths in columns, ascending, `extra` included.
        extra: Columns of each width that are not meant for tokens.

    Returns:
        The first of `widths` with width - extra >= longest.

    Raises:
        RuntimeError: If no width is large enough, which a task's own limit rules out.
    """
    place = bisect_left(widths, longest + extra)
    if place == len(widths):
        raise internal_error(
            f"a sequence has {longest} tokens, but the largest width holds {widths[-1] - extra if widths else 0}"
        )
    return widths[place]
