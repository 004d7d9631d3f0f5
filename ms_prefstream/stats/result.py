"""`Stats`, the result of `mps.stats`, with its forms as JSON and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ms_prefstream.lines import counted
from ms_prefstream.stats.parts import (
    Cut,
    Histogram,
    LengthGap,
    Lengths,
    Padding,
    Prompts,
    Repeats,
    Sequences,
    Shared,
    Sides,
    Suggested,
    TypeStats,
)
from ms_prefstream.stats.show import (
    COLUMNS,
    Line,
    bars,
    fitted,
    labelled,
    lengths_row,
    listed,
    percent,
    places,
    safe,
    shortened,
    table_head,
)

_MOST_TYPES = 6
_RULE = 40  # columns of a batching rule


@dataclass(frozen=True, kw_only=True, repr=False)
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
        dropped: Rows that no stream would use, whatever its limits, by reason, the most frequent first.
        unread: Fields that hold something and that nothing reads, with how many rows hold them.
        origins: Where the first dropped rows come from, by reason; under ``unread NAME`` those with such a field.
        padding: What each batching rule makes of the rows: ``pad``, ``bucket`` (multiples of 64), ``bucket_max_shapes``
            and ``pack``; empty without a tokenizer.
        max_length: The limit that `padding` was computed with: that of the task, else the suggested one. Longer rows
            count as cut to it, or as dropped if the task drops them.
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

    def lines(self, flags: bool = False) -> Iterator[Line]:
        """Yields what a terminal shows.

        Args:
            flags: Whether options are named as on the command line.
        """
        read = f"read in {self.seconds:,.1f} s" if self.seconds else ""
        names = [safe(one) for one in (self.source.rpartition("/")[2], *self.formats, self.tokenizer or "") if one]
        head = " · ".join([names[0], counted(self.rows), *names[1:]])
        yield [("", fitted(head, COLUMNS - len(read) - 2) + f"  {read}" if read else shortened(head))]
        yield []
        if self.kinds:
            yield table_head()
        yield from _length_lines(vars(self.characters), "characters")
        if self.tokens is not None:
            yield from _length_lines(vars(self.tokens), "tokens")
        if self.sequences is not None:
            sequences = {f"prompt+{side}": getattr(self.sequences, side) for side in ("chosen", "rejected")}
            yield from _length_lines(sequences, "with template")
        yield from self._type_lines()
        if self.kinds:
            yield []
        yield from self._finding_lines(flags)
        if self.suggested is not None:
            yield []
            yield from self._rule_lines(self.suggested, flags)

    def _type_lines(self) -> Iterator[Line]:
        if not self.by_type:
            return
        yield []
        for name, one in list(self.by_type.items())[:_MOST_TYPES]:
            yield [("", shortened(f"{one.name}  {safe(name)}".strip()))]
            has_tokens = one.tokens is not None and one.tokens.prompt.count
            sides = one.tokens if one.tokens is not None and has_tokens else one.characters
            yield from _length_lines(vars(sides), "tokens" if has_tokens else "characters", indent="  ")
        if (left := len(self.by_type) - _MOST_TYPES) > 0:
            yield [("", f"and {left:,} more types")]

    def _finding_lines(self, flags: bool) -> Iterator[Line]:
        if self.kinds and self.kinds.keys() != {"pairs"}:
            yield labelled("rows hold", listed(f"{kind} {count:,}" for kind, count in self.kinds.items()))
        longer = None if self.sequences is None else self.sequences.longer
        if longer is not None and longer.count:
            yield labelled("longer side", bars(longer.histogram, "tokens"))
        else:
            for side in ("chosen", "rejected"):
                if (lengths := getattr(self.characters, side)).count:
                    yield labelled(side, bars(lengths.histogram, "characters"), side)
        if self.cut:
            yield labelled("cut at", listed(f"{one.length} {percent(one.share)}" for one in self.cut))
            for label, name in (("question lost at", "question_lost"), ("dropped at", "dropped")):
                lost = [f"{one.length} {counted(getattr(one, name))}" for one in self.cut if getattr(one, name)]
                if lost:
                    yield labelled(label, listed(lost), "attention")
        gap = self.gap
        if gap.pairs:
            text = f"{percent(gap.share)} of pairs"
            if gap.chosen_longer:
                text += f", by {gap.by:,.0f} {gap.unit} at the median"
            yield labelled("chosen is longer", text)
            yield labelled("chosen - rejected", bars(gap.histogram, gap.unit))
        yield from self._prompt_lines(flags)
        if self.dropped:
            parts = [
                f"{reason} {count:,} ({places(self.origins[reason], count)})" for reason, count in self.dropped.items()
            ]
            yield labelled("dropped", listed(parts), "attention")
        if self.unread:
            fields = [f"{safe(name)} {count:,}" for name, count in self.unread.items()]
            yield labelled("fields nobody reads", listed(fields), "attention")
        if self.tokens is None:
            how = "--tokenizer DIRECTORY" if flags else "tokenizer="
            yield labelled("tokens and padding", f"not counted: pass {how}")

    def _prompt_lines(self, flags: bool) -> Iterator[Line]:
        repeated, near = self.prompts.repeated, self.prompts.near
        if self.prompts.distinct:
            how = " (--dedup prompt)" if flags else ' (dedup="prompt")'
            text = _groups(repeated) + (how if repeated.rows else "")
            yield labelled("prompts that repeat", text, "attention" if repeated.rows else "")
            if near is not None:
                yield labelled("equal or nearly so", _groups(near), "attention" if near.rows else "")
            else:
                yield labelled("nearly equal ones", 'not counted: pip install "ms-prefstream[report]"')
        if (other := self.against) is not None:
            text = f"{counted(other.shared)} with one of {safe(other.source.rpartition('/')[2])}"
            if other.first:
                text += f", such as row {other.first[0]}"
            if other.near is not None:
                text += f" (nearly: {other.near:,})"
            yield labelled("prompts shared", text, "attention" if other.shared or other.near else "")

    def _rule_lines(self, suggested: Suggested, flags: bool) -> Iterator[Line]:
        heads = "".join(f"{head:>14}" for head in ("padding", "steps", "widths", "tokens"))
        limit = f"--max-length {self.max_length}" if flags else f"max_length={self.max_length}"
        yield [("", fitted(f"an epoch, {limit}", _RULE) + heads)]
        for one in self.padding.values():
            cells = (percent(one.padding), f"{one.steps:,}", f"{one.shapes:,}", f"{one.tokens:,}")
            yield [("", fitted(one.rule, _RULE) + "".join(f"{cell:>14}" for cell in cells))]
        parts = [
            f"--max-length {suggested.max_length}" if flags else f"max_length={suggested.max_length}",
            f"--max-shapes {suggested.max_shapes}"
            if flags
            else f"Bucket({self.batch_size}, max_shapes={suggested.max_shapes})",
        ]
        if "pack" in self.padding:
            parts.append(f"or --pack {suggested.pack}" if flags else f"or Pack({suggested.pack})")
        yield labelled("try", "   ".join(parts))

    def __str__(self) -> str:
        return "\n".join("".join(text for _, text in line).rstrip() for line in self.lines())

    __repr__ = __str__

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


def _length_lines(sides: Mapping[str, Lengths], note: str, indent: str = "") -> Iterator[Line]:
    """Yields a line for each side that has lengths; the note stands beside the first."""
    for side, lengths in sides.items():
        if lengths.count:
            yield lengths_row(f"{indent}{side}", lengths, note, side.rpartition("+")[2])
            note = ""


def _groups(repeats: Repeats) -> str:
    """Returns how many rows are in how many groups, and where to look."""
    if not repeats.rows:
        return "none"
    one, other = repeats.first[0]
    return f"{counted(repeats.rows)} in {counted(repeats.groups, 'group')}, such as rows {one} and {other}"


def _plain(value: Any) -> Any:
    """Returns a value with lists in place of tuples."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
