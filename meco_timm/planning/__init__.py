"""What a run will do, how long it takes and what it costs, before it starts.

In: a recipe. Out: the plan as text, time estimates, a ranking of teachers, students within a
budget, a rehearsal in few steps.
Never: trains to the end, or writes a run folder.
"""

from meco_timm.common import WIDTH
from meco_timm.planning.plan import Plan, full_plan, make_plan, student_backbone
from meco_timm.planning.rank_teachers import rank_teachers
from meco_timm.planning.rehearse import is_rehearsal, rehearsal
from meco_timm.planning.students import PATTERNS, find_students, parse_budget, print_students
from meco_timm.planning.weights import require_weights

__all__ = [
    "PATTERNS",
    "WIDTH",
    "Plan",
    "find_students",
    "full_plan",
    "is_rehearsal",
    "make_plan",
    "parse_budget",
    "print_students",
    "rank_teachers",
    "rehearsal",
    "require_weights",
    "student_backbone",
]
