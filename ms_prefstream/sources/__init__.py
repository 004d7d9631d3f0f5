"""Raw rows, from files and from objects in memory. Every source keeps one of the two protocols in `base`.

`open_source` accepts whatever a user passes. How to add a kind of file, or a source that is no file, is described in
`paths`, which holds the table of file kinds.
"""

from ms_prefstream.sources.base import OnePass, RandomAccess, RawRow, Source
from ms_prefstream.sources.open import open_source

__all__ = ["OnePass", "RandomAccess", "RawRow", "Source", "open_source"]
