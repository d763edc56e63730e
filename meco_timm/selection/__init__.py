"""Which teachers are worth having: measured on labelled images, ranked, calibrated, weighted; optional to a run.

In: teachers and labelled images. Out: what each adds to the ensemble, temperatures, weights, warnings.
Never: trains a network, or changes a teacher.
"""

from meco_timm.selection.advice import Trainings, compare_with_student_alone, explain_student
from meco_timm.selection.candidates import find_candidates, print_candidates
from meco_timm.selection.class_checks import check_lines, check_local_teachers, check_teachers, require_known_classes
from meco_timm.selection.combining import (
    check_combination,
    combination_lines,
    combine_teachers,
    read_measured,
)
from meco_timm.selection.kept_logits import measure_teachers
from meco_timm.selection.ranking import Ranking, load_rankable, rank, validation_sample
from meco_timm.selection.ranking_table import print_ranking

__all__ = [
    "Ranking",
    "Trainings",
    "check_combination",
    "check_lines",
    "check_local_teachers",
    "check_teachers",
    "combination_lines",
    "combine_teachers",
    "compare_with_student_alone",
    "explain_student",
    "find_candidates",
    "load_rankable",
    "measure_teachers",
    "print_candidates",
    "print_ranking",
    "rank",
    "read_measured",
    "require_known_classes",
    "validation_sample",
]
