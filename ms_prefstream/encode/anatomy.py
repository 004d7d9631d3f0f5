"""A rendered conversation, taken apart: which characters are whose, and what they are there."""

from __future__ import annotations

from typing import NamedTuple

from ms_prefstream.encode.layout import Kind
from ms_prefstream.encode.track import Edits, Run


class Part(NamedTuple):
    """Characters [begin, end) of the text: their message, what they are there, and the content they are, if any."""

    owner: int
    kind: Kind
    begin: int
    end: int
    run: Run | None = None


class Anatomy(NamedTuple):
    """A rendered conversation, taken apart.

    Attributes:
        text: All of it.
        parts: Its parts, in order and without gaps.
        runs: The runs of contents.
        looked: Whether the template looked into a content, so that the text may depend on it.
        needed: (message, edits) of contents that the template asked to be anything but empty.
        differs: Whether what a model is asked with is not the beginning of the text up to the response.
    """

    text: str
    parts: tuple[Part, ...]
    runs: tuple[Run, ...]
    looked: bool
    needed: frozenset[tuple[int, Edits]]
    differs: bool
