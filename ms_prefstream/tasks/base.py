"""The contract of a task, and the checks and the truncation that tasks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import LONGEST, whole_number
from ms_prefstream.encode.cut_points import least_length
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import TRUNCATIONS, Budget, Uncut
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.record import Record
from ms_prefstream.sample import Block
from ms_prefstream.tasks.records import TaskRecord, usual_record

Sampler: TypeAlias = Callable[[Uncut], Block]
"""A function from conversations to samples. It refuses the rows without anything to learn (`Block.refuse`).

The conversations are chosen and rejected side where the task is one of pairs, otherwise the prompt alone and prompt
with response. A sampler works on the arrays of all rows, and row by row only where a row is exceptional.
"""


_ADDED = "added"
_T = TypeVar("_T")


def added(default: _T) -> _T:
    """Returns the field of a task's option that the first version did not have.

    Saved states, indexes and caches hold the options of their task. They stay valid because such an option is left out
    while it has its default, see `given_options`.
    """
    field: _T = dataclasses.field(default=default, metadata={_ADDED: True})
    return field


def given_options(task: Any) -> dict[str, Any]:
    """Returns the options of a task by name, without those of `added` that have their defaults."""
    left_out = added_defaults(task).items()
    options = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return dict(item for item in options.items() if item not in left_out)


def added_defaults(task: Any) -> dict[str, Any]:
    """Returns the options of `added` with their defaults; `task` is a task, its class, or None for an unknown one."""
    fields = () if task is None else dataclasses.fields(task)
    return {field.name: field.default for field in fields if _ADDED in field.metadata}


def shown(task: Any) -> str:
    """Returns the `repr` of a task, made of its `given_options`."""
    options = ", ".join(f"{name}={value!r}" for name, value in given_options(task).items())
    return f"{type(task).__qualname__}({options})"


def stated_options(task: Any) -> list[str]:
    """Returns the options of a task that differ from their defaults, for people: ``max_length 64``.

    Texts that cannot be seen, such as a newline, are shown as in Python.
    """
    given = [(field.name, getattr(task, field.name), field.default) for field in dataclasses.fields(task)]
    return [
        f"{name} {value!r}" if isinstance(value, str) and repr(value)[1:-1] != value.strip() else f"{name} {value}"
        for name, value, default in given
        if value != default
    ]


class Task(Protocol):
    """The options of a task: a frozen dataclass that checks itself, and makes the function from tokens to samples."""

    @property
    def name(self) -> str:
        """Its key in `TASKS`."""

    @property
    def layout(self) -> str:
        """The layout of its batches (see `ms_prefstream.batch.layouts`)."""

    @property
    def pairs(self) -> bool:
        """True if rows must be pairs; otherwise the chosen side of a pair is the response."""

    @property
    def length(self) -> int:
        """The largest number of tokens of a sequence."""

    @property
    def shifted(self) -> bool:
        """True if labels and loss mask are shifted one column to the left."""

    @property
    def margin(self) -> bool:
        """True if batches have a margin column."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Values of a sample that batches have beside its tokens: name -> dtype, see `columns_of`."""

    @property
    def prompt_columns(self) -> int | None:
        """Columns of prompt_ids; None for layouts without them."""

    @property
    def append_eos(self) -> bool:
        """True if the end token follows the response where there is no chat template."""

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        """Returns the function that makes samples.

        Raises:
            TokenizerError: The vocabulary lacks a token that the task needs.
        """

    def refused(self, tokenizer: Tokenizer | None) -> dict[str, int]:
        """Returns control tokens that no content may hold, whatever `special_tokens_in_content` says."""


class Traits:
    """Further facts about a task, as they are assumed of a task that does not state them; see `traits`.

    Attributes:
        pairs: See `Task`, also for `shifted`, `columns` and `prompt_columns`.
        length_option: The option that limits its sequences.
        scores: Whether every sequence is scored at its last token, which the task appended.
        scores_spans: Whether each token under the loss has a value of its own (`Sample.scores`).
        trains: Whether it trains on responses, so that a prompt alone is of no use.
        unpairs: Whether a pair becomes two samples, a good and a bad one.
        least_rows: Rows of a step on each rank, at least.
        no_packs: Why packs have no place for its samples, as a sentence with the remedy; None if they have.
        batch_options: Options that change batches and not samples: a cache fits any value of them.
        layout_options: Options of its layout, see `make_layout`.
        reference_layout: The layout of batches with columns for reference log-probabilities; None if there is none.
    """

    pairs: ClassVar[bool] = True
    shifted: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = MappingProxyType({})
    prompt_columns: ClassVar[int | None] = None
    length_option: ClassVar[str] = "max_length"
    scores: ClassVar[bool] = False
    scores_spans: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    unpairs: ClassVar[bool] = False
    least_rows: ClassVar[int] = 1
    no_packs: ClassVar[str | None] = None
    batch_options: ClassVar[tuple[str, ...]] = ()
    layout_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    reference_layout: ClassVar[str | None] = None

    @property
    def length(self) -> int:
        """See `Task`."""
        length: int = getattr(self, self.length_option)
        return length

    def record(self, record: Record) -> TaskRecord:
        """Returns a record as the task encodes it.

        Raises:
            RowError: The task has no use for such a record.
        """
        return usual_record(record, self.pairs)

    def refused(self, tokenizer: Tokenizer | None) -> dict[str, int]:
        """See `Task`."""
        return {}


def traits(task: Task) -> Traits:
    """Returns what a task states of `Traits`, and for the rest what is assumed."""
    if isinstance(task, Traits):
        return task
    found = Traits()
    for name in (*Traits.__annotations__, "record"):
        if hasattr(task, name):
            setattr(found, name, getattr(task, name))
    return found


def columns_of(task: Task) -> Mapping[str, str]:
    """Returns the values of a sample that batches and caches of a task have beside its tokens.

    A record has them as attributes of these names. They are columns (B,) of their dtype, ``float32``, ``int32`` or
    ``int64``, after those of the layout unless that puts them elsewhere.
    """
    margin = {"margin": "float32"} if task.margin else {}
    return {**margin, **getattr(task, "columns", {})}  # a task of a user may lack the latter


def fit_pairs(rows: Uncut, limits: Budget) -> Block:
    """Truncates both sides of every row to their budget.

    Rows of which a side has nothing to train on, or whose sides no longer differ, are refused.
    """
    block = rows.block
    for side, name in enumerate(("chosen", "rejected")):
        for row in np.flatnonzero(block.good & ~has_spans(block, side)).tolist():
            block.refuse(row, RowError(Reason.NO_RESPONSE_TOKENS, f"the {name} side has no response token"))
    rows.fit(limits, 0, 1)
    for row in np.flatnonzero(block.good & (block.lengths[:, 0] == block.lengths[:, 1])).tolist():
        chosen, rejected = (rows.flat(row, side).ids for side in (0, 1))
        if (chosen != rejected).any():
            continue
        if block.lost[row].any():
            problem = f"both sides are the same within {limits.max_length} tokens"
            block.refuse(row, RowError(Reason.IDENTICAL_AFTER_TRUNCATION, problem))
        else:
            block.refuse(row, RowError(Reason.IDENTICAL, "chosen and rejected become the same tokens"))
    return block


def refuse_without_prompt(rows: Uncut, columns: int) -> None:
    """Refuses the rows whose prompt is empty or was cut away."""
    for row in np.flatnonzero(rows.block.good & (rows.block.lengths[:, 0] == 0)).tolist():
        if rows.prompts[row, 0]:
            error = RowError(Reason.TOO_LONG, f"no character of the prompt fits into {columns} tokens")
        else:
            error = RowError(
                Reason.MISSING_FIELD,
                "the prompt is empty; expected text for a rollout to start from",
                "Fill it in, or use a chat template, which gives an empty prompt a frame",
            )
        rows.block.refuse(row, error)


def only_side(block: Block, side: int) -> Block:
    """Returns the rows with one of their sequences alone."""
    kept = {name: getattr(block, name)[:, side : side + 1] for name in ("begins", "lengths", "spans", "lost")}
    more = {(row, 0): spans for (row, of), spans in block.more.items() if of == side}
    return dataclasses.replace(block, **kept, more=more)


def leave_out_first_tokens(block: Block, change: bool) -> None:
    """Takes the first token of each sequence out of its spans: no token before it can predict it.

    A row without another token to learn is refused, in every layout; spans are changed only if `change` says so.
    """
    begins_at_once = (block.spans[..., 0] == 0) & (block.spans[..., 1] > 0)
    for row, side in np.argwhere(begins_at_once).tolist():
        if row in block.errors:  # for its other side
            continue
        (_, end), *rest = block.spans_of(row, side)
        spans = [(1, end), *rest] if end > 1 else rest
        if not spans:
            problem = "the only response token has nothing before it to be predicted from"
            block.refuse(row, RowError(Reason.NO_RESPONSE_TOKENS, problem))
        elif change:
            block.set_spans(row, side, spans)


def has_spans(block: Block, side: int) -> NDArray[np.bool_]:
    """Returns (n,) bool, whether a sequence of each row has tokens under the loss."""
    found: NDArray[np.bool_] = block.spans[:, side, 0] < block.spans[:, side, 1]
    return found


def check_choice(task: str, name: str, value: object, allowed: Many[str]) -> None:
    """Checks that an option is one of the allowed words."""
    if value not in allowed:
        raise OptionError(f"{task}: {name} is {value!r}; expected one of {', '.join(map(repr, allowed))}.")


def check_flag(task: str, name: str, value: object) -> None:
    """Checks that an option is True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{task}: {name} is {value!r}; expected True or False.")


def budget(task: str, max_length: int, max_prompt_length: int | None, truncation: str, reserve: int = 0) -> Budget:
    """Returns the checked budget of a task (a prompt limit must leave room for one response token)."""
    whole_number(f"{task}: max_length", max_length, 2 + reserve, LONGEST)
    if max_prompt_length is not None:
        whole_number(f"{task}: max_prompt_length", max_prompt_length, 1, LONGEST)
        if max_prompt_length >= max_length - reserve:
            raise OptionError(
                f"{task}: max_prompt_length is {max_prompt_length} and max_length {max_length}; expected the prompt "
                f"limit to be at most {max_length - reserve - 1}, so that a response token fits. Leave it out for none."
            )
    check_choice(task, "truncation", truncation, TRUNCATIONS)
    return Budget(max_length=max_length, max_prompt_length=max_prompt_length, truncation=truncation, reserve=reserve)


def check_room(task: Task, encoder: ConversationEncoder) -> None:
    """Checks that a row of the task's length can keep a token of its response."""
    bare = least_length(encoder)
    least = bare + (1 if traits(task).scores else 0)
    if task.length < least:
        text = "response" if traits(task).trains else "the prompt"
        raise OptionError(
            f"{type(task).__name__}: {traits(task).length_option} is {task.length}, but the "
            f"template takes {least} tokens with a single one of {text}. Raise it to {least} or, better, to what "
            "your rows need."
        )
    prompt = getattr(task, "max_prompt_length", None)
    if prompt is not None and prompt < bare - 1:
        raise OptionError(
            f"{type(task).__name__}: max_prompt_length is {prompt}, but the template takes {bare - 1} for an empty one."
            f" Raise it to {bare - 1} or, better, to what your rows need."
        )
