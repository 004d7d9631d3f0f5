"""The length index: token lengths and a verdict for every row, written to a file by one pass."""

from ms_prefstream.lengths.build import IndexInUseError, build_index, raise_malformed_of
from ms_prefstream.lengths.index import LengthIndex, joined
from ms_prefstream.lengths.index_file import beside, index_path, open_index

__all__ = [
    "IndexInUseError",
    "LengthIndex",
    "beside",
    "build_index",
    "index_path",
    "joined",
    "open_index",
    "raise_malformed_of",
]
