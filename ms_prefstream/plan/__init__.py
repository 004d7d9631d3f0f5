"""Which rows form which step: arithmetic on row ids, lengths and seeds, nothing else."""

from ms_prefstream.plan.arrangement import Arrangement
from ms_prefstream.plan.base import PLAN_VERSION, Plan
from ms_prefstream.plan.budget import BudgetPlan
from ms_prefstream.plan.budget_options import BudgetOptions
from ms_prefstream.plan.indexed import IndexedPlan
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.packed import PackedPlan
from ms_prefstream.plan.packed_windows import PackedWindows
from ms_prefstream.plan.permutation import KeyedPermutation
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windowed import WindowedPlan

__all__ = [
    "PLAN_VERSION",
    "Arrangement",
    "BudgetOptions",
    "BudgetPlan",
    "IndexedPlan",
    "KeyedPermutation",
    "PackedPlan",
    "PackedWindows",
    "Plan",
    "PlanOptions",
    "Ranks",
    "WindowedPlan",
]
