"""`Stats`, the result of `mps.stats`, with its form as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ms_prefstream.stats.parts import (
    Cut,
    Histogram,
    LengthGap,
    Padding,
    Prompts,
    Sequences,
    Shared,
    Sides,
    Suggested,
    TypeStats,
)


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What `mps.stats` counted; `print` shows it.

    Attributes:
        source: The name of the source.
        rows: Rows that were read, the dropped ones included.
        kinds: Rows by what they hold: ``pairs``, ``responses`` (a prompt with one response), ``prompts``, with
            ``tokenized`` in front where a row holds ids, and ``cached`` for samples of a cache. Rows that cannot be
            read are in none of them.
        formats: The presets that read the first rows, the most frequent first.
        tokenizer: The name of the tokenizer; None without one.
        characters: Lengths of the texts in characters, of all rows that could be read.
        tokens: The same in tokens of the bare texts; None without a tokenizer.
        sequences: Tokens of what batches hold, of the usable rows; None without a tokenizer.
        by_type: The rows of each type (``pos_type>neg_type`` of CValues), the most frequent first.
        cut: What limits do to the usable rows, ascending; empty without a tokenizer.
        gap: How much longer chosen responses are.
        prompts: Prompts that repeat.
        against: Prompts shared with other data; None if none were given.
        dropped: Rows that no stream would use, by reason, the most frequent first.
        unread: Fields that hold something and that nothing reads, with how many rows hold them.
        origins: Where the first rows with a reason of `dropped`, or with a field of `unread`, come from.
        padding: What each batching rule makes of the rows: ``pad``, ``bucket`` (multiples of 64), ``bucket_max_shapes``
            and ``pack``; empty without a tokenizer.
        max_length: The limit that `padding` was computed with: that of the task, else the suggested one.
        batch_size: Rows of a step that `padding` was computed with.
        suggested: Options that fit; None without a tokenizer.
        seconds: How long it took.
    """

    source: str
    rows: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    tokenizer: str | None = None
    characters: Sides
    tokens: Sides | None = None
    sequences: Sequences | None = None
    by_type: Mapping[str, TypeStats] = field(default_factory=dict)
    cut: tuple[Cut, ...] = ()
    gap: LengthGap
    prompts: Prompts
    against: Shared | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    padding: Mapping[str, Padding] = field(default_factory=dict)
    max_length: int | None = None
    batch_size: int = 8
    suggested: Suggested | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def usable(self) -> int:
        """Rows that a stream would use."""
        return self.rows - sum(self.dropped.values())

    @property
    def histograms(self) -> dict[str, Histogram]:
        """Every histogram by its name, such as ``tokens.chosen``; those without values are left out."""
        found = {"gap": self.gap.histogram}
        for name in ("characters", "tokens", "sequences"):
            sides = getattr(self, name)
            found |= {} if sides is None else {f"{name}.{side}": one.histogram for side, one in vars(sides).items()}
        return {name: histogram for name, histogram in found.items() if histogram.counts}

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the time it took as plain values for JSON. What was not counted is empty or None."""
        return {
            "rows": self.rows,
            "characters": self.characters.to_dict(),
            "tokens": {} if self.tokens is None else self.tokens.to_dict(),
            "by_type": {name: one.to_dict() for name, one in self.by_type.items()},
            "dropped": dict(self.dropped),
            "cut": {str(one.length): one.to_dict() for one in self.cut},
            "padding": {name: asdict(one) for name, one in self.padding.items()},
            "suggested": {} if self.suggested is None else asdict(self.suggested),
            "source": self.source,
            "kinds": dict(self.kinds),
            "formats": list(self.formats),
            "tokenizer": self.tokenizer,
            "sequences": {} if self.sequences is None else self.sequences.to_dict(),
            "gap": self.gap.to_dict(),
            "prompts": _plain(asdict(self.prompts)),
            "against": None if self.against is None else _plain(asdict(self.against)),
            "unread": dict(self.unread),
            "origins": {name: list(first) for name, first in self.origins.items()},
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "histograms": {name: _plain(asdict(one)) for name, one in self.histograms.items()},
        }


def _plain(value: Any) -> Any:
    """Returns a value with lists in place of tuples."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
