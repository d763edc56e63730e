from .accelerator import check_launch, make_accelerator
from .checkpoint import Interrupted, listen
from .faults import explain_faults
from .job import Job, OnStep, Teaching, batch_seed, student_seed, total_steps
from .labels import LabelTraining, train_student_alone, train_teachers, trained_teacher
from .loop import Training
from .run_folder import MANIFEST, Inputs, RunFolder, open_run_folder

__all__ = [
    "MANIFEST",
    "Inputs",
    "Interrupted",
    "Job",
    "LabelTraining",
    "OnStep",
    "RunFolder",
    "Teaching",
    "Training",
    "batch_seed",
    "check_launch",
    "explain_faults",
    "listen",
    "make_accelerator",
    "open_run_folder",
    "student_seed",
    "total_steps",
    "train_student_alone",
    "train_teachers",
    "trained_teacher",
]
