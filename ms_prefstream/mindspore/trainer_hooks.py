"""What a MindFormers trainer is asked before it trains on a stream, since it would go on wrongly without a word.

A trainer makes its dataset first and pairs columns with arguments, counts rows and resumes later, out of the sight of
the dataset. So its class is given a look at these moments, where a version has them; other datasets pass untouched:

    set_train_dataset, set_eval_dataset    shards, rows of a step (`runner_config.batch_size`), a resumed run's state
    warp_data_order_with_tool_cells        `construct_args_key` against the columns
    create_eval_dataset                    the columns of `do_eval`, by the names of the training
    CheckpointMonitor's save methods       the stream's state beside each checkpoint
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ms_prefstream.mindspore.generator import gives_steps
from ms_prefstream.mindspore.readable import Readable
from ms_prefstream.mindspore.run_states import check_resumed, save_state
from ms_prefstream.mindspore.trainer_checks import check_evaluated, check_pairing, check_rows, check_shards
from ms_prefstream.mindspore.when_imported import when_imported

_PYNATIVE = "mindformers.pynative.trainer.trainer"


def _in_order(rows: Any, epochs: int) -> Iterator[Any]:
    """The rows of one epoch after the other; an epoch that a resumed run leaves out is empty."""
    for _ in range(epochs):
        yield from rows


def _watch_pynative() -> None:
    trainer = getattr(sys.modules[_PYNATIVE], "Trainer", None)
    create = getattr(trainer, "_create_dataset_iterator", None)
    if create is None:
        return

    @functools.wraps(create)
    def iterator(self: Any, dataset: Any) -> Any:
        if isinstance(dataset, Readable) and dataset.stream is not None:
            epochs = self.train_num_epochs + 1  # the trainer rounds down
            return _in_order(dataset.create_dict_iterator(output_numpy=False, num_epochs=epochs), epochs)
        return create(self, dataset)

    trainer._create_dataset_iterator = iterator  # type: ignore[union-attr]


when_imported(_PYNATIVE, _watch_pynative)


_MODULE = "mindformers.trainer.base_trainer"
_COLUMNS = "_prefstream_columns"  # on a trainer: those of the stream that it is about to pair, if it is one

_NAMES = "_prefstream_names"  # on a trainer that makes a training: what its columns are paired with


def _of_stream(dataset: Any) -> bool:
    return isinstance(dataset, Readable) and dataset.stream is not None


def _train_on(trainer: Any, dataset: Any) -> None:
    _evaluate_on(trainer, dataset)
    vars(trainer)[_NAMES] = vars(trainer)[_COLUMNS]  # by place, unless they are paired by name
    if _of_stream(dataset):
        check_shards(dataset.stream)
        if gives_steps(dataset):
            check_rows(dataset.stream, trainer.config.runner_config)
        check_resumed(dataset, trainer.config)


def _evaluate_on(trainer: Any, dataset: Any) -> None:
    vars(trainer)[_COLUMNS] = dataset.get_col_names() if _of_stream(dataset) else None
    vars(trainer).pop(_NAMES, None)


def _evaluate_between(trainer: Any, dataset: Any) -> None:
    """An evaluation in the course of a training, by the training's own network."""
    names = vars(trainer).pop(_NAMES, None)
    if names is not None and _of_stream(dataset) and trainer.config.do_eval:
        check_evaluated(dataset.get_col_names(), names)


def _saved(monitor: Any, cb_params: Any) -> None:
    dataset = getattr(cb_params, "train_dataset", None)
    if _of_stream(dataset):
        save_state(dataset, monitor, cb_params.cur_step_num)


class _Pairing:
    """The static method that pairs, called through a trainer: looks at its columns first."""

    def __init__(self, pair: Callable[..., Any]) -> None:
        self.pair = pair

    def __get__(self, trainer: Any, kind: Any = None) -> Callable[..., Any]:
        return self.pair if trainer is None else functools.partial(self._checked, trainer)

    def _checked(self, trainer: Any, network: Any, construct_args_key: Any) -> Any:
        columns = vars(trainer).pop(_COLUMNS, None)
        if columns is not None:
            check_pairing(columns, construct_args_key)
        if _NAMES in vars(trainer):
            vars(trainer)[_NAMES] = construct_args_key
        return self.pair(network, construct_args_key)


def _behind(kind: Any, name: str, act: Callable[..., None], *, made: bool = False) -> None:
    """Has the method call `act` with its own arguments (or what it made) when it is done, if there is such a method."""
    method = getattr(kind, name, None)
    if method is None:
        return

    @functools.wraps(method)
    def both(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if made:
            act(self, result)
        else:
            act(self, *args, **kwargs)
        return result

    setattr(kind, name, both)


def _watch() -> None:
    module = sys.modules[_MODULE]
    trainer, monitor = getattr(module, "BaseTrainer", None), getattr(module, "CheckpointMonitor", None)
    _behind(trainer, "set_train_dataset", _train_on)
    _behind(trainer, "set_eval_dataset", _evaluate_on)
    _behind(trainer, "create_eval_dataset", _evaluate_between, made=True)
    pair = getattr(trainer, "warp_data_order_with_tool_cells", None)
    if pair is not None:
        trainer.warp_data_order_with_tool_cells = _Pairing(pair)  # type: ignore[union-attr]
    for name in ("save_checkpoint", "_save_megatron_ckpt_file_format"):
        _behind(monitor, name, _saved)


when_imported(_MODULE, _watch)
