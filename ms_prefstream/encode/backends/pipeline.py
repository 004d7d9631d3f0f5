"""What a tokenizer.json says about the way from text to tokens, and how it changes with the place of a text."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms_prefstream.encode.backends.spelling import META, Prefix
from ms_prefstream.encode.text import Place

Spec = dict[str, Any]  # a tokenizer.json, parsed
_EVERYWHERE = frozenset({Place.START, Place.AFTER_SPECIAL})


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The steps before the model, as far as they are understood.

    Attributes:
        kind: ``bytes`` or ``metaspace`` when the tokens spell the normalised text in that alphabet, else None.
        nfc: Whether the text is normalised to NFC first (and nothing else happens to it).
        prefix: The space set before texts, if any.
        varies: Whether the place of a text matters.
    """

    kind: str | None
    nfc: bool
    prefix: Prefix | None
    varies: bool


def steps(node: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokeniser, sequences unrolled; ``key`` is what a sequence calls its members."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        return [step for member in node.get(key, []) for step in steps(member, key)]
    return [node]


def normalizers_of(spec: Spec) -> list[dict[str, Any]]:
    """The normalisers of a tokenizer.json in their order."""
    return steps(spec.get("normalizer"), "normalizers")


def pretokenizers_of(spec: Spec) -> list[dict[str, Any]]:
    """The pre-tokenisers of a tokenizer.json in their order."""
    return steps(spec.get("pre_tokenizer"), "pretokenizers")


def read_pipeline(spec: Spec) -> Pipeline:
    """What is known about a tokenizer's steps; `kind` is None where tokens cannot be told to spell the text."""
    norms, pres = normalizers_of(spec), pretokenizers_of(spec)
    varies = at_place(spec, Place.CONTINUATION) != (spec.get("normalizer"), spec.get("pre_tokenizer"))
    kinds = [step.get("type") for step in norms]
    if pres and pres[-1].get("type") == "ByteLevel" and kinds in ([], ["NFC"]):
        prefixed = bool(pres[-1].get("add_prefix_space"))
        prefix = Prefix(mark=" ", places=_EVERYWHERE, unless_present=True) if prefixed else None
        if not prefixed or len(pres) == 1:
            return Pipeline(kind="bytes", nfc=bool(kinds), prefix=prefix, varies=varies)
    if all(map(_spaces_only, norms)) and len(pres) <= 1 and all(step.get("type") == "Metaspace" for step in pres):
        replaced = any(step.get("type") == "Replace" for step in norms) or bool(pres)
        prepends = [step for step in norms if step.get("type") == "Prepend"]
        places = _metaspace_places(pres[0]) if pres else frozenset()
        if replaced and not (prepends and places) and len(prepends) <= 1:
            chosen = _EVERYWHERE if prepends else places
            prefix = Prefix(mark=META, places=chosen, unless_present=not prepends) if chosen else None
            return Pipeline(kind="metaspace", nfc=False, prefix=prefix, varies=varies)
    return Pipeline(kind=None, nfc=False, prefix=None, varies=varies)


def at_place(spec: Spec, place: Place) -> tuple[Any, Any]:
    """(normalizer, pre_tokenizer) of a tokenizer.json for a text at `place`.

    The start of a sequence is what the file describes. Behind a special token nothing is prefixed by a Metaspace of
    scheme ``first``; a text that continues another gets no prefix of any kind.
    """
    norm, pre = copy.deepcopy(spec.get("normalizer")), copy.deepcopy(spec.get("pre_tokenizer"))
    if place is Place.START:
        return norm, pre
    for step in steps(pre, "pretokenizers"):
        if step.get("type") == "Metaspace":
            if place is Place.CONTINUATION or _scheme(step) == "first":
                step["prepend_scheme"] = "never"
                step.pop("add_prefix_space", None)
        elif step.get("type") == "ByteLevel" and place is Place.CONTINUATION and step.get("add_prefix_space"):
            step["add_prefix_space"] = False
    if place is Place.CONTINUATION:
        norm = _without_prepend(norm)
    return norm, pre


def _without_prepend(node: Any) -> Any:
    if not isinstance(node, dict) or node.get("type") == "Prepend":
        return None
    if node.get("type") == "Sequence":
        kept = [_without_prepend(member) for member in node["normalizers"]]
        return {**node, "normalizers": [member for member in kept if member is not None]}
    return node


def _spaces_only(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Prepend":
        return bool(step.get("prepend") == META)
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == META


def _scheme(step: Mapping[str, Any]) -> str:
    scheme = step.get("prepend_scheme")
    return str(scheme) if scheme else ("always" if step.get("add_prefix_space", True) else "never")


def _metaspace_places(step: Mapping[str, Any]) -> frozenset[Place]:
    if step.get("replacement", META) != META:
        return frozenset()
    return {"always": _EVERYWHERE, "first": frozenset({Place.START})}.get(_scheme(step), frozenset())
