"""Records to numbers: lengths, hashes and what limits would do to them. Runs here or in a worker process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.identity import hash_array, prompt_hash
from ms_prefstream.formats.record import Completion, Message, Messages, Pair, Stepwise, TokenCompletion, TokenPair
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.sample import Loaded, Note
from ms_prefstream.stats.near import signatures
from ms_prefstream.tasks import Task

NO_LIMIT = 2**24  # tokens; the limit of a task that is to cut nothing
NONE = -1  # in place of a length that does not exist

# Reasons to drop a row that depend on the chat template: they say nothing where the user gave no tokenizer.
OF_TEMPLATES = frozenset({Reason.TEMPLATE_REFUSED, Reason.CONTENT_LOST, Reason.NO_RESPONSE_TOKENS})


class Chunk(NamedTuple):
    """Records that are measured together.

    Attributes:
        first: The number of the first record.
        records: The records, or why there is none.
    """

    first: int
    records: Sequence[Any]

    def __str__(self) -> str:
        """Returns which rows they are, for the error if a worker dies."""
        return f"rows {self.first:,} to {self.first + len(self.records) - 1:,}"


class Measured(NamedTuple):
    """The numbers of n records.

    Attributes:
        characters: (n, 3) int32, of prompt, chosen and rejected; `NONE` where there is no such text.
        tokens: (n, 3) int32, the same in tokens of the bare texts.
        sequences: (n, 2) int32, tokens of prompt + chosen and of prompt + rejected before anything is cut; `NONE` where
            there is no such sequence, as in dropped rows.
        cut: (limits, 3) int64, rows that are cut, that lose their question and that are dropped at each limit.
        prompts: (n, 2) uint64, a hash of each prompt; 0 where there is none.
        signatures: (n, 64) uint16, see `ms_prefstream.stats.near`; None if they are not wanted.
        dropped: Position and reason of the records that give no sample.
        unread: Position and names of the fields that nothing read.
    """

    characters: NDArray[np.int32]
    tokens: NDArray[np.int32]
    sequences: NDArray[np.int32]
    cut: NDArray[np.int64]
    prompts: NDArray[np.uint64]
    signatures: NDArray[np.uint16] | None
    dropped: list[tuple[int, Reason]]
    unread: list[tuple[int, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class MeasureRecipe:
    """Everything that measuring needs; goes to worker processes in place of a `Recipe`.

    Attributes:
        recipe: What rows of two sides become, without limits.
        alone: The same for rows of one response; None if `recipe` is for all rows, as the task of a user is.
        bare: Counts the tokens of bare texts; None if tokens are not counted.
        limits: Tokens at which rows are cut, ascending.
        near: Whether near duplicates are looked for.
    """

    recipe: Recipe
    alone: Recipe | None = None
    bare: Tokenizer | None = None
    limits: tuple[int, ...] = ()
    near: bool = False

    records = None

    @property
    def task(self) -> Task:
        """What rows become."""
        return self.recipe.task

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer."""
        return self.recipe.tokenizer

    def loader(self) -> Measurer:
        """Returns what measures in this process."""
        return Measurer(self)


class Measurer:
    """Measures records as a `MeasureRecipe` says."""

    def __init__(self, recipe: MeasureRecipe) -> None:
        self._recipe = recipe
        self._pairs = _Loaders(recipe.recipe, recipe.limits)
        self._alone = self._pairs if recipe.alone is None else _Loaders(recipe.alone, recipe.limits)

    def measure(self, chunk: Chunk) -> Measured:
        """Returns the numbers of some records."""
        recipe = self._recipe
        records = chunk.records if recipe.alone is None else [*map(_joined, chunk.records)]
        count = len(records)
        sequences = np.full((count, 2), NONE, np.int32)
        cut = np.zeros((len(recipe.limits), 3), np.int64)
        dropped: list[tuple[int, Reason]] = []
        unread: list[tuple[int, tuple[str, ...]]] = []
        alone = [isinstance(record, (Completion, TokenCompletion)) for record in records]
        for loaders, wanted in ((self._pairs, False), (self._alone, True)):
            places = [place for place in range(count) if alone[place] is wanted]
            if not places:
                continue
            some = [records[place] for place in places]
            loaded = loaders.whole.samples(some, functools.partial(_origin, chunk.first, places))
            for place, one in zip(places, loaded, strict=True):
                if one.error is not None and (recipe.bare is not None or one.error.reason not in OF_TEMPLATES):
                    dropped.append((place, one.error.reason))
                elif one.sample is not None and self._counts(records[place]):
                    lengths = [len(sequence.ids) for sequence in one.sample.sequences]
                    sequences[place, : len(lengths)] = lengths
                names = one.unread if recipe.bare is not None else ()  # what a template leaves out is among them
                if names := names or getattr(records[place], "unread", ()):
                    unread.append((place, names))
            cut += loaders.cut([pair for pair in zip(some, loaded, strict=True) if self._counts(pair[0])])
        texts = [_texts(record) for record in records]
        characters = [[NONE if side is None else sum(map(len, side)) for side in row] for row in texts]
        return Measured(
            characters=np.array(characters, np.int32),
            tokens=_tokens(records, texts, recipe.bare),
            sequences=sequences,
            cut=cut,
            prompts=hash_array(prompt_hash(record, fold=False) for record in records),
            signatures=signatures([_prompt_text(record) for record in records]) if recipe.near else None,
            dropped=sorted(dropped),
            unread=sorted(unread),
        )

    def _counts(self, record: Any) -> bool:
        """Returns whether the tokens of a record are those of the user's tokenizer, or came as ids."""
        return self._recipe.bare is not None or not isinstance(record, (Pair, Completion))


def _origin(first: int, places: Sequence[int], at: int) -> str:
    """Returns the number of a record in the source, given its place among some of a chunk."""
    return f"row {first + places[at]}"


def measure(measurer: Any, chunk: Chunk) -> Measured:
    """Measures records; runs in a worker."""
    found: Measured = measurer.measure(chunk)
    return found


class _Loaders:
    """The loaders of one task: without a limit, and at each limit. They share an encoder."""

    def __init__(self, recipe: Recipe, limits: Sequence[int]) -> None:
        task, tokenizer = recipe.task, recipe.tokenizer
        self.whole = dataclasses.replace(recipe, task=at_length(task, NO_LIMIT, NO_LIMIT // 2)).loader()
        self._at = []
        for limit in limits:
            limited = at_length(task, limit)
            self._at.append(SampleLoader(None, limited, limited.sampler(tokenizer), self.whole.encoder))
        self._limits = limits
        self._limits_prompts = task.length < NO_LIMIT and getattr(task, "max_prompt_length", None) is not None

    def cut(self, found: Sequence[tuple[Any, Loaded]]) -> NDArray[np.int64]:
        """Returns what each limit does to records, (limits, 3), given them and what they are without one."""
        counts = np.zeros((len(self._limits), 3), np.int64)
        for number, (limit, loader) in enumerate(zip(self._limits, self._at, strict=True)):
            longer = [record for record, one in found if self._may_cut(one, limit)]
            for one in loader.samples(longer) if longer else ():
                is_cut = one.sample is None or bool(one.notes & Note.TRUNCATED)
                counts[number] += is_cut, bool(one.notes & Note.QUESTION_CUT), one.sample is None
        return counts

    def _may_cut(self, one: Loaded, limit: int) -> bool:
        return one.sample is not None and (self._limits_prompts or one.sample.length > limit)


def at_length(task: Task, length: int, prompt: int | None = None) -> Task:
    """Returns a task with another limit on its sequences.

    Args:
        task: Any task.
        length: The limit.
        prompt: The limit on prompts, if the task has one; None keeps it, as far as a response has room.
    """
    changes: dict[str, Any] = {name: length for name in ("max_length", "seq_length") if hasattr(task, name)}
    given = getattr(task, "max_prompt_length", None)
    if given is not None:
        changes["max_prompt_length"] = min(given, max(1, length - 2)) if prompt is None else prompt
    return dataclasses.replace(task, **changes)  # type: ignore[type-var]  # tasks are dataclasses


def _joined(record: Any) -> Any:
    """Returns a record of steps as one response, for rows whose task is not known; another record as it is."""
    if not isinstance(record, Stepwise):
        return record
    response = (Message("assistant", "\n".join(record.steps)),)
    return Completion(record.prompt, response, record.tools, record.origin, record.unread, record.variables)


_Texts = tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None]


def _texts(record: Any) -> _Texts:
    """Returns the contents of the messages of prompt, chosen and rejected; None where there is no such text."""
    if isinstance(record, Pair):
        return _contents(record.prompt), _contents(record.chosen), _contents(record.rejected)
    if isinstance(record, Completion):
        response = _contents(record.response) if record.response else None
        is_bad = record.desirable is False
        return _contents(record.prompt), None if is_bad else response, response if is_bad else None
    return None, None, None


def _contents(messages: Messages) -> list[str]:
    return [message.content for message in messages]


def _tokens(records: Sequence[Any], texts: Sequence[_Texts], tokenizer: Tokenizer | None) -> NDArray[np.int32]:
    """Returns the tokens of each side, (n, 3): of its texts, or of its ids."""
    known: dict[str, int] = {}
    if tokenizer is not None:
        known = _token_counts(list({text: None for row in texts for side in row for text in side or ()}), tokenizer)
    found = np.full((len(records), 3), NONE, np.int32)
    for number, (record, row) in enumerate(zip(records, texts, strict=True)):
        if isinstance(record, TokenPair):
            found[number] = len(record.prompt_ids), len(record.chosen_ids), len(record.rejected_ids)
        elif isinstance(record, TokenCompletion):
            found[number] = len(record.prompt_ids), len(record.response_ids) or NONE, NONE
        elif tokenizer is not None:
            for place, side in enumerate(row):
                if side is not None and all(text in known for text in side):
                    found[number, place] = sum(map(known.__getitem__, side))
    return found


def _token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the tokens of each text; a text that no tokenizer accepts is left out."""
    try:
        return dict(zip(texts, map(len, tokenizer.encoder.encode(texts, Place.START)), strict=True)) if texts else {}
    except RowError:
        if len(texts) == 1:
            return {}
        half = len(texts) // 2
        return _token_counts(texts[:half], tokenizer) | _token_counts(texts[half:], tokenizer)


def _prompt_text(record: Any) -> str | None:
    """Returns the text of a prompt, without a system message that many rows share."""
    if not isinstance(record, (Pair, Completion)):
        return None
    return "\n".join(message.content for message in record.prompt if message.role != "system")
