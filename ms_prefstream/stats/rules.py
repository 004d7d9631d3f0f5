"""What batching rules make of rows of known lengths, by the plans that a stream with a length index follows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Bucket, Pack, Pad
from ms_prefstream.errors import OptionError
from ms_prefstream.plan import IndexedPlan, PackedPlan, PlanOptions
from ms_prefstream.stats.parts import Padding
from ms_prefstream.stats.tally import quantile
from ms_prefstream.tasks import DPO, RLHF, Task

_ROUND = 64  # suggested lengths are multiples of it
_WHOLE = 0.99  # share of rows that a suggested length keeps whole
_MOST_STEPS = 2**15  # beyond these, padding is that of the first steps
_SHAPES = (2, 4, 8, 16)
_SHAPES_GAIN = 0.05  # padding that more shapes must save
_PACKS = (1, 2, 4, 8)  # tokens of a packed row, in longest samples
_PACKED_WELL = 0.01  # padding of packs that is little enough
_WINDOW = 64  # as streams have it


def good_length(longer: NDArray[np.int64]) -> int:
    """Returns the multiple of 64 that holds 99 % of these lengths, (n,), whole."""
    values, counts = np.unique(longer, return_counts=True)
    return max(_ROUND, int(-(-quantile(values, counts, _WHOLE) // _ROUND) * _ROUND))


def rules_for(
    sequences: NDArray[np.int32], task: Task | None, max_length: int, batch_size: int
) -> tuple[dict[str, Padding], int, int]:
    """Returns what each rule makes of the rows, the best number of widths, and the best tokens of a packed row.

    Rows longer than the limit count as cut to it.

    Args:
        sequences: (n, 2) tokens of prompt + chosen and prompt + rejected; negative where there is no such sequence.
            Every row has at least one.
        task: What rows become; None takes DPO for rows of which one has two sequences, else RLHF.
        max_length: The limit on a sequence.
        batch_size: Rows of a step.
    """
    lengths = np.minimum(sequences, max_length).astype(np.int64)
    if task is None:
        pairs = bool((sequences >= 0).all(axis=1).any())
        task = DPO(max_length) if pairs else RLHF(max_length - 1, max_length)
    steps = _Steps.of(lengths, min(batch_size, len(lengths)))
    found = {"pad": steps.padding(Pad(batch_size), max_length)}
    found["bucket"] = steps.padding(Bucket(batch_size), max_length)
    by_shapes = {shapes: steps.padding(Bucket(batch_size, max_shapes=shapes), max_length) for shapes in _SHAPES}
    least = min(one.padding for one in by_shapes.values())
    shapes = next(shapes for shapes, one in by_shapes.items() if one.padding <= least + _SHAPES_GAIN)
    found["bucket_max_shapes"] = by_shapes[shapes]
    longest = max_length * (2 if task.pairs else 1)
    packed = {factor * longest: _packed(lengths, task, factor * longest) for factor in _PACKS}
    best = min(one.padding for one in packed.values())
    tokens = next(tokens for tokens, one in packed.items() if one.padding <= max(best, _PACKED_WELL))
    try:
        Pack(tokens).layout(task)
        found["pack"] = packed[tokens]
    except OptionError:  # a layout or a margin that has no place in packs
        pass
    return found, shapes, tokens


class _Steps(NamedTuple):
    """The steps of an epoch, sorted by length in windows.

    Attributes:
        longest: (s,) the longest sequence of each step.
        sequences: (s,) how many sequences it has.
        tokens: (s,) how many tokens.
        total: Steps of the epoch; s of them are here.
    """

    longest: NDArray[np.int64]
    sequences: NDArray[np.int64]
    tokens: NDArray[np.int64]
    total: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64], batch_size: int) -> _Steps:
        """Returns the steps of rows with these lengths, (n, 2)."""
        keys = lengths.max(axis=1)
        plan = IndexedPlan(PlanOptions(rows=len(keys), global_batch=batch_size, window=_WINDOW), keys)
        steps = min(plan.steps_per_epoch, _MOST_STEPS)
        rows = np.stack([plan.rows(0, step, 0, 1) for step in range(steps)])  # (s, batch_size)
        exists = lengths >= 0
        return cls(
            longest=keys[rows].max(axis=1),
            sequences=exists.sum(axis=1)[rows].sum(axis=1),
            tokens=np.where(exists, lengths, 0).sum(axis=1)[rows].sum(axis=1),
            total=plan.steps_per_epoch,
        )

    def padding(self, rule: Any, max_length: int) -> Padding:
        """Returns what a rule of a fixed batch size makes of these steps."""
        widths = rule.widths(max_length, self.longest)
        used = [rule.width_for(longest, widths) for longest in self.longest.tolist()]
        cells, tokens = int((np.array(used) * self.sequences).sum()), int(self.tokens.sum())
        scale = self.total / len(self.longest)
        return Padding(
            rule=_named(rule),
            padding=1 - tokens / cells,
            tokens=round(tokens * scale),
            cells=round(cells * scale),
            steps=self.total,
            shapes=len(set(used)),
        )


def _packed(lengths: NDArray[np.int64], task: Task, tokens: int) -> Padding:
    """Returns what packing makes of rows with these lengths, (n, 2)."""
    rule = Pack(tokens)
    sizes = np.maximum(lengths, 0).sum(axis=1)
    options = PlanOptions(rows=len(sizes), global_batch=1, window=_WINDOW)
    steps = PackedPlan(options, sizes, tokens, rule.samples_per_row(task)).steps_per_epoch
    total = int(sizes.sum())
    return Padding(_named(rule), 1 - total / (steps * tokens), total, steps * tokens, steps, 1)


def _named(rule: Any) -> str:
    """Returns a rule as a person writes it: ``Bucket(8, max_shapes=8)``."""
    if isinstance(rule, Pack):
        return f"Pack({rule.tokens})"
    options = [f", {name}={getattr(rule, name)}" for name in ("multiple_of", "max_shapes") if getattr(rule, name, None)]
    return f"{type(rule).__name__}({rule.batch_size}{''.join(options)})"
