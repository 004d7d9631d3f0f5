"""What a process needs to make samples by itself: the records and the options, not the machinery made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.fit import Flat
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.runtime.loader import SampleLoader
from ms_prefstream.runtime.records import RecordAccess
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a row becomes.

    Attributes:
        records: Random access to records; None where records are sent along (one-pass sources).
        task: What records become.
        tokenizer: Loaded already; None for rows that are already tokenized.
        template: The option `template` of `ms_prefstream.stream`; the path of a file must be replaced by its text.
        boundary: The option of that name.
        special_tokens_in_content: The option of that name.
        ready: Whether the records are samples already, so that there is nothing to make.
    """

    records: RecordAccess | None
    task: Task
    tokenizer: Tokenizer | None
    template: str | None = "auto"
    boundary: str = "joint"
    special_tokens_in_content: str = "escape"
    ready: bool = False

    def loader(self) -> SampleLoader:
        """A loader that follows the recipe, in this process."""
        if self.ready:
            return SampleLoader(self.records, self.task, _nothing_to_make, None)
        encoder = None
        if self.tokenizer is not None:
            encoder = build_encoder(
                self.tokenizer,
                template=self.template,
                boundary=self.boundary,
                special_tokens_in_content=self.special_tokens_in_content,
                refused=self.task.refused(self.tokenizer),
            )
        return SampleLoader(self.records, self.task, self.task.sampler(self.tokenizer), encoder)


def _nothing_to_make(sides: Sequence[Flat], margin: float | None) -> Sample:
    raise AssertionError("a cache holds samples, and nothing is made of them")
