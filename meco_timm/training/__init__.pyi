from .accelerator import check_launch, choose_speed, describe_processes, make_accelerator
from .faults import explain_faults
from .job import Job, OnStep, Teaching, total_steps
from .labels import (
    LabelTraining,
    locked_folder,
    read_curve,
    student_alone_curve,
    train_student_alone,
    train_teachers,
    trained_teacher,
    validation_curves,
)
from .loop import Training
from .run_folder import Inputs, RunFolder, open_run_folder

__all__ = [
    "Inputs",
    "Job",
    "LabelTraining",
    "OnStep",
    "RunFolder",
    "Teaching",
    "Training",
    "check_launch",
    "choose_speed",
    "describe_processes",
    "explain_faults",
    "locked_folder",
    "make_accelerator",
    "open_run_folder",
    "read_curve",
    "student_alone_curve",
    "total_steps",
    "train_student_alone",
    "train_teachers",
    "trained_teacher",
    "validation_curves",
]
