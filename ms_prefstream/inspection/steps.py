"""The batch of a step: the ranges of context, loss and padding in each row of its arrays, and the segments of packs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.arrays import IGNORE
from ms_prefstream.checks import WORD, whole_number
from ms_prefstream.errors import SourceError
from ms_prefstream.inspection.encoded import Kind, Part
from ms_prefstream.inspection.parts import Texts
from ms_prefstream.sample import Batch
from ms_prefstream.stream import Stream

_IDS = ("input_ids", "prompt_ids", "pretrain_ids")  # the columns that hold tokens, each after the name of a side


@dataclass(frozen=True)
class Piece:
    """Neighbouring columns of a row that are alike.

    Attributes:
        begin: The first column.
        end: One past the last column.
        side: ``chosen``, ``rejected``, ``response``, ``prompt``, ``kl``; "" for padding.
        trained: Whether they are under the loss.
        segment: The number of the segment of a pack, from 1; 0 without packs and for padding.
    """

    begin: int
    end: int
    side: str
    trained: bool
    segment: int = 0


@dataclass(frozen=True)
class Strip:
    """A row of the arrays of a batch.

    Attributes:
        origins: Where its rows come from; several in a pack, none for a source that is read in one pass.
        side: ``chosen``, ``rejected``, ``response``, ``prompt``, ``kl`` or ``pack``.
        ids: (width,) the ids, padding included.
        pieces: The row from left to right.
    """

    origins: tuple[str, ...]
    side: str
    ids: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Columns of context, under the loss, and of padding."""
        sizes = [(one.end - one.begin, one) for one in self.pieces]
        trained = sum(size for size, one in sizes if one.trained)
        padding = sum(size for size, one in sizes if not one.side)
        return len(self.ids) - trained - padding, trained, padding


@dataclass(frozen=True)
class Step:
    """What the trainer gets in one step.

    Attributes:
        number: Its number over all epochs, from 0.
        epoch: Its epoch, from 0.
        rank: The rank.
        world: Ranks that share the data.
        strips: The rows of the arrays; both sides of a pair stand together.
        columns: The arrays by name.
    """

    number: int
    epoch: int
    rank: int
    world: int
    strips: tuple[Strip, ...]
    columns: Mapping[str, NDArray[Any]]

    @property
    def width(self) -> int:
        """Columns of the widest row."""
        return max(len(strip.ids) for strip in self.strips)

    @property
    def padding(self) -> float:
        """The share of padding."""
        return sum(strip.counts[2] for strip in self.strips) / sum(len(strip.ids) for strip in self.strips)


def step_of(stream: Stream, number: int) -> Step:
    """Returns a step of a stream; `number` counts over all epochs."""
    epoch, inside = divmod(whole_number("step", number, 0, WORD), stream.steps_per_epoch)
    batch = next(stream.batches(epoch, inside))
    try:
        rows = stream.rows(epoch, inside, resolved=True).tolist()
        assert stream.data.records is not None  # it has numbers of rows
        origins = list(map(stream.data.records.origin, rows))
    except SourceError:
        origins = []
    strips = list(_packs(stream, batch, origins) if "segment_ids" in batch else _rows(stream, batch, origins))
    return Step(number, epoch, stream.rank, stream.world, tuple(strips), batch)


def parts_of(stream: Stream, strip: Strip) -> Iterator[Part]:
    """Yields the parts of a strip without its padding, with the text of each token."""
    tokenizer = stream.tokenizer
    decode = (lambda ids: "".join(f"<{one}>" for one in ids)) if tokenizer is None else tokenizer.decode
    of = Texts(decode)
    controls = frozenset(() if tokenizer is None else tokenizer.special.values())
    for piece in strip.pieces:
        if not piece.side:
            continue
        texts = of.of_tokens(strip.ids, piece.begin, piece.end)
        both = zip(strip.ids[piece.begin : piece.end], texts, strict=True)
        for control, group in itertools.groupby(both, lambda one: one[0] in controls):
            ids, shown = zip(*group, strict=True)
            kinds = (Kind.RESPONSE, Kind.END) if piece.trained else (Kind.PROMPT, Kind.FRAME)
            yield Part(kinds[control], "".join(shown), ids, piece.side, piece.trained, texts=shown, control=control)


def _rows(stream: Stream, batch: Batch, origins: Sequence[str]) -> Iterator[Strip]:
    """Yields the rows of padded samples, sample by sample."""
    sides = []
    for name, ids in batch.items():
        before, column = next(((name[: -len(one)], one) for one in _IDS if name.endswith(one)), ("", ""))
        if not column:
            continue
        names = [before.rstrip("_")] if before else ["chosen", "rejected"][: stream.layout.sides]
        if not stream.task.pairs:
            names = ["prompt" if column == "prompt_ids" else before.rstrip("_") or "response"]
        mask, inside = _masks(stream, batch, before, column)
        count = len(ids) // len(names)
        for at, side in enumerate(names):
            part = slice(at * count, (at + 1) * count)
            sides.append((side, ids[part], mask[part], inside[part]))
    samples, copies = len(sides[0][1]), stream.layout.repeat
    for row in range(samples):
        for side, ids, mask, inside in sides:
            pieces = _pieces(side, mask[row], inside[row])
            yield Strip(tuple(origins[row // copies : row // copies + 1]), side, tuple(ids[row].tolist()), pieces)


def _masks(stream: Stream, batch: Batch, before: str, column: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns (R, L) where the loss is, and (R, L) where no padding is."""
    ids = batch[before + column]
    if column == "prompt_ids":
        mask = np.zeros(ids.shape, bool)
    elif f"{before}loss_mask" in batch:
        mask = batch[f"{before}loss_mask"] != 0
        mask = np.concatenate([mask] * (len(ids) // len(mask)))  # one mask for both sides
    elif "step_mask" in batch:
        mask = batch["step_mask"] != 0
    else:
        mask = batch[f"{before}labels"] != IGNORE
    attention = f"{before}{column.removesuffix('input_ids').removesuffix('ids')}attention_mask"
    if attention in batch:
        inside = batch[attention] != 0
    else:  # padding is what stands after the last token that is no pad id, or under the loss
        own = (ids != stream.pad_token_id) | mask
        inside = np.flip(np.maximum.accumulate(np.flip(own, 1), axis=1), 1)
    return mask & inside, inside


def _packs(stream: Stream, batch: Batch, origins: Sequence[str]) -> Iterator[Strip]:
    """Yields packed rows."""
    rows = iter(origins)
    mask = batch["loss_mask"] != 0
    for row, (ids, segments, pairs) in enumerate(
        zip(batch["input_ids"], batch["segment_ids"], batch["pair_ids"], strict=True)
    ):
        pieces: list[Piece] = []
        borders = np.flatnonzero(np.diff(segments)) + 1
        for begin, end in itertools.pairwise([0, *borders.tolist(), len(ids)]):
            segment = int(segments[begin])
            side = "" if not segment else "response"
            if segment and stream.task.pairs:
                side = "rejected" if begin and pairs[begin] == pairs[begin - 1] else "chosen"
            part = slice(begin, end)
            pieces += _pieces(side, mask[row][part], segments[part] != 0, begin, segment)
        own = tuple(itertools.islice(rows, int(pairs.max())))
        yield Strip(own, "pack", tuple(ids.tolist()), tuple(pieces))


def _pieces(
    side: str, mask: NDArray[np.bool_], inside: NDArray[np.bool_], first: int = 0, segment: int = 0
) -> tuple[Piece, ...]:
    kinds = mask.astype(np.int8) + inside  # 0 padding, 1 context, 2 under the loss
    borders = np.flatnonzero(np.diff(kinds)) + 1
    return tuple(
        Piece(first + begin, first + end, side if kinds[begin] else "", bool(kinds[begin] == 2), segment)
        for begin, end in itertools.pairwise([0, *borders.tolist(), len(kinds)])
    )
