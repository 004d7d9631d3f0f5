"""CValues-Comparison: two responses to a Chinese safety prompt, each with the type of its attitude."""

from __future__ import annotations

from collections.abc import Iterable

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.auto import TEXT, needs
from ms_prefstream.formats.base import ManyRecords, OneRecord, Row, pair_of
from ms_prefstream.formats.fields import text
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset

REFUSAL_WITH_ADVICE = "拒绝&正向建议"
REFUSAL = "拒绝为主"
RISKY = "风险回复"

DIFFICULTIES: tuple[tuple[str, str], ...] = (
    (REFUSAL_WITH_ADVICE, REFUSAL),
    (REFUSAL, RISKY),
    (REFUSAL_WITH_ADVICE, RISKY),
)
"""The three (better, worse) combinations of the data set's documentation."""

ALIASES = dict(zip(("hard", "medium", "easy"), DIFFICULTIES, strict=True))
"""Names for the combinations, by how hard the two responses are to tell apart."""


@preset(needs(prompt=TEXT, pos_resp=TEXT, neg_resp=TEXT))
def cvalues(types: Iterable[tuple[str, str] | str] | None = None) -> OneRecord | ManyRecords:
    """Reads CValues-Comparison rows; `pos_resp` is the better response, `neg_resp` the worse one.

    ``{prompt: 你好, pos_resp: 好, neg_resp: 坏, pos_type: …, neg_type: …}`` ->
    ``Pair(prompt=(user 你好), chosen=(assistant 好), rejected=(assistant 坏))``

    Args:
        types: Only rows with one of these combinations of (pos_type, neg_type); each a tuple, a string such as
            ``"拒绝为主>风险回复"``, or a name: ``hard`` (拒绝&正向建议 > 拒绝为主), ``medium`` (拒绝为主 > 风险回复) or
            ``easy`` (拒绝&正向建议 > 风险回复). None takes all rows and does not read the types.

    Raises:
        OptionError: A combination is not a pair of labels.
    """
    if types is None:
        return OneRecord("cvalues", read_cvalues)
    wanted = tuple(_combination(given) for given in ([types] if isinstance(types, str) else types))
    if not wanted:
        raise OptionError("types is empty, which would filter out every row; give combinations, or None for all rows.")
    return ManyRecords("cvalues", _read_wanted, _count_wanted, {"types": wanted}, _types)


def read_cvalues(row: Row) -> Pair:
    """Returns one row as a pair."""
    return pair_of(row, "prompt", "pos_resp", "neg_resp")


def _types(row: Row) -> str:
    return f"{text(row, 'pos_type')}>{text(row, 'neg_type')}"


def _count_wanted(row: Row, types: tuple[tuple[str, str], ...]) -> int:
    return int((text(row, "pos_type"), text(row, "neg_type")) in types)


def _read_wanted(row: Row, types: tuple[tuple[str, str], ...]) -> tuple[Pair, ...]:
    return (read_cvalues(row),) if _count_wanted(row, types) else ()


def _combination(given: tuple[str, str] | str) -> tuple[str, str]:
    if isinstance(given, str) and given in ALIASES:
        return ALIASES[given]
    labels = given.replace("＞", ">").split(">") if isinstance(given, str) else given
    if isinstance(labels, (list, tuple)) and len(labels) == 2 and all(isinstance(label, str) for label in labels):
        return labels[0].strip(), labels[1].strip()
    known = ", ".join(f"({better!r}, {worse!r})" for better, worse in DIFFICULTIES)
    raise OptionError(
        f"types has {given!r}; expected 'hard', 'medium', 'easy', or pairs (pos_type, neg_type) such as {known}."
    )
