"""What a saved state says of a run, and how a run resumes from it, on any number of ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from ms_prefstream.checks import whole_number
from ms_prefstream.errors import StateError, printable
from ms_prefstream.load.loader import ADDED_OPTIONS
from ms_prefstream.load.one_pass import ROWS_CHECKED
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.state import State, check_state, is_same, make_state
from ms_prefstream.steps.open import AnySteps, StepOpener, step_opener

_ORDER = {"order_by": None, "order_noise": 0.0}
"""Options of the order that are younger than the first states: these name them where `order_by` is given."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


def save_state(opener: StepOpener, steps: AnySteps, step: int) -> State:
    """Returns what to save once `step` steps are finished: plain values for JSON.

    Args:
        opener: Opened `steps`.
        steps: The steps of the run.
        step: Absolute: epoch * steps_per_epoch + steps finished in that epoch.

    Raises:
        OptionError: `step` is not a whole number from 0 on.
    """
    state = make_state(_settings(opener, steps), whole_number("step", step, 0), steps.steps_per_epoch)
    if (found := steps.source_state(step)) is not None:
        state["source"] = found
    return state


def resume_steps(opener: StepOpener, steps: AnySteps, state: Mapping[str, Any]) -> tuple[StepOpener, AnySteps, int]:
    """Resumes a run; without an index its logical shards become those of the state, unless the user chose them.

    Args:
        opener: Opened `steps`.
        steps: The steps of a fresh stream.
        state: What `save_state` returned.

    Returns:
        The opener and the steps to use from now on, and the absolute step at which they continue.

    Raises:
        StateError: The data or a setting differs; names the old and the new value.
        OptionError: This number of ranks cannot share the logical shards of the state.
    """
    before, ranks = opener, opener.ranks
    data = opener.data.with_index_of(state)
    if data is not opener.data:
        opener = step_opener(data, opener.batching, opener.order, ranks, opener.steps_per_epoch)
        steps = opener.open()
    shards = _shards_of(state, opener, steps)
    if shards != ranks.logical_shards:
        opener = dataclasses.replace(opener, ranks=Ranks(ranks.world, ranks.rank, shards))
        steps = opener.open()
    try:
        step = check_state(*_completed(state, _settings(opener, steps)), steps.steps_per_epoch)
    except StateError:
        if opener is not before:
            before.open()  # the report counts for the steps of the stream, which stay
        raise
    opener.data.report.tokenizer = opener.data.described
    if state.get("source") is not None:
        steps.resume_source(_source_state(state["source"], step // steps.steps_per_epoch))
    return opener, steps, step


class _SourceState(msgspec.Struct, forbid_unknown_fields=True):
    """What `source_state` of the steps returns: the epoch, and the fields of `Position`."""

    epoch: _Count
    first: _Count
    state: dict[str, Any]
    rows: Annotated[int, msgspec.Meta(ge=0, le=ROWS_CHECKED)] = 0
    digest: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{16})?$")] = ""

    def __post_init__(self) -> None:
        if bool(self.rows) != bool(self.digest):
            raise ValueError("rows and digest belong together")


class _RowsState(msgspec.Struct):
    """What every source's own state holds: the number of its next row."""

    row: _Count


def _source_state(found: Any, epoch: int) -> Mapping[str, Any]:
    """Returns the position of a source in a state, checked field by field.

    Raises:
        StateError: Names the field, what was found and what was expected.
    """
    try:
        source = msgspec.convert(found, _SourceState)
        rows = msgspec.convert(source.state, _RowsState)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StateError(f"the state's source is damaged: {printable(str(error))}. Take another state.") from error
    if source.epoch != epoch or rows.row != source.first:
        raise StateError(
            f"the state's source stands before row {rows.row} and record {source.first} of epoch {source.epoch}, which "
            f"does not fit its step, in epoch {epoch}: the state was changed. Use it as stream.state(step) returned it."
        )
    return msgspec.structs.asdict(source)


def _settings(opener: StepOpener, steps: AnySteps) -> dict[str, Any]:
    """Returns everything that decides which rows form which step and what they become."""
    options, data, unit = steps.plan.options, opener.data, opener.batching.unit
    order = {name: getattr(opener.order, name) for name in _ORDER} if opener.order.order_by is not None else {}
    return {
        "seed": options.seed,
        "global_batch": options.global_batch,
        "global_batch_of": unit,
        "logical_shards": options.logical_shards if data.index is None or unit == "tokens" else None,
        "window": options.window,
        "shuffle": options.shuffle,
        "drop_remainder": options.drop_remainder,
        "longest_first": options.longest_first,
        "sorted": options.sorts,
        "rows": options.rows,
        "widths": list(opener.widths),
        "max_segments": getattr(opener.batching, "max_segments", None),
        "pad_token_id": data.pad_token_id,
        "data": data.fingerprint(),
        "mix": data.mix(),
        "index": None if data.index is None else data.index.checksum,
        **order,
        **data.encoding,
    }


def _completed(state: Any, settings: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Returns a state and the present settings with the defaults of younger options that only one of them names.

    A state from before `template_date` was saved fits any day.
    """
    if not isinstance(state, Mapping):
        return state, settings
    defaults = {**ADDED_OPTIONS, **_ORDER, "template_date": settings.get("template_date")}
    named = {name: value for name, value in defaults.items() if name in state or name in settings}
    return {**named, **state}, {**named, **settings}


def _shards_of(state: Any, opener: StepOpener, steps: AnySteps) -> int:
    """Returns the state's logical shards if they can be used here, else those of `opener`."""
    found = state.get("logical_shards") if isinstance(state, Mapping) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1 or opener.ranks.chosen:
        return opener.ranks.logical_shards
    batch = steps.plan.options.global_batch
    return found if found <= batch and is_same(state.get("global_batch"), batch) else opener.ranks.logical_shards
