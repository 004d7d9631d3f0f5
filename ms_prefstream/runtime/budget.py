"""What a token budget needs, and the sentences for those who have it not."""

from __future__ import annotations

from ms_prefstream.batch.bucket import Bucket
from ms_prefstream.errors import OptionError


def check_budget(bucket: Bucket, name: str, shuffle: object, *, mixed: bool, one_pass: bool, indexed: bool) -> None:
    """Whether steps can be planned by tokens.

    Args:
        bucket: Has `max_tokens`.
        name: Of the source.
        shuffle: The option of `ms_prefstream.stream`.
        mixed: Whether the source is a mix with random access.
        one_pass: Whether it can only be read from the front.
        indexed: Whether there is a length index.

    Raises:
        OptionError: If not; says what to do.
    """
    given = f"Bucket: max_tokens={bucket.max_tokens}"
    if mixed:
        raise OptionError(
            f"{given} plans the same rows for every epoch, and a mix takes other ones in each. Give batch_size."
        )
    if one_pass:
        raise OptionError(
            f"{given} needs a length index, but {name} can only be read from the front and has none. Give "
            "batch_size, or unpack it to plain JSON Lines."
        )
    if not indexed:
        raise OptionError(
            f"{given} needs the lengths of all rows, and {name} has no length index. Build one with "
            "`ms-prefstream index`, or with mps.stream(..., batching=mps.Bucket(batch_size=1)).build_index(); or give "
            "batch_size."
        )
    if shuffle is not True:
        raise OptionError(
            f"{given} brings rows of like length together from the whole source, which shuffle={shuffle!r} rules out. "
            "Leave shuffle out, or give batch_size."
        )
