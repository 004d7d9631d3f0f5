"""What no tokenizer may be asked to encode: lone surrogates, and texts without end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ms_prefstream.errors import Reason, RowError

# The slowest backend needs about 3 us and 350 bytes a character: this keeps one text under 6 s and 800 MB.
MAX_CHARS = 2**21

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_size(texts: Sequence[str], limit: int = MAX_CHARS) -> None:
    """Raise a `RowError` for the first text that is too long to be encoded at a bounded cost."""
    for text in texts:
        if len(text) > limit:
            raise RowError(
                Reason.ROW_TOO_LARGE,
                f"a text has {len(text):,} characters, and at most {limit:,} are encoded",
                "Shorten or split the row, or drop such rows with on_bad_row='drop'",
            )


def check_unicode(texts: Sequence[str]) -> None:
    """Raise a `RowError` for the first text with a lone surrogate (half of a broken UTF-16 pair, as in "\\ud800")."""
    for text in texts:
        found = _SURROGATE.search(text)
        if found:
            raise RowError(
                Reason.BAD_TYPE,
                f"a text holds the lone surrogate U+{ord(found.group()):04X} at character {found.start()}, "
                "which is not a Unicode character",
                "Repair the text where it was written (half of a surrogate pair was cut off)",
            )


def check_text(text: str) -> None:
    """Both checks for one text, for callers that want to know before a whole batch is encoded."""
    check_size((text,))
    check_unicode((text,))
