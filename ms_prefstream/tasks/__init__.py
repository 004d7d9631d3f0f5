"""Tasks: what a record becomes. One file a task and its line in `TASKS`; `Task` in base.py is the contract."""

from typing import Any

from ms_prefstream.tasks.base import Task
from ms_prefstream.tasks.dpo import DPO
from ms_prefstream.tasks.kto import KTO
from ms_prefstream.tasks.process_reward import ProcessReward
from ms_prefstream.tasks.prompts import Prompts
from ms_prefstream.tasks.reward import Reward
from ms_prefstream.tasks.rlhf import RLHF

__all__ = ["DPO", "KTO", "RLHF", "TASKS", "ProcessReward", "Prompts", "Reward", "Task"]

TASKS: dict[str, type[Any]] = {
    "dpo": DPO,
    "reward": Reward,
    "rlhf": RLHF,
    "kto": KTO,
    "process-reward": ProcessReward,
    "prompts": Prompts,
}
"""Name on the command line -> the task; in YAML files a task goes by the name of its class."""
