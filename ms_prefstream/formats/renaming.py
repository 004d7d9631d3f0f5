"""The option `fields`: the names that formats expect, and where in a row of other names their values are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.fields import names, nearest
from ms_prefstream.formats.paths import Taken, is_path, path_of, value_at
from ms_prefstream.formats.registry import standard_names

_OPTIONAL = frozenset({"system", "tools", "history", "input", "margin", "chat_template_kwargs"})
_EXAMPLE = 'such as {"prompt": "question", "chosen": "good.text", "rejected": "bad.text"}'


class Renaming:
    """The option `fields` of a stream, checked.

    ===================================  ======================================  =============================
    fields                               row                                     what the format reads
    ===================================  ======================================  =============================
    {"prompt": "q", "chosen": "a.0.t"}   {"q": "Hi", "a": [{"t": "Hello"}]}      {"prompt": "Hi", "chosen": "Hello"}
    ===================================  ======================================  =============================

    Args:
        fields: Standard name -> name of the row's field, or the dotted path to a value inside of it.
        checked: Whether the standard names must be ones that a preset reads.

    Attributes:
        sources: The fields of a row that the option names; they count as read.

    Raises:
        OptionError: It is no mapping of names to names, is empty, or has a name that no preset reads.
    """

    def __init__(self, fields: Any, checked: bool) -> None:
        if not isinstance(fields, Mapping) or not fields:
            raise OptionError(f"fields is {fields!r}; expected a mapping of standard names to the row's, {_EXAMPLE}.")
        for name, path in fields.items():
            for text in (name, path):
                if not is_path(text):
                    raise OptionError(f"fields has {name!r}: {path!r}; expected the names of two fields, {_EXAMPLE}.")
            if checked and name != path and name not in standard_names():
                guess = nearest(name, standard_names())
                raise OptionError(
                    f"fields has {name!r}: {path!r}, but no format reads a field {name!r}. "
                    + (f"Did you mean {guess!r}? " if guess else "")
                    + f"Known names: {', '.join(sorted(standard_names()))}."
                )
        self.fields: dict[str, str] = dict(fields)
        self._paths = {name: path_of(path) for name, path in fields.items()}
        self._taken = Taken(self._paths.values())
        self.sources = self._taken.fields

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the row that the format reads: with the standard names, without the fields they were taken from.

        Raises:
            RowError: missing_field when a path leads nowhere; an optional field may be missing.
        """
        found = {name: value for name, value in row.items() if name not in self.sources and name not in self.fields}
        for name, path in self._paths.items():
            try:
                found[name] = value_at(row, path)
            except LookupError as error:
                if name not in _OPTIONAL:
                    raise self._nowhere(row, name, str(error.args[0])) from None
        return found

    def left(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the format does not get of a row: fields whose names others have, and values beside a path.

        ``{"q": {"text": "Hi", "note": "x"}}`` with ``{"prompt": "q.text"}`` -> ``{"q.note": "x"}``
        """
        found = {name: row[name] for name in self.fields if name in row and name not in self.sources}
        return found | self._taken.beside(row)

    def _nowhere(self, row: Mapping[str, Any], name: str, why: str) -> RowError:
        path = self.fields[name]
        guess = nearest(path, row)
        return RowError(
            Reason.MISSING_FIELD,
            f"fields= takes {name!r} from {path!r}, but {why}; found fields: {names(row)}",
            f"Did you mean {guess!r}?" if guess else "Correct the path in fields=, or the row",
        )

    def __repr__(self) -> str:
        return repr(dict(sorted(self.fields.items())))
