"""Checks of option values that several folders share."""

from __future__ import annotations

import math
import numbers
import operator
import reprlib

import numpy as np

from ms_prefstream.errors import OptionError

WORD = 2**32 - 1
"""The largest seed and epoch: one 32-bit word each, so that no two (seed, epoch) pairs seed the same sequence."""


def whole_number(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Returns the value as a plain int (numpy integers are accepted, booleans and floats are not).

    Args:
        name: The option, as the user typed it.
        value: The given value.
        minimum: The smallest allowed value.
        maximum: The largest allowed value; None for no bound.

    Raises:
        OptionError: It is not a whole number, or out of bounds.
    """
    allowed = f"a whole number of at least {minimum}" if maximum is None else f"a whole number in {minimum}..{maximum}"
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} is {value!r} ({type(value).__name__}); expected {allowed}.") from None
    if number < minimum or (maximum is not None and number > maximum):
        raise OptionError(f"{name} is {number}; expected {allowed}.")
    return number


def is_positive(value: object) -> bool:
    """Returns whether a value is a finite number above 0; booleans are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def check_made(name: str, given: object, attribute: str, example: str) -> None:
    """Checks that an option is an object of this library, not a name, a number or a class.

    Args:
        name: The option, as the user typed it.
        given: The given value.
        attribute: An attribute that every such object has.
        example: An expression that makes one.

    Raises:
        OptionError: It is something else.
    """
    if isinstance(given, type) or not hasattr(given, attribute):
        shown = given.__name__ if isinstance(given, type) else reprlib.repr(given)
        raise OptionError(f"{name} is {shown}; expected an object such as {example}.")


def divisors_near(number: int, wanted: int) -> str:
    """Returns the divisors of `number` just below and above `wanted`, for a remedy: ``"4 or 8"``."""
    small = [d for d in range(1, min(int(number**0.5), 100_000) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below, above = [d for d in divisors if d < wanted], [d for d in divisors if d > wanted]
    return " or ".join(str(d) for d in below[-1:] + above[:1])
