"""Where tokens begin, for backends whose tokens spell the text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.nfc import nfc, origins
from ms_prefstream.encode.backends.spelling import Spelling
from ms_prefstream.encode.text import Place

PlainStarts = Callable[[str, Place], NDArray[np.int64]]


def starts_by_parts(text: str, place: Place, added: AddedTokens, plain: PlainStarts) -> NDArray[np.int64]:
    """Starts in a text with recognised added tokens, each of which is one token.

    Args:
        text: The text.
        place: Where it stands; what follows an added token stands behind a special one.
        added: Finds the added tokens.
        plain: Starts, (n + 1,), in a text without added tokens.

    Returns:
        (n + 1,) offsets as `TextEncoder.starts` gives them.
    """
    if not added.may_occur(text):
        return plain(text, place)
    found: list[NDArray[np.int64]] = []
    for at, part in enumerate(added.split(text)):
        if part.id is not None:
            found.append(np.array([part.begin], dtype=np.int64))
            continue
        inside = plain(part.text, place if at == 0 else Place.AFTER_SPECIAL)[:-1]
        found.append(np.where((inside < 0) | (part.begin < 0), -1, inside + part.begin))
    return np.concatenate([*found, np.array([len(text)], dtype=np.int64)])


def spelled_starts(
    text: str, place: Place, ids: NDArray[np.int32], spelling: Spelling, normalizes: bool
) -> NDArray[np.int64] | None:
    """Starts in a text without added tokens, from what its ids spell; None where they do not spell it."""
    normal = nfc(text) if normalizes else text
    starts = spelling.starts(ids, normal, place)
    if starts is None or normal is text:
        return starts
    return np.where(starts < 0, -1, origins(text, normal)[starts])
