"""Unicode: which texts can be encoded, and NFC exactly as the `tokenizers` package does it.

Normalisation costs next to nothing where it changes nothing.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers

from ms_prefstream.errors import Reason, RowError

# The slowest backend needs about 3 us and 350 bytes a character: this keeps one text under 6 s and 800 MB.
MAX_CHARS = 2**21

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_size(texts: Sequence[str], limit: int = MAX_CHARS) -> None:
    """Raises a `RowError` for the first text that is too long to be encoded at a bounded cost."""
    for text in texts:
        if len(text) > limit:
            raise RowError(
                Reason.ROW_TOO_LARGE,
                f"a text has {len(text):,} characters, and at most {limit:,} are encoded",
                "Shorten or split the row, or drop such rows with on_bad_row='drop'",
            )


def check_unicode(texts: Sequence[str]) -> None:
    """Raises a `RowError` for the first text with a lone surrogate (half of a broken UTF-16 pair, as in "\\ud800")."""
    for text in texts:
        found = _SURROGATE.search(text)
        if found:
            raise RowError(
                Reason.BAD_TYPE,
                f"a text holds the lone surrogate U+{ord(found.group()):04X} at character {found.start()}, "
                "which is not a Unicode character",
                "Repair the text where it was written (half of a surrogate pair was cut off)",
            )


# Characters that normalisation never changes and never joins to the one before them (NFC_Quick_Check=Yes,
# combining class 0). All were assigned before Unicode 4.1 or lie in blocks of symbols, so by Unicode's stability
# policy every version of the tables agrees on them: Python's and the package's may differ without harm.
_INERT = (
    "\x00-\u02ff\u0400-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e\u2190-\u2328\u232b-\u2adb"
    "\u3001-\u3029\u303b-\u303f\u3041-\u3096\u309b-\u30fe\u3105-\u312c\u3400-\u4db5\u4e00-\u9fa5\uac00-\ud7a3"
    "\uff01-\uff5e\uff61-\uffbe\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001f9ff"
)
_TOUCHY = re.compile(f"[^{_INERT}]")

# Characters of combining class 0 that can still join the one before them: the second halves of composed vowel signs,
# and the vowels and finals of Hangul syllables.
_JOINING = frozenset(
    "\u09be\u09d7\u0b3e\u0b56\u0b57\u0bbe\u0bd7\u0cc2\u0cd5\u0cd6\u0d3e\u0d57\u0dcf\u0ddf\u102e\u1b35"
    "\U00011127\U0001133e\U00011357\U000113b8\U000113bb\U000113c2\U000113c5\U000113c7\U000113c8\U000113c9"
    "\U000114b0\U000114ba\U000114bd\U000115af\U00011930\U0001611e\U0001611f\U00016120\U00016d67"
) | frozenset(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))

_normalizer = normalizers.NFC()
_AT_ONCE = 256  # texts that are examined together,
_MANY = 2**20  # if they have at most this many characters


def nfc(text: str) -> str:
    """Returns the text in form NFC; the very same object where nothing changes."""
    if text.isascii() or _TOUCHY.search(text) is None:
        return text
    normal: str = _normalizer.normalize_str(text)
    return text if normal == text else normal


def nfc_all(texts: Sequence[str]) -> list[str]:
    """Returns `nfc` of each text; a table shows for many texts at once which of them can change."""
    found = list(texts)
    for begin in range(0, len(found), _AT_ONCE):
        part = found[begin : begin + _AT_ONCE]
        ends = np.cumsum([len(text) + 1 for text in part])
        if ends[-1] > _MANY:
            found[begin : begin + _AT_ONCE] = map(nfc, part)
            continue
        joined = "\n".join(part)
        if joined.isascii():
            continue
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        touchy = np.flatnonzero(_touchy_points()[points])
        for index in np.unique(np.searchsorted(ends, touchy, side="right")).tolist():
            found[begin + index] = nfc(part[index])
    return found


@functools.cache
def _touchy_points() -> NDArray[np.bool_]:
    """Returns for each code point, (0x110000,), whether `_TOUCHY` matches it."""
    table = np.ones(0x110000, np.bool_)
    for first, last in re.findall("(.)-(.)", _INERT, re.DOTALL):
        table[ord(first) : ord(last) + 1] = False
    return table


def _begins_unit(character: str) -> bool:
    """Returns whether normalisation never crosses the border before this character."""
    if _TOUCHY.match(character) is None:
        return True
    return (
        unicodedata.combining(character) == 0
        and character not in _JOINING
        and unicodedata.is_normalized("NFC", character)
    )


def origins(text: str, normal: str) -> NDArray[np.int64]:
    """Returns where the characters of `normal`, which is `nfc(text)`, stand in the text.

    Returns:
        (len(normal) + 1,) offsets into `text`; -1 for characters inside a unit that normalisation changed. The last
        is len(text).
    """
    where = np.full(len(normal) + 1, -1, dtype=np.int64)
    borders = [i for i, character in enumerate(text) if i == 0 or _begins_unit(character)]
    at = 0
    for begin, end in zip(borders, [*borders[1:], len(text)], strict=True):
        unit = text[begin:end]
        changed = nfc(unit)
        where[at : at + len(changed)] = range(begin, end) if changed == unit else [begin] + [-1] * (len(changed) - 1)
        at += len(changed)
    if at != len(normal):  # the tables of Python and of the package disagree on this text: only its ends are known
        where[:] = -1
        where[0] = 0
    where[len(normal)] = len(text)
    return where
