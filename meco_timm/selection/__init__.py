"""Which teachers are worth having: measured on labelled images, ranked, calibrated, weighted; optional to a run.

In: teachers and labelled images. Out: what each adds to the ensemble, temperatures, weights, warnings.
Never: trains a network, or changes a teacher.
"""

from meco_timm.selection.candidates import find_candidates, print_candidates
from meco_timm.selection.class_checks import check_local_teachers, checked_inputs
from meco_timm.selection.combining import (
    check_combination,
    combination_lines,
    combine_teachers,
    kept_combination,
    read_measured,
)
from meco_timm.selection.ranking import Ranking, rank_teachers
from meco_timm.selection.ranking_table import print_ranking

__all__ = [
    "Ranking",
    "check_combination",
    "check_local_teachers",
    "checked_inputs",
    "combination_lines",
    "combine_teachers",
    "find_candidates",
    "kept_combination",
    "print_candidates",
    "print_ranking",
    "rank_teachers",
    "read_measured",
]
