"""Hooks in MindFormers' trainers: `HOOKS` lists every method of another library that this library wraps.

`import ms_prefstream.adapters.mindformers` installs them; nothing else does. A hooked trainer behaves as before, except
on datasets of a stream. Where an installed MindFormers lacks a method, a warning names the check that is off.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore.trainer_checks import check_pairing, check_rows, check_shards
from ms_prefstream.stream import Stream

Method = Callable[..., Any]


class Hook(NamedTuple):
    """A wrapped method.

    Attributes:
        module: The module of its class.
        owner: Its class.
        method: Its name.
        wrap: Takes the method and returns the one that replaces it.
        check: What the hook does, as the subject of "is off".
        seen_in: The releases of MindFormers in which the method was seen to work as the hook expects.
    """

    module: str
    owner: str
    method: str
    wrap: Callable[[Method], Any]
    check: str
    seen_in: str = "1.7.0, 1.9.0"


_COLUMNS = "_prefstream_columns"
"""Attribute of a trainer: the columns of the dataset set last, until they are paired; None for other datasets."""

_NAMES = "_prefstream_names"
"""Attribute of a trainer in training: the names that its columns are paired with."""


def _stream_of(dataset: Any) -> Stream | None:
    found = getattr(dataset, "stream", None)
    return found if isinstance(found, Stream) else None


def _columns(dataset: Any) -> list[str] | None:
    return None if _stream_of(dataset) is None else dataset.get_col_names()


def _after(check: Callable[..., None]) -> Callable[[Method], Method]:
    """Returns a wrapper that calls `check` with the arguments of the method, once the method has returned."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        def checked(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            check(*args, **kwargs)
            return result

        return checked

    return wrap


def _check_train_dataset(trainer: Any, dataset: Any) -> None:
    vars(trainer)[_COLUMNS] = vars(trainer)[_NAMES] = _columns(dataset)  # paired by position, unless names are given
    stream = _stream_of(dataset)
    if stream is None:
        return
    from ms_prefstream.adapters.run_states import check_resumed
    from ms_prefstream.mindspore.generator import gives_steps

    check_shards(stream)
    if gives_steps(dataset):
        check_rows(stream, trainer.config.runner_config)
    check_resumed(dataset, trainer.config)


def _note_eval_dataset(trainer: Any, dataset: Any) -> None:
    vars(trainer)[_COLUMNS] = _columns(dataset)
    vars(trainer).pop(_NAMES, None)


def _check_eval_dataset(create: Method) -> Method:
    """Wraps `create_eval_dataset`: an evaluation during training uses the training's network, and so its names."""

    @functools.wraps(create)
    def checked(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        dataset = create(trainer, *args, **kwargs)
        names, columns = vars(trainer).pop(_NAMES, None), _columns(dataset)
        if names is not None and columns is not None and trainer.config.do_eval:
            try:
                check_pairing(columns, names)
            except OptionError as error:
                problem = f"eval_dataset under do_eval, which takes the names of train_dataset: {error}"
                raise OptionError(problem) from None
        return dataset

    return checked


class _CheckedPairing:
    """The static method that pairs columns and names; called on a trainer, it checks the trainer's columns first."""

    def __init__(self, pair: Method) -> None:
        self.pair = pair

    def __get__(self, trainer: Any, owner: Any = None) -> Method:
        return self.pair if trainer is None else functools.partial(self._checked, trainer)

    def _checked(self, trainer: Any, network: Any, construct_args_key: Any) -> Any:
        columns = vars(trainer).pop(_COLUMNS, None)
        if columns is not None:
            check_pairing(columns, construct_args_key)
        if _NAMES in vars(trainer):
            vars(trainer)[_NAMES] = construct_args_key
        return self.pair(network, construct_args_key)


def _save_state(monitor: Any, cb_params: Any) -> None:
    dataset = getattr(cb_params, "train_dataset", None)
    if _stream_of(dataset) is not None:
        from ms_prefstream.adapters.run_states import save_state

        save_state(dataset, monitor, cb_params.cur_step_num)


def _with_stream(act: Callable[..., Any]) -> Callable[[Method], Method]:
    """Returns a wrapper that calls `act` with the method and its arguments if the first is a dataset of a stream."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        def chosen(trainer: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            if _stream_of(dataset) is None:
                return method(trainer, dataset, *args, **kwargs)
            return act(method, trainer, dataset, *args, **kwargs)

        return chosen

    return wrap


def _create_pynative_dataset(create: Method, trainer: Any, dataset: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
    from ms_prefstream.adapters.pynative_trainer import check_dataset

    check_dataset(trainer, dataset.stream, config)
    return create(trainer, dataset, config, *args, **kwargs)


def _create_pynative_iterator(create: Method, trainer: Any, dataset: Any) -> Any:
    from ms_prefstream.adapters.pynative_trainer import iterate

    return iterate(trainer, dataset)


def _check_pynative_resume(trainer: Any, checkpoint_path: Any, *args: Any, **kwargs: Any) -> None:
    if _stream_of(getattr(trainer, "train_dataset", None)) is not None:
        from ms_prefstream.adapters.pynative_trainer import check_resumed

        check_resumed(trainer, checkpoint_path)


def _save_pynative_state(callback: Any, args: Any, state: Any, **kwargs: Any) -> None:
    dataset = kwargs.get("train_dataset")
    if _stream_of(dataset) is not None:
        from ms_prefstream.adapters.pynative_trainer import save_state

        save_state(callback, dataset, state)


_TRAINER = "mindformers.trainer.base_trainer"
_CALLBACK = "mindformers.core.callback.callback"
_PYNATIVE = "mindformers.pynative.trainer.trainer"
_SAVER = "mindformers.pynative.callback.checkpoint_callback"
_TRAINING = "the check of shards, of runner_config.batch_size and of the state of a resumed run"
_PAIRING = "the check of construct_args_key against the columns"
_SAVING = "saving the stream's state beside each checkpoint"
_ROWS = "the check of rows, shards and balancing"
_RESUMED = "the check of the state of a resumed run"
_RELEASES = "1.9.0, 2.0.0, 2.1.0"
_EPOCHS = "going on to the next epoch (every epoch repeats the first)"

HOOKS = (
    Hook(_TRAINER, "BaseTrainer", "set_train_dataset", _after(_check_train_dataset), _TRAINING),
    Hook(_TRAINER, "BaseTrainer", "set_eval_dataset", _after(_note_eval_dataset), f"{_PAIRING} in an evaluation"),
    Hook(_TRAINER, "BaseTrainer", "create_eval_dataset", _check_eval_dataset, "the check of columns under do_eval"),
    Hook(_TRAINER, "BaseTrainer", "warp_data_order_with_tool_cells", _CheckedPairing, _PAIRING),
    Hook(_CALLBACK, "CheckpointMonitor", "save_checkpoint", _after(_save_state), _SAVING),
    Hook(_CALLBACK, "CheckpointMonitor", "_save_megatron_ckpt_file_format", _after(_save_state), _SAVING),
    Hook(_PYNATIVE, "Trainer", "_create_dataset", _with_stream(_create_pynative_dataset), _ROWS, _RELEASES),
    Hook(_PYNATIVE, "Trainer", "_create_dataset_iterator", _with_stream(_create_pynative_iterator), _EPOCHS, _RELEASES),
    Hook(_PYNATIVE, "Trainer", "_load_checkpoint", _after(_check_pynative_resume), _RESUMED, _RELEASES),
    Hook(_SAVER, "CheckpointCallback", "_save_checkpoint", _after(_save_pynative_state), _SAVING, _RELEASES),
)


@functools.cache  # once a process, also where the adapter is reloaded
def install_hooks() -> None:
    """Wraps the methods of `HOOKS` as soon as their modules are loaded; loads none of them."""
    for name in dict.fromkeys(hook.module for hook in HOOKS):
        when_imported(name, functools.partial(_wrap_methods, name))


def _wrap_methods(name: str) -> None:
    module = sys.modules[name]
    for hook in HOOKS:
        if hook.module != name:
            continue
        owner = getattr(module, hook.owner, None)
        method = getattr(owner, hook.method, None)
        if method is None:
            warnings.warn(
                f"{name}.{hook.owner} has no method {hook.method} here, so {hook.check} is off for streams of "
                f"ms_prefstream. MindFormers {hook.seen_in} have it: install one of them, or check this yourself.",
                stacklevel=2,
            )
        else:
            setattr(owner, hook.method, hook.wrap(method))


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Calls `act` once, as soon as the module of that name is loaded: now if it is, else right after its import."""
    if name in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _ImportWatcher(name, act))


class _ImportWatcher(MetaPathFinder):
    """Finds one module through the other finders and calls a function after its import; then it removes itself."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name, self.act = name, act

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # a spec may be asked for without an import
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["exec_module"] = _after(self._imported)(spec.loader.exec_module)
        return spec

    def _imported(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self.act()
