"""The length index: token lengths and a verdict for every row, written by one pass, mapped from a file."""

from ms_prefstream.lengths.build import build_index, raise_malformed_of
from ms_prefstream.lengths.index import LengthIndex, VerdictCount, joined, summary_text
from ms_prefstream.lengths.index_file import beside, index_path, open_index, valid_index
from ms_prefstream.progress import progress_on

__all__ = [
    "LengthIndex",
    "VerdictCount",
    "beside",
    "build_index",
    "index_path",
    "joined",
    "open_index",
    "progress_on",
    "raise_malformed_of",
    "summary_text",
    "valid_index",
]
