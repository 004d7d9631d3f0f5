"""The saved state of a run: a few numbers and fingerprints, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.errors import StateError, printable
from ms_prefstream.plan.options import PLAN_VERSION

STATE_VERSION = 1

State = dict[str, Any]

_MOST_STEPS = 2**53
"""More than any run has. Numbers are compared, divided and printed below it."""


def make_state(settings: Mapping[str, Any], step: int, steps_per_epoch: int) -> State:
    """Returns the state before an absolute step, counted over all epochs: a dict of plain values for JSON.

    `settings` is everything that determines the rows and samples of each step.
    """
    return {
        "version": STATE_VERSION,
        "plan_version": PLAN_VERSION,
        "epoch": step // steps_per_epoch,
        "step": step,
        "steps_per_epoch": steps_per_epoch,
        **settings,
    }


def check_state(state: Any, settings: Mapping[str, Any], steps_per_epoch: int) -> int:
    """Returns the absolute step of a saved state after checking that nothing it depends on has changed.

    Raises:
        StateError: A setting is missing or differs; names the old and the new value.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"a state is a dict as stream.state(step) returns it; found {type(state).__name__}.")
    wanted = make_state(settings, 0, steps_per_epoch)
    missing = [name for name in wanted if name not in state]
    if missing:
        raise StateError(f"the state has no {', '.join(missing)}; expected what stream.state(step) returns.")
    changes = [
        f"{name} was {_shown(state[name])} and is {_shown(value)} now"
        for name, value in wanted.items()
        if name not in ("epoch", "step") and not is_same(state[name], value)
    ]
    if changes:
        raise StateError(
            "the state was saved with other settings, so resuming would repeat or lose rows: "
            + "; ".join(changes)
            + ". Use the former settings, or start again without the state."
        )
    step = state["step"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < _MOST_STEPS:
        raise StateError(f"the state's step is {_shown(step)}; expected a whole number of finished steps, 0 or more.")
    epoch = step // steps_per_epoch
    if not is_same(state["epoch"], epoch):
        raise StateError(
            f"the state's epoch is {_shown(state['epoch'])}, but step {step} with {steps_per_epoch} steps an epoch is "
            f"in epoch {epoch}: the state was changed. Use it as stream.state(step) returned it."
        )
    return step


def is_same(found: Any, wanted: Any) -> bool:
    """Returns whether a value of a state is the wanted one; a state may hold anything, such as arrays."""
    try:
        return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)
    except Exception:
        return False


def _shown(value: Any) -> str:
    """Returns a value of a state for an error; it may be long, deep or a number of thousands of digits."""
    try:
        return printable(repr(value))
    except Exception:
        return f"a value of type {type(value).__name__}"
