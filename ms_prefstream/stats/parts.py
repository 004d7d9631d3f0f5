"""The parts of what `mps.stats` returns: frozen dataclasses of plain numbers, with their form as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin.

        edges 3 10 20 30 97     counts 4 7 1 2      4 values from 3 to 9, …, 2 from 30 to 97

    Attributes:
        edges: Where the bins begin, ascending, and where the last one ends, which includes its end. All bins have one
            width, but the first reaches down to the smallest value and the last up to the largest.
        counts: Values in each bin, one number fewer than edges.
    """

    edges: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Lengths of some texts or sequences. Everything is 0 if there are none.

    Attributes:
        count: Texts that were measured.
        max: The largest length.
        mean: Their mean.
        p50: The median. Quantiles are interpolated linearly, as `numpy.quantile` does.
        p90: The 90 % quantile.
        p99: The 99 % quantile.
        histogram: How they are distributed.
    """

    count: int = 0
    max: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    histogram: Histogram = Histogram()

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values, without the histogram."""
        return {name: value for name, value in vars(self).items() if name != "histogram"}


@dataclass(frozen=True)
class Sides:
    """Lengths of the texts of rows, side by side. Several messages of a side count together.

    The response of a row that is no pair counts as chosen, and as rejected where its label says that it is a bad one.
    """

    prompt: Lengths = Lengths()
    chosen: Lengths = Lengths()
    rejected: Lengths = Lengths()

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values, without histograms."""
        return {name: lengths.to_dict() for name, lengths in vars(self).items()}


@dataclass(frozen=True)
class Sequences:
    """Tokens of what batches hold, before anything is cut: a prompt and a response through the chat template.

    Attributes:
        chosen: Prompt and chosen response; of rows that are no pairs, prompt and response, or the prompt alone.
        rejected: Prompt and rejected response.
        longer: The longer of the two: what a row is padded to.
    """

    chosen: Lengths = Lengths()
    rejected: Lengths = Lengths()
    longer: Lengths = Lengths()

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values, without histograms."""
        named = {"prompt+chosen": self.chosen, "prompt+rejected": self.rejected, "longer": self.longer}
        return {name: lengths.to_dict() for name, lengths in named.items()}


@dataclass(frozen=True)
class TypeStats:
    """The rows of one type, such as a difficulty of CValues.

    Attributes:
        rows: Rows of this type.
        name: ``hard``, ``medium`` or ``easy`` for the three types of CValues, else empty.
        characters: Lengths of their texts in characters.
        tokens: The same in tokens; None without a tokenizer.
    """

    rows: int
    name: str = ""
    characters: Sides = Sides()
    tokens: Sides | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values."""
        tokens = {} if self.tokens is None else self.tokens.to_dict()
        return {"rows": self.rows, "characters": self.characters.to_dict(), "tokens": tokens}


@dataclass(frozen=True)
class Cut:
    """What a limit on the tokens of a sequence does to the rows.

    Attributes:
        length: The limit.
        rows: Rows that lose tokens.
        share: Their share of the usable rows, 0 to 1.
        question_lost: Those that lose the whole text of their last prompt message.
        dropped: Those that are dropped, as too little is left of them.
    """

    length: int
    rows: int
    share: float
    question_lost: int
    dropped: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values, without the limit."""
        return {name: value for name, value in vars(self).items() if name != "length"}


@dataclass(frozen=True)
class LengthGap:
    """How much longer the chosen response of a pair is than the rejected one.

    Attributes:
        unit: ``tokens``, or ``characters`` without a tokenizer. Of the bare responses.
        pairs: Pairs that were compared.
        chosen_longer: Pairs whose chosen response is longer.
        rejected_longer: Pairs whose rejected response is longer.
        by: Median of the difference where the chosen response is longer.
        rejected_by: The same where the rejected one is longer.
        mean: Mean of chosen minus rejected over all pairs.
        histogram: Of chosen minus rejected.
    """

    unit: str
    pairs: int = 0
    chosen_longer: int = 0
    rejected_longer: int = 0
    by: float = 0.0
    rejected_by: float = 0.0
    mean: float = 0.0
    histogram: Histogram = Histogram()

    @property
    def share(self) -> float:
        """Share of pairs whose chosen response is longer, 0 to 1."""
        return self.chosen_longer / self.pairs if self.pairs else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values, without the histogram."""
        return {name: value for name, value in vars(self).items() if name != "histogram"} | {"share": self.share}


@dataclass(frozen=True)
class Repeats:
    """Rows that share their prompt with another row.

    Attributes:
        rows: Rows of all groups together.
        groups: Groups of rows with one prompt.
        first: The numbers of the first two rows, from 0, of the largest groups.
    """

    rows: int = 0
    groups: int = 0
    first: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Prompts:
    """Prompts that occur more than once.

    Attributes:
        distinct: Different prompts.
        repeated: Rows whose prompt is equal to that of another row.
        near: Rows whose prompt is equal or very like to that of another row: an estimated Jaccard similarity of 0.8 or
            more of their character trigrams, case, punctuation and white space aside. None if the package rensa is
            not installed.
    """

    distinct: int = 0
    repeated: Repeats = Repeats()
    near: Repeats | None = None


@dataclass(frozen=True)
class Shared:
    """Prompts that the rows share with other data, such as an evaluation set.

    Attributes:
        source: The name of the other data.
        rows: Rows of the other data.
        shared: Rows here whose prompt is equal to one there.
        shared_prompts: Different prompts among them.
        near: Rows here whose prompt is equal or very like to one there; None as for `Prompts`.
        first: The numbers of the first shared rows, from 0.
    """

    source: str
    rows: int
    shared: int
    shared_prompts: int
    near: int | None = None
    first: tuple[int, ...] = ()


@dataclass(frozen=True)
class Padding:
    """What a batching rule makes of the rows in an epoch on one rank.

    Attributes:
        rule: The rule as it is written in Python.
        padding: Share of the cells that is padding, 0 to 1.
        tokens: Tokens of an epoch.
        cells: Tokens and padding of an epoch.
        steps: Steps of an epoch.
        shapes: Different widths that batches have.
    """

    rule: str
    padding: float
    tokens: int
    cells: int
    steps: int
    shapes: int


@dataclass(frozen=True)
class Suggested:
    """Options that fit the rows.

    Attributes:
        max_length: A multiple of 64 that keeps 99 % of the rows whole.
        max_shapes: Widths of `Bucket`: more of them save little padding.
        pack: Tokens of a row of `Pack`.
    """

    max_length: int
    max_shapes: int
    pack: int
