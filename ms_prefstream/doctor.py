"""A diagnosis of data before a training: what they are, what would go wrong, and the options that mend it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.checks import checked_call, group_of, whole_number
from ms_prefstream.encode.tokenizer import choose_pad_id
from ms_prefstream.errors import PrefStreamError, printable
from ms_prefstream.formats.carry import Carry
from ms_prefstream.formats.record import Pair, TokenPair
from ms_prefstream.lines import counted, share
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.load.records import formats_of
from ms_prefstream.report.findings import Finding, Seen, findings
from ms_prefstream.sample import Loaded, Note
from ms_prefstream.sources.cached import only_caches
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.mix import open_rows
from ms_prefstream.steps.data import BadRowPolicy, Encoding
from ms_prefstream.steps.look import first_rows, formats_in, whole_lengths
from ms_prefstream.steps.summary import encoding_parts
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import check_room, traits

_MOST_ROWS = 2000
_MOST_LINES = 10
_TOGETHER = 256  # rows that are encoded at a time


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found; `print` shows it in at most ten lines.

    Attributes:
        rows: Rows that were read.
        facts: What the data are, as short sentences.
        findings: What looks wrong, what must be mended first.
    """

    rows: int
    facts: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Returns whether nothing must be mended."""
        return not any(one.must for one in self.findings)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields a mark and a text for each line: ``✓`` a fact, ``✗`` what must be mended, ``!`` what may be."""
        most = _MOST_LINES - len(self.facts)
        yield from (("✓", fact) for fact in self.facts)
        shown = self.findings if len(self.findings) <= most else self.findings[: most - 1]
        yield from (("✗" if one.must else "!", str(one)) for one in shown)
        if left := len(self.findings) - len(shown):
            yield "!", f"and {left} more, see findings"

    def __str__(self) -> str:
        return "\n".join(f"{mark} {printable(text.replace(chr(10), ' '), most=400)}" for mark, text in self.lines())


@checked_call
def doctor(
    source: Any,
    *,
    task: Task,
    tokenizer: Any = ...,
    format: Any = "auto",
    fields: Mapping[str, str] | None = None,
    template: str | None = "auto",
    template_variables: Mapping[str, Any] | None = None,
    pad_token_id: int | None = None,
    vocab_size: int | None = None,
    boundary: str = "auto",
    special_tokens_in_content: str = "escape",
    content_lost: str = "report",
    continue_final_message: str = "error",
    train_empty_think: bool = False,
    template_limit_s: float | None = 10.0,
    carry: Sequence[str] | Mapping[str, Any] | None = None,
    backend: str = "auto",
    on_bad_row: str = "raise",
    rows: int = _MOST_ROWS,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Reads some rows and says what the data are, what would go wrong, and which options mend it.

    Args:
        source: What `ms_prefstream.stream` takes; an iterator is consumed.
        task: As for `ms_prefstream.stream`, like all that follows up to `on_bad_row`.
        tokenizer: A directory, a file, an object, or None for rows that are already tokenized.
        format: A preset's name, a preset, or a function row -> row.
        fields: Standard name -> the row's field.
        template: ``auto``, ``chat``, Jinja text, the path of a .jinja file, or None.
        template_variables: Further variables of a chat template.
        pad_token_id: What ids are padded with.
        vocab_size: Rows of the model's embedding.
        boundary: ``auto``, ``joint`` or ``inference``.
        special_tokens_in_content: ``escape``, ``error`` or ``allow``.
        content_lost: ``report``, ``drop`` or ``error``.
        continue_final_message: ``error`` or ``join``.
        train_empty_think: Whether an empty think block is under the loss.
        template_limit_s: Seconds that a chat template may take for one conversation; None for no limit.
        carry: Fields of the row that become further columns.
        backend: ``auto``, ``fastokens``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.
        on_bad_row: ``raise`` or ``drop``.
        rows: How many rows are read at most.
        storage_options: Credentials and addresses of the stores of URLs, as for `ms_prefstream.stream`.
        cache_dir: Folder of the local copies of remote files, likewise.

    Returns:
        A `Diagnosis`. What a stream would raise, a source that cannot be opened for instance, is one of its findings.

    Raises:
        OptionError: An option has a value that is not allowed.
    """
    given = locals()
    encoding, policy = group_of(Encoding, given), group_of(BadRowPolicy, given)
    examined = _Examined(encoding, policy.on_bad_row == "drop", group_of(Remote, given))
    examined.run(source, whole_number("rows", rows, 1))
    return Diagnosis(len(examined.raws), tuple(examined.facts), tuple(examined.findings()))


class _Examined:
    """The rows of a diagnosis and what became of them, as far as one got."""

    def __init__(self, encoding: Encoding, drops: bool, remote: Remote) -> None:
        self._encoding, self._drops, self._remote = encoding, drops, remote
        self.facts: list[str] = []
        self._failed: list[Finding] = []
        self._ready = False
        self._carry: Carry | None = None
        self._recipe: Recipe | None = None
        self._loader: SampleLoader | None = None
        self._pad_id: int | None = None
        self.origins: tuple[str, ...] = ()
        self.raws: tuple[Any, ...] = ()
        self._records: tuple[Any, ...] = ()
        self._loaded: list[Loaded] = []
        self._lengths: dict[str, list[int]] = {}

    def run(self, source: Any, rows: int) -> None:
        """Reads and encodes rows. An error ends the step that it happens in and becomes a finding."""
        for step in (self._read, self._prepare, self._encode):
            try:
                step(source, rows)
            except PrefStreamError as error:
                self._failed.append(Finding(str(error).rstrip("."), must=True))

    def findings(self) -> list[Finding]:
        """Returns what looks wrong."""
        given, recipe = self._encoding, self._recipe
        tokenizer = None if recipe is None else recipe.tokenizer
        seen = Seen(
            task=given.task,
            tokenizer=tokenizer,
            joined=recipe is not None and recipe.template is None and given.template == "auto",
            pad_id=self._pad_id,
            drops=self._drops,
            raws=self.raws,
            records=self._records,
            origins=self.origins,
            loaded=self._loaded,
            lengths=self._lengths,
        )
        return [*self._failed, *findings(seen)]

    def _read(self, source: Any, rows: int) -> None:
        source = open_rows(source, self._remote)
        self._ready = only_caches(source)
        self._carry = self._encoding.carried(source)
        formats = formats_of(
            source, self._encoding.format, self._encoding.fields, self._carry, traits(self._encoding.task).unpairs
        )
        found = list(first_rows(source, formats, rows))
        self.origins, self.raws, self._records = zip(*found, strict=True) if found else ((), (), ())
        both = sum(isinstance(record, (Pair, TokenPair)) for record in self._records)
        names = ", ".join(formats_in(formats, self.raws))
        sides = "every row has both sides" if both == len(found) else f"{both:,} rows have both sides"
        parts = [f"{counted(len(found))} read", names, sides if self._encoding.task.pairs and not self._ready else ""]
        self.facts.append(" · ".join(filter(None, parts)))

    def _prepare(self, source: Any, rows: int) -> None:
        given = self._encoding
        self._recipe = given.recipe(self._ready, self._carry)
        self._loader = self._recipe.loader()
        if self._loader.encoder is not None:
            self.facts.append(" · ".join(encoding_parts(self._recipe)))
            check_room(given.task, self._loader.encoder)
        if not self._ready:
            self._pad_id = choose_pad_id(given.pad_token_id, self._recipe.tokenizer, given.vocab_size)

    def _encode(self, source: Any, rows: int) -> None:
        if self._recipe is None or self._loader is None:
            return
        for begin in range(0, len(self._records), _TOGETHER):
            some = self._records[begin : begin + _TOGETHER]
            loaded = self._loader.samples(some, self.origins[begin:].__getitem__)
            self._loaded += loaded
            if not self._ready:
                for name, lengths in whole_lengths(self._recipe, some, loaded).items():
                    self._lengths.setdefault(name, []).extend(lengths)
        longest = next((self._lengths[name] for name in ("max_length", "seq_length") if self._lengths.get(name)), [])
        if longest:
            most, all_but = (int(np.quantile(longest, part)) for part in (0.9, 0.99))
            cut = sum(bool(one.notes & Note.TRUNCATED) for one in self._loaded)
            cut_off = f"{share(cut, len(self._loaded))} are cut" if cut else "none is cut"
            self.facts.append(f"90 % of rows have up to {most:,} tokens, 99 % up to {all_but:,} · {cut_off}")
