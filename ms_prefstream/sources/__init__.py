"""Where raw rows come from. Every source keeps one of the two protocols in `base.py`.

To add a kind of file: one file with a class that is `RandomAccess` or `OnePass`, its suffix in `paths.py`, and its
line in `resolve._opener`.
"""

from ms_prefstream.sources.base import OnePass, RandomAccess, RawRow, Source
from ms_prefstream.sources.jsonl import write_jsonl
from ms_prefstream.sources.open import open_source

__all__ = ["OnePass", "RandomAccess", "RawRow", "Source", "open_source", "write_jsonl"]
