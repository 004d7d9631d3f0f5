"""Control tokens that a model would make out of plain text, and how that is prevented.

Some files hold a control token in the vocabulary in such a way that ordinary text reaches it: InternLM2's
tokenizer.json merges ``<s`` and ``>`` to the id of BOS. SentencePiece never does that, and neither do we.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.pipeline import Spec


def drop_leaking_merges(spec: Spec, control: Iterable[str]) -> bool:
    """Take the merges that make a control token out of a BPE model; whether there were any."""
    model = spec["model"]
    merges = model.get("merges")
    if not merges:
        return False
    names = frozenset(control)
    made = merged_tokens(merges)
    if names.isdisjoint(made):
        return False
    model["merges"] = [merge for merge, token in zip(merges, made, strict=True) if token not in names]
    return True


def merged_tokens(merges: Sequence[str] | Sequence[Sequence[str]]) -> list[str]:
    """The tokens that merges make, from either way of writing them (``"a b"`` or ``["a", "b"]``)."""
    if not merges or not isinstance(merges[0], str):
        return list(map("".join, merges))
    made = "\n".join(merges).replace(" ", "").split("\n")  # type: ignore[arg-type]
    if len(made) == len(merges):
        return made
    return [str(merge).replace(" ", "", 1) for merge in merges]  # some token holds a line break


class Leaks:
    """Spells leaked control ids in smaller pieces.

    Args:
        control: Control tokens, content to id.
        encode: Ids of a text, control tokens in it taken as text.
        pieces: Ids that the model alone gives for a string.
    """

    def __init__(
        self,
        control: Mapping[str, int],
        encode: Callable[[str], NDArray[np.int32]],
        pieces: Callable[[str], list[int]],
    ) -> None:
        names = {id_: content for content, id_ in control.items()}
        leaked = {int(i) for content in control if content for i in encode(content) if int(i) in names}
        self._smaller: dict[int, list[int]] = {}
        for id_ in leaked:
            content = names[id_]
            cuts = [pieces(content[:at]) + pieces(content[at:]) for at in range(1, len(content))]
            safe = [cut for cut in cuts if not any(i in names for i in cut)]
            self._smaller[id_] = min(safe, key=len) if safe else []

    def __bool__(self) -> bool:
        return bool(self._smaller)

    @property
    def helpless(self) -> list[int]:
        """Control ids for which no smaller pieces exist: their text cannot be written at all."""
        return [id_ for id_, pieces in self._smaller.items() if not pieces]

    def mend(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The ids with every leaked control id spelled out."""
        return ids if not self._touches(ids) else np.array([i for id_ in ids for i in self._spelled(id_)], np.int32)

    def mend_starts(self, ids: NDArray[np.int32], starts: list[int]) -> list[int]:
        """The starts, (n,), of `mend(ids)` from those of `ids`."""
        if not self._touches(ids):
            return starts
        return [
            s for id_, start in zip(ids, starts, strict=True) for s in [start, *[-1] * (len(self._spelled(id_)) - 1)]
        ]

    def _touches(self, ids: NDArray[np.int32]) -> bool:
        return any((ids == id_).any() for id_ in self._smaller)

    def _spelled(self, id_: int) -> list[int]:
        return self._smaller.get(int(id_), [int(id_)])
