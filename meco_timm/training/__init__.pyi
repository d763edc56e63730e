from .accelerator import make_accelerator
from .checkpoint import Interrupted, listen
from .faults import explain_faults
from .inputs import inputs_of, record_inputs
from .job import Job, OnStep, Teaching, batch_seed, student_seed, total_steps
from .loop import STEPS, Training
from .run_folder import RunFolder, finished_run, open_run_folder
from .sharding import check_launch

__all__ = [
    "STEPS",
    "Interrupted",
    "Job",
    "OnStep",
    "RunFolder",
    "Teaching",
    "Training",
    "batch_seed",
    "check_launch",
    "explain_faults",
    "finished_run",
    "inputs_of",
    "listen",
    "make_accelerator",
    "open_run_folder",
    "record_inputs",
    "student_seed",
    "total_steps",
]
