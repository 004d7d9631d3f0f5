"""Which rows form which step: arithmetic on row ids, lengths and seeds, nothing else."""

from ms_prefstream.plan.budget import BudgetPlan
from ms_prefstream.plan.indexed import IndexedPlan
from ms_prefstream.plan.options import PLAN_VERSION, BudgetOptions, Plan, PlanOptions
from ms_prefstream.plan.packed import PackedPlan, PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.shuffle import KeyedPermutation
from ms_prefstream.plan.windows import Arrangement, WindowedPlan

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
