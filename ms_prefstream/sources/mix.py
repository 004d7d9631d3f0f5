"""`mps.mix`: several sources in one stream, each with its share of the rows."""

from __future__ import annotations

import itertools
import numbers
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from ms_prefstream.checks import checked_call, is_positive
from ms_prefstream.errors import OptionError
from ms_prefstream.sources.base import RandomAccess, Source
from ms_prefstream.sources.concat import joined_fingerprint
from ms_prefstream.sources.copies import LOCAL, Remote
from ms_prefstream.sources.open import open_item, open_source


@checked_call
@dataclass(frozen=True)
class Part:
    """One source of a mix.

    Attributes:
        source: Anything that `stream` takes as a source, except a mix.
        weight: Its share, in proportion to the other weights: positive, 0.7 as well as 7. None in all parts shares
            equally, or by size with `temperature`.
        format: Its own format, as for `stream`; None uses the stream's.
        name: What the report calls it; None uses the source's own name.
        fields: Standard name -> its rows' field, as for `stream`; None uses the stream's.
    """

    source: Any
    weight: Any = None
    format: Any = None
    name: str | None = None
    fields: Any = None

    def __post_init__(self) -> None:
        if self.weight is not None and not is_positive(self.weight):
            remedy = " Leave the part out instead." if self.weight == 0 else ""
            raise OptionError(f"weight is {self.weight!r}; expected a positive number.{remedy}")
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise OptionError(f"name is {self.name!r}; expected a name for the part, as a string.")


class OpenedPart(NamedTuple):
    """Part whose source is open."""

    name: str  # what the report calls it, unique among the parts
    source: Source
    format: Any  # None for the stream's
    fields: Any = None  # likewise


@dataclass(frozen=True, eq=False)
class Mix:
    """Sources that share a stream, each with its format, so that it is no source itself. Created by `mps.mix`.

    Attributes:
        parts: The parts, in the order given.
        given_weights: A weight for each part, as long as their sizes do not count.
        stop: ``first`` or ``all``: when an epoch ends.
        temperature: Of weights by size, or None.
    """

    parts: tuple[OpenedPart, ...]
    given_weights: list[float | Fraction]
    stop: Literal["first", "all"]
    temperature: float | None

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"the mix of {', '.join(part.name for part in self.parts)}"

    @property
    def random_access(self) -> bool:
        """True if rows can be read in any order: every part must allow it."""
        return all(isinstance(part.source, RandomAccess) for part in self.parts)

    def weights(self, sizes: Sequence[int] | None) -> list[float | Fraction]:
        """Returns the weight of each part.

        Args:
            sizes: Records of each part; only weights by size need them.
        """
        if self.temperature is None or sizes is None:
            return self.given_weights
        if self.temperature == 1:
            return list(sizes)  # exact: every row once
        largest = max(sizes)
        return [(size / largest) ** (1 / self.temperature) for size in sizes]

    def fingerprint(self) -> str:
        """Returns a hash of the parts' fingerprints in their order; weights do not count."""
        return joined_fingerprint([part.source for part in self.parts])


def open_rows(source: Any, remote: Remote = LOCAL) -> Any:
    """Returns the opened source for what a user passed, see `open_source`; a mix is open already."""
    return source if isinstance(source, Mix) else open_source(source, remote)


def parts_of(source: Any) -> list[Any]:
    """Returns the opened sources of a mix; of any other source, the source itself."""
    return [part.source for part in source.parts] if isinstance(source, Mix) else [source]


@checked_call
def mix(
    parts: Sequence[Any],
    *,
    stop: Literal["first", "all"] = "first",
    temperature: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Mix:
    """Returns several sources as one, with exact shares.

        mps.mix([("helpful.jsonl", 0.7), ("harmless.jsonl", 0.3)])

    Shares are counted, not drawn: after any number of rows each part is within a row or so of its share (half a row
    with two parts, below 1 with four, below 1.7 always), and every epoch has the same shares. Where batches are
    sorted by length the shares hold for every window, otherwise for every step. Where all parts can be read in any
    order, a step is still a pure function of its number; each part is shuffled separately. With a part that can only be
    read from the front, the whole mix is read from the front: rows are shuffled within windows, and all parts begin at
    their first row in every epoch, so that ``stop="first"`` takes the same rows of longer parts each time.

    Args:
        parts: ``(source, weight)``, a bare source, or `Part` for a part with its own format or name. Give weights to
            all parts or to none: without them all parts share equally, or by size with `temperature`.
        stop: When an epoch ends. ``first``: as soon as a part has no row left for its turn, so no row comes twice;
            each epoch takes other rows of longer parts. ``all``: when every row of every part was delivered; shorter
            parts repeat, which the report counts.
        temperature: Weights by size: size ** (1 / temperature). 1 is in proportion to the sizes, larger values bring
            the shares closer together. The size of every part must be known.
        storage_options: Credentials and addresses of the stores of URLs, as for `ms_prefstream.stream`.
        cache_dir: Folder of the local copies of remote files, likewise.

    Raises:
        OptionError: No parts, a weight that is not positive, weights for some parts only, or options that contradict.
        SourceError: A part cannot be opened.
    """
    if isinstance(parts, (str, bytes)) or not isinstance(parts, Sequence) or not parts:
        found = f"an object of type {type(parts).__name__}" if parts else "an empty list"
        raise OptionError(f"mix got {found}; expected a list such as [(source, weight), (source, weight)].")
    if stop not in ("first", "all"):
        raise OptionError(f"stop is {stop!r}; expected 'first' or 'all'.")
    given = [_as_part(number, entry) for number, entry in enumerate(parts)]
    weights = _checked_weights(given, temperature)
    remote = Remote(storage_options=storage_options, cache_dir=cache_dir)
    sources = [_open(number, part, remote) for number, part in enumerate(given)]
    if temperature is not None:
        _check_temperature(temperature, sources)
    names = _names(given, sources)
    opened = [
        OpenedPart(name, source, part.format, part.fields)
        for name, source, part in zip(names, sources, given, strict=True)
    ]
    return Mix(tuple(opened), weights, stop, temperature)


def _as_part(number: int, entry: Any) -> Part:
    if isinstance(entry, Part):
        return entry
    # A tuple of two paths is a source: only with a number is it a source and its weight.
    if isinstance(entry, tuple) and len(entry) == 2 and any(isinstance(item, numbers.Real) for item in entry):
        try:
            return Part(*entry)
        except OptionError as error:
            raise OptionError(f"Item {number} of the mix, (source, weight): {error}") from error
    return Part(entry)


def _checked_weights(parts: Sequence[Part], temperature: float | None) -> list[float | Fraction]:
    without = [number for number, part in enumerate(parts) if part.weight is None]
    if without and len(without) < len(parts):
        raise OptionError(
            f"Item {without[0]} of the mix has no weight, but others have. Give every part a weight, or none "
            "(then all share equally, or by size with temperature=)."
        )
    if temperature is not None and not without:
        raise OptionError(
            f"temperature={temperature!r} makes the weights from the sizes of the parts, but weights are given. "
            "Leave one of the two out."
        )
    weights = [1 if part.weight is None else part.weight for part in parts]
    return [Fraction(weight) if isinstance(weight, numbers.Rational) else float(weight) for weight in weights]


def _open(number: int, part: Part, remote: Remote) -> Source:
    if isinstance(part.source, (Mix, Part)):
        raise OptionError(
            f"Item {number} of the mix is a {type(part.source).__name__}, expected a source. Put all parts into one "
            "mix, and multiply the weights of inner ones with the weight of their group."
        )
    return open_item(f"Item {number} of the mix", part.source, remote)


def _check_temperature(temperature: Any, sources: Sequence[Source]) -> None:
    if not is_positive(temperature):
        raise OptionError(f"temperature is {temperature!r}; expected a positive number, 1 for weights by size.")
    for source in sources:
        if not isinstance(source, RandomAccess):
            raise OptionError(
                f"temperature={temperature!r} needs the size of every part, but {source.name} can only be read from "
                "the front. Give weights instead."
            )


def _names(parts: Sequence[Part], sources: Sequence[Source]) -> list[str]:
    """Returns a name for each part: as given, else the source's, numbered where several are the same."""
    names = [part.name for part in parts if part.name is not None]
    for name, count in Counter(names).items():
        if count > 1:
            raise OptionError(f"Two parts of the mix are named {name!r}; expected a name of its own for each.")
    found = []
    for part, source in zip(parts, sources, strict=True):
        numbered = (f"{source.name} ({number})" for number in itertools.count(2))
        name = part.name or next(one for one in itertools.chain([source.name], numbered) if one not in names)
        names.append(name)
        found.append(name)
    return found
