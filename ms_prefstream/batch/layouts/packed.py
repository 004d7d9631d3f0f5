"""The layout of packed rows: several sequences in one row, with the arrays that keep them apart; and `causal_mask`.

Two pairs, (5 6 7) and (5 6 8 9), (4 7) and (4 8), in rows of 12 tokens with max_segments 6 and a pad id of 0; the
response is what follows 5 6 or 4:

    input_ids        5    6    7    5    6    8    9    4    7    4    8    0
    labels        -100 -100    7 -100 -100    8    9 -100    7 -100    8 -100
    loss_mask        0    0    1    0    0    1    1    0    1    0    1    0
    position_ids     0    1    2    0    1    2    3    0    1    0    1    0
    segment_ids      1    1    1    2    2    2    2    3    3    4    4    0
    pair_ids         1    1    1    1    1    1    1    2    2    2    2    0
    actual_seq_len   3    7    9   11   12   12

Shifted labels and loss_mask move one column to the left within each sequence. The actual_seq_len of row r counts from
the first token of the batch: packed attention reads all rows as one line of tokens. The padding after the last sequence
is a separate segment there, so it never belongs to the next row. With one sequence a sample (RLHF), pair_ids equal
segment_ids.

Further values of the samples are tables (B, S): one value for each pair, or for each sequence where a sample has one,
and then 0 or "".
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.arrays import IGNORE, column, internal_error, only_where, shift_left
from ms_prefstream.batch.layouts.base import refuse_shifted
from ms_prefstream.checks import checked_call
from ms_prefstream.errors import OptionError
from ms_prefstream.sample import Batch, Block, Span

Ints = NDArray[np.int32]
_OF_TOKENS = ("input_ids", "labels", "loss_mask", "position_ids", "segment_ids", "pair_ids")


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """The columns of packed rows; those of the tokens are int32.

    Attributes:
        tokens: Columns of a row (T).
        max_segments: Columns of actual_seq_len (S).
        scores: Whether labels are 0 (chosen) or 1 (rejected) at each sequence's last token, which the task appended to
            be scored, instead of the token ids of the responses.
        own: Values of the samples that the task adds: name -> dtype, see `column`.
        further: The same of those that follow the columns of the task.
    """

    tokens: int
    max_segments: int
    scores: bool = False
    own: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)

    name: ClassVar[str] = "packed"
    sides: ClassVar[int] = 1
    repeat: ClassVar[int] = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the arrays that `build` returns, in order."""
        return (*_OF_TOKENS, *self.own, "actual_seq_len", *self.further)

    def with_columns(self, columns: Mapping[str, str]) -> PackedLayout:
        """Returns the same layout with further values of the samples as its last columns."""
        return replace(self, further={**self.further, **columns})

    def build(self, packs: Many[Block], pad_id: int, shifted: bool = False) -> Batch:
        """Returns the batch of some packs.

        Args:
            packs: B packs, the samples of each in order.
            pad_id: The id that pads input_ids.
            shifted: Whether labels and loss mask are shifted one column to the left (not with `scores`).

        Returns:
            Column name -> array: (B, T), (B, S) for actual_seq_len and further values; C-contiguous, new memory.
        """
        if self.scores:
            refuse_shifted("reward_token", shifted)
        shape = (len(packs), self.tokens)
        line = self._segments(packs, pad_id)
        ends = np.cumsum(line.lengths, dtype=np.int32)
        ids = np.concatenate(line.ids, out=np.empty(shape[0] * shape[1], np.int32)).reshape(shape)
        segments = _spread(line.numbers, line.lengths).reshape(shape)
        positions = np.arange(ids.size, dtype=np.int32) - np.repeat(ends - line.lengths, line.lengths)
        if self.scores:
            labels, mask = _scores(line, ends, shape)
        else:
            mask = _loss_mask(line, ends - line.lengths, shape, shifted)
            labels = only_where(mask, shift_left(ids, IGNORE) if shifted else ids)
        return {
            "input_ids": ids,
            "labels": labels,
            "loss_mask": mask.astype(np.int32),
            "position_ids": np.where(segments, positions.reshape(shape), np.int32(0)),
            "segment_ids": segments,
            "pair_ids": _spread(line.pairs, line.lengths).reshape(shape),
            **self._values(packs, self.own),
            "actual_seq_len": self._ends(line.numbers, ends, len(packs)),
            **self._values(packs, self.further),
        }

    def _values(self, packs: Many[Block], columns: Mapping[str, str]) -> Batch:
        """Returns columns of the samples, (B, S): those of each pack in order, then 0 or ""."""
        found: Batch = {}
        for name, dtype in columns.items():
            parts = [column(pack, name, dtype) for pack in packs]
            found[name] = np.zeros((len(packs), self.max_segments), np.result_type(*parts))
            for row, part in zip(found[name], parts, strict=True):
                row[: len(part)] = part
        return found

    def _segments(self, packs: Many[Block], pad_id: int) -> _Segments:
        padding = np.full(self.tokens, pad_id, np.int32)
        line = _Segments([], np.empty(0, np.int32), [], [], [], [])
        for pack in packs:
            if not len(pack) or pack.ref_logps is not None:
                raise internal_error(
                    "a pack has no samples, or some with reference log-probabilities it has no room for"
                )
            places = [(row, side) for row in range(len(pack)) for side in range(pack.sides)]
            sides = [pack.arrays(side) for side in range(pack.sides)]
            ids = [sides[side][row] for row, side in places]
            room = self.tokens - sum(map(len, ids))
            if room < 0 or len(ids) >= self.max_segments or not all(map(len, ids)):
                raise internal_error(
                    f"a pack has {len(ids)} sequences of {self.tokens - room} tokens, but a row holds 1 to "
                    f"{self.max_segments - 1} sequences, none of them empty, of {self.tokens} tokens"
                )
            line.ids.extend([*ids, padding[:room]])
            line.numbers.extend([*range(1, len(ids) + 1), 0])
            line.pairs.extend([*[row + 1 for row, _ in places], 0])
            line.sides.extend([*[side for _, side in places], 0])
            line.spans.extend([*[pack.spans_of(*place) for place in places], ()])
        return line._replace(lengths=np.fromiter(map(len, line.ids), np.int32, len(line.ids)))

    def _ends(self, numbers: list[int], ends: Ints, rows: int) -> Ints:
        """Returns (B, S): where each sequence ends in the line of all rows; then the row's end, repeated."""
        last = np.arange(1, rows + 1, dtype=np.int32) * np.int32(self.tokens)
        table = np.repeat(last, self.max_segments).reshape(rows, self.max_segments)
        numbered = np.array(numbers)
        real = numbered > 0
        row: NDArray[np.int64] = np.cumsum(~real) - ~real  # a row's padding closes it
        table[row[real], numbered[real] - 1] = ends[real]
        return table


class _Segments(NamedTuple):
    """The n segments of a batch, its sequences and the padding after each row, as one line of B * T tokens.

    Attributes:
        ids: The token ids of each, padding included.
        lengths: (n,) tokens of each; a full row ends with a padding of none.
        numbers: (n,) the sequence's number in its row from 1 on; 0 for padding.
        pairs: (n,) the sample's number in its row from 1 on; 0 for padding.
        sides: (n,) which sequence of its sample it is, from 0 on; 0 for padding.
        spans: (n,) the spans of the sequence, none for padding.
    """

    ids: list[Ints]
    lengths: Ints
    numbers: list[int]
    pairs: list[int]
    sides: list[int]
    spans: list[tuple[Span, ...]]


def _spread(values: list[int], lengths: Ints) -> Ints:
    """Returns (B * T,) int32: the value of the segment that each token belongs to."""
    return np.repeat(np.array(values, np.int32), lengths)


def _loss_mask(line: _Segments, starts: Ints, shape: tuple[int, int], shifted: bool) -> NDArray[np.bool_]:
    """Returns (B, T) bool: True on the spans, moved left by one if shifted, but never for a sequence's first token.

    No token of its own sequence comes before it to predict it; the token before it in the row belongs to another one.
    """
    counts = np.fromiter(map(len, line.spans), np.int32, len(line.spans))
    limits = np.array(list(chain.from_iterable(line.spans)), np.int32).reshape(-1, 2)
    if (limits[:, 1] > np.repeat(line.lengths, counts)).any():
        raise internal_error(f"a span ends after its sequence; the spans of the batch are {line.spans}")
    limits = np.maximum(limits, 1) + np.repeat(starts, counts)[:, None] - np.int32(shifted)
    edges = np.concatenate([[0], limits.reshape(-1), [shape[0] * shape[1]]])
    inside = np.arange(len(edges) - 1) % 2 == 1  # outside, inside, outside, ...
    return np.repeat(inside, np.diff(edges)).reshape(shape)


def _scores(line: _Segments, ends: Ints, shape: tuple[int, int]) -> tuple[Ints, NDArray[np.bool_]]:
    """Returns (B, T) each: labels, 0 or 1 at each sequence's last token and -100 elsewhere; True at these tokens."""
    real = np.array(line.numbers) > 0
    at = ends[real] - 1
    labels = np.full(shape, IGNORE, np.int32)
    labels.reshape(-1)[at] = np.array(line.sides, np.int32)[real]
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[at] = True
    return labels, mask


@checked_call
def causal_mask(batch: Mapping[str, Any] | Any, *, visible: int = 0, heads: bool = True) -> NDArray[np.uint8]:
    """Returns the attention mask of packed rows: block-diagonal, and causal within each block.

        segment_ids 1 1 2 0      0 1 1 1      a token attends to itself and to earlier tokens of its sequence; the
                                 0 0 1 1      padding is a separate block, so that no line is masked completely
                                 1 1 0 1      (its softmax would be NaN)
                                 1 1 1 0

    Args:
        batch: A packed batch, or its `segment_ids` alone, (B, L): an array or a tensor.
        visible: The value of a column that a token attends to: 0 (masked columns are 1, as MindFormers has it) or 1.
        heads: Whether there is an axis of size 1 for the attention heads.

    Returns:
        (B, 1, L, L) uint8, or (B, L, L) without `heads`: B * L * L bytes.

    Raises:
        OptionError: The batch is not packed, or an option is not allowed.
    """
    if isinstance(visible, bool) or visible not in (0, 1):
        raise OptionError(f"causal_mask: visible is {visible!r}; expected 0 (masked is 1) or 1 (masked is 0).")
    if isinstance(batch, Mapping):
        if "segment_ids" not in batch:
            found = ", ".join(map(str, batch)) or "none"
            raise OptionError(
                f"causal_mask: the batch has no segment_ids; found columns: {found}. Only batches of mps.Pack have "
                "them; padded batches have an attention mask or a loss mask."
            )
        batch = batch["segment_ids"]
    segments = np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)
    if segments.ndim != 2 or segments.dtype.kind not in "iu" or not segments.size:
        raise OptionError(
            f"causal_mask: segment_ids are {segments.shape} {segments.dtype}; expected whole numbers, (rows, columns)."
        )
    return _blocks(segments, np.uint8(visible), heads)


def _blocks(segments: NDArray[Any], visible: np.uint8, heads: bool) -> NDArray[np.uint8]:
    rows, width = segments.shape
    mask = np.full((rows, width, width), 1 - visible, np.uint8)
    changes = segments[:, 1:] != segments[:, :-1]
    longest = np.tri(width, dtype=np.bool_)
    for target, change in zip(mask, changes, strict=True):
        borders = [0, *(np.flatnonzero(change) + 1).tolist(), width]
        for begin, end in pairwise(borders):
            np.copyto(target[begin:end, begin:end], visible, where=longest[: end - begin, : end - begin])
    return mask[:, None] if heads else mask
