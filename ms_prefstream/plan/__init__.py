"""Plans: which rows form which step, by arithmetic on row ids, lengths and seeds alone.

A step is a pure function of (seed, epoch, step, rank, world), computed and never remembered. Every plan has
`steps_per_epoch`, `repeats_per_epoch`, `remainder_per_epoch`, `left_out_and_repeated(epoch)` and
`rows(epoch, step, rank, world)`. It raises `OptionError` when there is no such step or rank, or the ranks cannot get
equal shares.
"""

from ms_prefstream.plan.budget import BudgetPlan
from ms_prefstream.plan.indexed import IndexedPlan
from ms_prefstream.plan.options import PLAN_VERSION, BudgetOptions, PlanOptions
from ms_prefstream.plan.packed import PackedPlan, PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.shuffle import KeyedPermutation
from ms_prefstream.plan.windows import WindowedPlan

__all__ = [
    "PLAN_VERSION",
    "BudgetOptions",
    "BudgetPlan",
    "IndexedPlan",
    "KeyedPermutation",
    "PackedPlan",
    "PackedWindows",
    "PlanOptions",
    "Ranks",
    "WindowedPlan",
]
