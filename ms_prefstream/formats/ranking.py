"""Pairs from ranked lists, by a named policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ms_prefstream.checks import whole_number
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.base import ManyRecords, OneRecord
from ms_prefstream.formats.divide import divide
from ms_prefstream.formats.record import Pair, Ranked

Policy: TypeAlias = Literal["all", "adjacent", "best_worst"]

ReadRanked: TypeAlias = Callable[[Mapping[str, Any]], Ranked]
ReadScores: TypeAlias = Callable[[Mapping[str, Any]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The policy that selects pairs of a ranked list. Equal scores never form a pair.

    For scores 3, 2, 1: ``all`` gives 3>2, 3>1, 2>1; ``adjacent`` gives 3>2, 2>1; ``best_worst`` gives 3>1.

    Args:
        policy: ``"all"``; ``"adjacent"`` (neighbours in the order of scores); ``"best_worst"``.
        max_pairs: At most so many pairs a row: those with the largest margins, ties in the order of the list.
        min_margin: Only pairs whose scores differ by at least this.
    """

    policy: Policy = "all"
    max_pairs: int | None = None
    min_margin: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise OptionError(f"policy is {self.policy!r}; allowed: 'all', 'adjacent', 'best_worst'.")
        if self.max_pairs is not None:
            whole_number("max_pairs", self.max_pairs, 1)
        if self.min_margin is not None and not self.min_margin >= 0:
            raise OptionError(f"min_margin is {self.min_margin!r}; expected a number from 0 on, or None for no limit.")

    def indices(self, scores: Sequence[float]) -> list[tuple[int, int]]:
        """Returns (better, worse) positions in the list, the pairs of the best response first."""
        order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: equal scores keep the list's order
        if self.policy == "all":
            candidates = [(a, b) for place, a in enumerate(order) for b in order[place + 1 :]]
        elif self.policy == "adjacent":
            candidates = list(itertools.pairwise(order))
        else:
            candidates = [(order[0], order[-1])] if order else []
        least = self.min_margin or 0.0
        pairs = [(a, b) for a, b in candidates if scores[a] > scores[b] and scores[a] - scores[b] >= least]
        if self.max_pairs is not None and len(pairs) > self.max_pairs:
            by_margin = sorted(range(len(pairs)), key=lambda i: scores[pairs[i][1]] - scores[pairs[i][0]])
            pairs = [pairs[i] for i in sorted(by_margin[: self.max_pairs])]
        return pairs


def ranked_pairs(row: Mapping[str, Any], read: ReadRanked, scores: ReadScores, pairing: Pairing) -> tuple[Pair, ...]:
    """Returns the pairs of a row; the margin is the difference of the scores. Only `count_pairs` uses `scores`."""
    ranked = read(row)
    return tuple(_pair(ranked, a, b) for a, b in pairing.indices([score for _, score in ranked.responses]))


def count_pairs(row: Mapping[str, Any], read: ReadRanked, scores: ReadScores, pairing: Pairing) -> int:
    """Returns how many pairs a row gives, from its scores alone."""
    return len(pairing.indices(scores(row)))


def best_and_worst(row: Mapping[str, Any], read: ReadRanked) -> Pair:
    """Returns the one pair of the best and the worst response.

    Raises:
        RowError: tie when all scores are equal.
    """
    ranked = read(row)
    found = [score for _, score in ranked.responses]
    pairs = Pairing(policy="best_worst").indices(found)
    if not pairs:
        raise RowError(Reason.TIE, f"all scores are equal ({found[:8]}); expected at least two different ones")
    return _pair(ranked, *pairs[0])


def ranked_format(name: str, read: ReadRanked, scores: ReadScores, pairing: Pairing) -> OneRecord | ManyRecords:
    """Returns the format of a preset for ranked lists.

    The best against the worst without a least margin is one pair for every row, so no pairs have to be counted.
    """
    if pairing.policy == "best_worst" and pairing.min_margin is None:
        return OneRecord(name, best_and_worst, {"read": read})
    return ManyRecords(name, ranked_pairs, count_pairs, {"read": read, "scores": scores, "pairing": pairing})


def _pair(ranked: Ranked, better: int, worse: int) -> Pair:
    (chosen, high), (rejected, low) = ranked.responses[better], ranked.responses[worse]
    sides = (f"response {better + 1}", f"response {worse + 1}")
    prompt, chosen, rejected = divide(ranked.prompt, chosen, rejected, sides=sides)
    return Pair(prompt, chosen, rejected, high - low, ranked.tools)
