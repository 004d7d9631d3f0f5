"""Equal and nearly equal prompts: groups by hash, and by MinHash signatures with the package rensa.

A signature has 64 slots. Two prompts have equal slots in proportion to the Jaccard similarity of their character
trigrams, so 52 equal slots mean an estimate of 0.8. Comparing all pairs is avoided by bands: prompts that agree in 4
consecutive slots are compared, which finds 99.9 % of the pairs with a similarity of 0.8. Only the low 16 bits of a slot
are kept, so that a signature takes 128 bytes and a band is one 64-bit number.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SLOTS = 64
_SEED = 1
_ALIKE = 52  # equal slots, of 64
_LETTERS = 3  # of a shingle
_SPACE = re.compile(r"[\W_]+")


def is_installed() -> bool:
    """Returns whether near duplicates can be found."""
    return importlib.util.find_spec("rensa") is not None


def signatures(texts: Sequence[str | None]) -> NDArray[np.uint16]:
    """Returns the signature of each text, (n, 64); all zeros for None."""
    from rensa import RMinHash

    some = [number for number, text in enumerate(texts) if text is not None]
    found = np.zeros((len(texts), SLOTS), np.uint16)
    if some:
        sets = [_shingles(texts[number] or "") for number in some]
        found[some] = np.array(RMinHash.digests_from_token_sets(sets, num_perm=SLOTS, seed=_SEED), np.uint32) & 0xFFFF
    return found


def _shingles(text: str) -> list[str]:
    """Returns the character trigrams of a text, without case, punctuation and white space."""
    letters = _SPACE.sub("", text.casefold()) or text
    return [letters[begin : begin + _LETTERS] for begin in range(max(1, len(letters) - _LETTERS + 1))]


def near_groups(groups: NDArray[np.int64], signatures: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Returns the groups of rows with equal or nearly equal prompts, (n,).

    Prompts that are alike are in one group, also where they are linked by others only. Groups are named by the smallest
    number among the groups of equal prompts that they consist of.

    Args:
        groups: (n,) the groups of equal prompts.
        signatures: (n, 64) the signature of each row's prompt.
    """
    _, first = np.unique(groups, return_index=True)  # one row for each group, as its prompt says all
    distinct = signatures[first]
    known = distinct.any(axis=1)
    bands = np.ascontiguousarray(distinct).view(np.uint64)  # (m, 16)
    labels = np.arange(len(distinct))
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        begins = np.flatnonzero(np.concatenate(([True], np.diff(band[order]) != 0)))
        heads = order[np.repeat(begins, np.diff(np.append(begins, len(order))))]
        for other in (heads[1:], order[:-1]):  # the first of the band, and the one before
            one = order[1:]
            unknown = (band[one] == band[other]) & (labels[one] != labels[other]) & known[one] & known[other]
            one, other = one[unknown], other[unknown]
            alike = _equal_slots(distinct, one, other) >= _ALIKE
            labels = _linked(labels, one[alike], other[alike])
    return labels[groups]


def _equal_slots(
    signatures: NDArray[np.uint16], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns how many slots agree in each pair of rows, (k,); some pairs at a time."""
    step = 1 << 16
    found = [
        (signatures[left[begin : begin + step]] == signatures[right[begin : begin + step]]).sum(axis=1)
        for begin in range(0, len(left), step)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _linked(labels: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the labels of all rows after links between some: the smallest one among the rows that are linked."""
    while len(left):
        before, least = labels.copy(), np.minimum(labels[left], labels[right])
        np.minimum.at(labels, labels[left], least)
        np.minimum.at(labels, labels[right], least)
        labels = labels[labels]
        if np.array_equal(labels, before):
            break
    return labels
