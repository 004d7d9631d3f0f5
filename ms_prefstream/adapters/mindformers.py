"""The MindFormers adapter: `PrefStreamDataset`, `PrefStreamDataLoader` and `PrefStreamReport` for its YAML files.

Importing this module registers them and installs the checks of `trainer_hooks`, at once if MindFormers is loaded, else
after its import. It does not load MindFormers, whose import takes seconds, prints and creates a folder. In a training
script::

    import ms_prefstream.adapters.mindformers

Without a script of your own, as with MindFormers' run_mindformer.py, write a file `prefstream.py` with the line ``from
ms_prefstream.adapters.mindformers import PrefStreamDataset``, pass its folder as `register_path` and set
``auto_register: prefstream.PrefStreamDataset`` in `train_dataset_task`. In the YAML file::

    train_dataset: &train_dataset
      data_loader:
        type: PrefStreamDataLoader
        source: data/train-*.jsonl
        tokenizer: path/to/tokenizer
        task: {type: DPO, max_length: 1024}
        batching: {type: Bucket, multiple_of: 64}
      input_columns: [chosen_input_ids, chosen_loss_mask, rejected_input_ids, rejected_loss_mask]
    train_dataset_task: {type: PrefStreamDataset, dataset_config: *train_dataset}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ms_prefstream.adapters.trainer_hooks import install_hooks, when_imported
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore.dataset import to_dataset
from ms_prefstream.mindspore.samples import Samples
from ms_prefstream.mindspore.trainer_checks import check_pairing, listed, shards
from ms_prefstream.packages import needs, warn_if_untried
from ms_prefstream.steps.collate import select_columns

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset

_REGISTRY = "mindformers.tools.register.register"
# Keys that MindFormers passes to every loader and dataset and that do not apply to finished batches.
_IDLE = frozenset(
    {
        "do_eval", "num_parallel_workers", "python_multiprocessing", "prefetch_size", "numa_enable", "filepath_prefix",
        "autotune_per_step", "micro_batch_num", "tokenizer", "num_samples", "type",
    }
)  # fmt: skip
_OFF = {
    "eod_reset": "packed rows with positions of their own come from batching: {type: Pack, ...}",
    "dynamic_batch": "batches have their final widths already, a small closed set of them",
    "auto_tune": "MindSpore's autotune would change how the dataset is read",
    "profile": "MindSpore's autotune would change how the dataset is read",
    "mixup_op": "it is for images",
    "token_monitor": "the stream's report counts tokens",
}


class PrefStreamDataLoader:
    """Single samples, as MindFormers' datasets expect them of a loader (`DPODataset`, `CausalLanguageModelDataset`).

    The rows of a batch are consecutive and padded as in the batch: a dataset that batches them with the same
    `batch_size` has the batches of the stream. For whole batches use `PrefStreamDataset`.
    """

    def __new__(
        cls,
        *,
        reference_free: bool = False,
        columns: list[str] | None = None,
        num_shards: Any = "auto",
        shard_id: Any = "auto",
        **keys: Any,
    ) -> GeneratorDataset:
        """Returns the dataset of samples.

        Args:
            reference_free: Whether to add `chosen_ref_logps` and `rejected_ref_logps` as zeros.
            columns: The columns to deliver, in order; None for all.
            num_shards: Ranks that share the data; None, as MindFormers says it, for a batch that every rank holds
                whole; ``"auto"`` asks MindSpore's communication.
            shard_id: This rank.
            keys: The options of `ms_prefstream.stream` as plain keys; see `yaml_keys.stream_from`.
        """
        ranks = (None, None) if num_shards == "auto" else (1, 0) if num_shards is None else (num_shards, shard_id)
        keys.pop("column_names", None)  # the columns of the dataset that batches, which checks them itself
        size = keys.pop("batch_size", None)
        section = {name: value for name, value in keys.items() if name not in _IDLE or name == "tokenizer"}
        stream = stream_from(section, batch_size=size, num_shards=ranks[0], shard_id=ranks[1])
        samples = Samples(stream, reference_free)
        return to_dataset(samples if columns is None else select_columns(samples, columns), stream=stream)


class PrefStreamDataset:
    """Ready batches: one row of the dataset is one training step, whatever `batch` other datasets apply."""

    def __new__(cls, dataset_config: Mapping[str, Any] | None = None, **keys: Any) -> GeneratorDataset:
        """Returns the dataset that a `train_dataset` section describes.

        Args:
            dataset_config: The section: `data_loader` with the keys of the stream, and `input_columns`, the columns
                that the network takes, in order. Its `batch_size` (`runner_config.batch_size` in a trainer) counts.
            keys: The same as keywords.

        Raises:
            OptionError: A key is unknown or contradicts another one, or a key that would change batches is set.
            PrefStreamError: As `ms_prefstream.stream` does.
        """
        config = {**(dataset_config or {}), **keys}
        loader = config.pop("data_loader", None)
        if not isinstance(loader, Mapping):
            raise OptionError(f"data_loader is {loader!r}; expected the section with source, task and batching.")
        loader = dict(loader)
        if loader.pop("type", "PrefStreamDataLoader") != "PrefStreamDataLoader":
            raise OptionError("PrefStreamDataset reads data_loader: {type: PrefStreamDataLoader, ...} and no other.")
        columns, drops = _columns(config), config.pop("drop_remainder", None)
        if drops is False and loader.get("drop_remainder") not in (False, "mask"):
            raise OptionError(
                "drop_remainder is False, but a smaller last batch would have a shape of its own. Leave it out, or set "
                "data_loader.drop_remainder: False, which fills the last batch up with a few repeated rows."
            )
        given = {name: config.pop(name, None) for name in ("batch_size", "seed", "tokenizer")}
        _check_rest(config)
        world, rank = shards()
        return stream_from(loader, num_shards=world, shard_id=rank, **given).dataset(columns=columns)


class PrefStreamReport:
    """Callback for the YAML file, `callbacks: [{type: PrefStreamReport}]`: the stream's report at the end."""

    def __new__(cls, path: str | None = None, every: int | None = None) -> Any:
        """Returns the callback.

        Args:
            path: A JSON file for the counts; of several ranks each writes its own (``report.rank1.json``).
            every: Steps between two reports along the way; None for the end alone.

        Raises:
            OptionError: `every` is no number of steps, or the folder of `path` does not exist.
        """
        with needs("mindspore", "PrefStreamReport"):
            from ms_prefstream.adapters.report_callback import ReportCallback

        return ReportCallback(path, every)


def _columns(config: dict[str, Any]) -> list[str] | None:
    """Returns the columns in the order in which the network gets them.

    A trainer takes `construct_args_key` out of the section before any dataset sees it, and pairs it with the columns by
    position: the section must list the columns in order.
    """
    missing = "input_columns" in config and config["input_columns"] is None
    chosen, renamed, keys = (
        listed(name, config.pop(name, None)) for name in ("input_columns", "output_columns", "construct_args_key")
    )
    if missing:
        raise OptionError(
            "train_dataset.input_columns is missing. Name the columns that the network takes, in the order of "
            "construct_args_key (or of its own arguments); without a list MindFormers pairs the two blindly."
        )
    columns = renamed if renamed is not None else chosen
    if columns is not None:
        check_pairing(columns, keys)
    return columns


def _check_rest(config: dict[str, Any]) -> None:
    """Refuses keys that would change finished batches; ignores those that do not apply."""
    repeat = config.pop("repeat", None)
    if repeat not in (None, 1):
        raise OptionError(f"repeat is {repeat!r}; every epoch has another order. Set runner_config.epochs instead.")
    for name, value in config.items():
        if name in _OFF:
            if value:
                raise OptionError(f"{name} is {value!r}, which PrefStreamDataset does not take: {_OFF[name]}.")
        elif name not in _IDLE and name not in ("divisor", "remainder"):
            raise OptionError(
                f"{name} is not an option of PrefStreamDataset. The options of the stream belong under data_loader; "
                "beside it are input_columns, construct_args_key, batch_size, drop_remainder and seed."
            )


def _register() -> None:
    """Registers the three classes with MindFormers, which is being imported."""
    warn_if_untried("mindformers")
    registry = sys.modules[_REGISTRY]
    kinds = ((PrefStreamDataset, "DATASET"), (PrefStreamDataLoader, "DATASET_LOADER"), (PrefStreamReport, "CALLBACK"))
    for made, kind in kinds:
        registry.MindFormerRegister.register_cls(made, getattr(registry.MindFormerModuleType, kind))


when_imported(_REGISTRY, _register)
install_hooks()
