"""The check of a whole number that the batching options share."""

from __future__ import annotations

import operator

import numpy as np

from ms_prefstream.errors import OptionError


def whole_number(owner: str, option: str, value: object, minimum: int = 1) -> int:
    """The value as a plain int, if it is a whole number that is large enough.

    Args:
        owner: The class the option belongs to, for the message.
        option: The option's name, as the user types it.
        value: What was given. numpy integers are accepted; True, 8.0 and "8" are not.
        minimum: The smallest value allowed.

    Returns:
        The value as an int.

    Raises:
        OptionError: If it is no whole number or smaller than `minimum`.
    """
    expected = f"it must be a whole number of at least {minimum}"
    if isinstance(value, (bool, np.bool_)):
        raise OptionError(f"{owner}: {option} is {value!r}; {expected}, not a truth value.")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what it is not made for, it refuses
    except TypeError:
        raise OptionError(f"{owner}: {option} is {value!r} ({type(value).__name__}); {expected}.") from None
    if number < minimum:
        raise OptionError(f"{owner}: {option} is {number}; {expected}.")
    return number
