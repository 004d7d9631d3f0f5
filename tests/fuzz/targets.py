"""The table of targets: a new one is a line here."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tests.fuzz import disk_files
from tests.fuzz.command_lines import CommandLines, Yaml
from tests.fuzz.files import FilesTarget
from tests.fuzz.harness import Target
from tests.fuzz.rows import RowsTarget
from tests.fuzz.templates import TemplatesTarget
from tests.fuzz.tokenizers import SentencePiece, TokenizerFolder, TokenizerJson

TARGETS: dict[str, Callable[[pathlib.Path], Target]] = {
    "rows": RowsTarget,
    "files": FilesTarget,
    "templates": TemplatesTarget,
    "tokenizer.json": TokenizerJson,
    "tokenizer_folders": TokenizerFolder,
    "sentencepiece": SentencePiece,
    "yaml": Yaml,
    "command_lines": CommandLines,
    "states": disk_files.of("state", "state of a run"),
    "manifests": disk_files.of(
        "manifest", "finished manifest", "plan", "plan of a part range", "note on a part"
    ),
    "caches": disk_files.of(
        "places", "lengths of a cache", "log-probabilities", "part", "sidecar", "log-probabilities of a part",
        "finished part", "finished part of tokens", "tokens", "quarantine", "verdict",
    ),
    "indexes": disk_files.of("length index", "part range of a length index"),
    "journals": disk_files.of("index journal"),
}  # fmt: skip

CASES: dict[str, int] = dict.fromkeys(TARGETS, 15_000) | {
    "tokenizer.json": 30_000,
    "sentencepiece": 25_000,
    "yaml": 40_000,
    "command_lines": 40_000,
    "indexes": 45_000,
}
"""Cases of the long mode: more of the targets that are quick."""
