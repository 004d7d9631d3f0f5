"""The public names of `ms_prefstream`; the package loads this module when one of them is first used."""

import ms_prefstream.formats as formats
from ms_prefstream.batch import Bucket, Pack, Pad, causal_mask
from ms_prefstream.cache.write import write_cache
from ms_prefstream.doctor import Diagnosis, doctor
from ms_prefstream.errors import (
    CacheError,
    NoUsableRowsError,
    OptionError,
    PrefStreamError,
    Reason,
    RowError,
    SourceError,
    StateError,
    TemplateError,
    TokenizerError,
)
from ms_prefstream.indexing import build_index
from ms_prefstream.inspection import encode  # the function; the folder of that name is imported by its modules
from ms_prefstream.merging import merge
from ms_prefstream.mindspore.checkpoint import StreamCheckpoint, load_state
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sources.follow import follow
from ms_prefstream.sources.mix import Part, mix
from ms_prefstream.sources.read import read
from ms_prefstream.split import split
from ms_prefstream.stats.result import Stats
from ms_prefstream.stats.run import stats  # the function, as with `encode`
from ms_prefstream.stream import Stream, stream
from ms_prefstream.tasks import DPO, KTO, RLHF, ProcessReward, Prompts, Reward

__all__ = [
    "DPO",
    "KTO",
    "RLHF",
    "Bucket",
    "CacheError",
    "Diagnosis",
    "NoUsableRowsError",
    "OptionError",
    "Pack",
    "Pad",
    "Part",
    "PartReport",
    "PrefStreamError",
    "ProcessReward",
    "Prompts",
    "Reason",
    "Report",
    "Reward",
    "RowError",
    "SourceError",
    "StateError",
    "Stats",
    "Stream",
    "StreamCheckpoint",
    "TemplateError",
    "TokenizerError",
    "build_index",
    "causal_mask",
    "doctor",
    "encode",
    "follow",
    "formats",
    "load_state",
    "merge",
    "mix",
    "read",
    "split",
    "stats",
    "stream",
    "write_cache",
]
