"""Formats: from the raw row of a data set to its canonical record.

Each factory returns a format for the option ``format=`` of a stream: ``mps.formats.cvalues(types=[...])``. Importing a
preset here registers it.
"""

from ms_prefstream.formats.base import Format, ManyRecords, OneRecord
from ms_prefstream.formats.expand import Expanded
from ms_prefstream.formats.presets.alpaca import alpaca
from ms_prefstream.formats.presets.chat import messages
from ms_prefstream.formats.presets.cvalues import DIFFICULTIES, cvalues
from ms_prefstream.formats.presets.helpsteer3 import helpsteer3
from ms_prefstream.formats.presets.hh_rlhf import hh_rlhf
from ms_prefstream.formats.presets.nectar import nectar
from ms_prefstream.formats.presets.orca import orca
from ms_prefstream.formats.presets.plain import strings
from ms_prefstream.formats.presets.ranked import ranked
from ms_prefstream.formats.presets.safe_rlhf import safe_rlhf
from ms_prefstream.formats.presets.sharegpt import sharegpt
from ms_prefstream.formats.presets.shp import shp
from ms_prefstream.formats.presets.stack_exchange import stack_exchange
from ms_prefstream.formats.presets.stepwise import stepwise
from ms_prefstream.formats.presets.swift import swift
from ms_prefstream.formats.presets.tokenized import tokenized
from ms_prefstream.formats.presets.ultrafeedback import orpo_mix, ultrafeedback
from ms_prefstream.formats.record import Completion, Message, Pair, Ranked, Stepwise, TokenCompletion, TokenPair
from ms_prefstream.formats.registry import PRESETS, auto, resolve_format

__all__ = [
    "DIFFICULTIES",
    "PRESETS",
    "Completion",
    "Expanded",
    "Format",
    "ManyRecords",
    "Message",
    "OneRecord",
    "Pair",
    "Ranked",
    "Stepwise",
    "TokenCompletion",
    "TokenPair",
    "alpaca",
    "auto",
    "cvalues",
    "helpsteer3",
    "hh_rlhf",
    "messages",
    "nectar",
    "orca",
    "orpo_mix",
    "ranked",
    "resolve_format",
    "safe_rlhf",
    "sharegpt",
    "shp",
    "stack_exchange",
    "stepwise",
    "strings",
    "swift",
    "tokenized",
    "ultrafeedback",
]
