"""The options `template` and `template_variables`: their text, their values, and the day that a template gets."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from ms_prefstream.disk import read_file
from ms_prefstream.encode.jinja import names_in
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, TemplateError

_RESERVED = ("messages", "tools", "add_generation_prompt")


def template_text(template: str | None, tokenizer: Tokenizer) -> str | None:
    """Returns the Jinja source that an option stands for; None joins prompt and response as text.

    Args:
        template: ``auto`` (the tokenizer's own if it has one), ``chat`` (the tokenizer's own, which it must have),
            Jinja source, the path of a ``.jinja`` file, or None.
        tokenizer: May have a chat template.
    """
    if template == "auto":
        return tokenizer.chat_template
    if template == "chat":
        if tokenizer.chat_template is None:
            raise TemplateError(
                f'template="chat" needs a tokenizer with a chat template, and {tokenizer.name} has none. '
                "Pass the Jinja text as template=, or template=None to join prompt and response as text."
            )
        return tokenizer.chat_template
    return given_text(template)


def given_text(template: str | None) -> str | None:
    """Returns the Jinja source of an option that is Jinja source itself, the path of a ``.jinja`` file, or None."""
    if template is None:
        return None
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return template
    if isinstance(template, str) and template.endswith(".jinja"):
        path = pathlib.Path(template)
        try:
            return read_file(path, TemplateError, "the template").decode("utf-8")
        except FileNotFoundError:
            raise TemplateError(f"template file {template} does not exist. Give the path of a Jinja file.") from None
        except UnicodeDecodeError as error:
            raise TemplateError(f"template file {template} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    raise OptionError(
        f"template is {template!r}; expected 'auto', 'chat', None, Jinja text (with {{{{ }}}} or {{% %}}), or the path "
        "of a .jinja file."
    )


def template_hash(text: str | None) -> str | None:
    """Returns a short hash of a template's text; None for None."""
    return None if text is None else hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def checked_variables(variables: Any) -> dict[str, Any]:
    """Returns the option ``template_variables`` as JSON would hold it.

    Raises:
        OptionError: It cannot be used.
    """
    if variables is None:
        return {}
    problem = variables_problem(variables)
    if problem is not None:
        raise OptionError(f"template_variables {problem}.")
    found: dict[str, Any] = json.loads(json.dumps(dict(variables)))
    return found


def variables_problem(variables: Any) -> str | None:
    """Returns what is wrong with template variables, as the end of a sentence; None if they can be used."""
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        return f"are {variables!r}; expected a mapping from names to plain values"
    for name, value in variables.items():
        if name in _RESERVED:
            return f"state {name!r}, which is the row's own; expected another name"
        if not _is_plain(value):
            return f"state {name!r} as {value!r}; expected a value that JSON can hold"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


def unread_variables(template: str, variables: Mapping[str, Any]) -> list[str]:
    """Returns the names of variables that a template does not read."""
    names = names_in(template)
    return [name for name in variables if name not in names and not (name == "date_string" and "strftime_now" in names)]


def first_day(template: str | None, variables: Mapping[str, Any]) -> str | None:
    """Returns today, as an ISO date, if a template asks for the date and the variables do not state it.

    Raises:
        OptionError: They state it in a form that the template cannot use.
    """
    names = frozenset() if template is None else names_in(template)
    if "strftime_now" not in names:
        return None
    if "date_string" not in variables:
        return datetime.date.today().isoformat()
    if "date_string" not in names and stated_day(variables["date_string"]) is None:
        raise OptionError(
            f"date_string in template_variables is {variables['date_string']!r}; expected a date such as '2024-07-26', "
            "since the template writes it in a form of its own."
        )
    return None


def stated_day(text: Any) -> datetime.date | None:
    """Returns the day that a ``date_string`` states, in one of the usual forms; None if it is in another form."""
    for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y"):
        with contextlib.suppress(TypeError, ValueError):
            return datetime.datetime.strptime(text, form).date()
    return None


def is_day(value: Any) -> bool:
    """Returns whether a value of a saved file is a day in ISO form."""
    with contextlib.suppress(TypeError, ValueError):
        return bool(datetime.date.fromisoformat(value).isoformat() == value)
    return False
