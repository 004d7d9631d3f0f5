"""Tasks: what a record becomes. One file a task; `Task` in base.py says what a task must offer."""

from ms_prefstream.tasks.base import Task
from ms_prefstream.tasks.dpo import DPO
from ms_prefstream.tasks.reward import Reward
from ms_prefstream.tasks.rlhf import RLHF

__all__ = ["DPO", "RLHF", "Reward", "Task"]
