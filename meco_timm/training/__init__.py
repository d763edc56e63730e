"""One loop for any objective, on many devices, safe to interrupt.

In: an objective, a Job, the teachers' outputs. Out: the stream with its best weights, metrics, checkpoints.
Never: depends on which teachers there are, or what the losses mean.
"""

from meco_timm.training.accelerator import make_accelerator
from meco_timm.training.checkpoint import Interrupted, listen
from meco_timm.training.faults import explain_faults
from meco_timm.training.inputs import inputs_of, record_inputs
from meco_timm.training.job import Job, OnStep, Teaching, batch_seed, student_seed, total_steps
from meco_timm.training.loop import Training
from meco_timm.training.run_folder import RunFolder, finished_rows, open_run_folder
from meco_timm.training.sharding import check_launch

__all__ = [
    "Interrupted",
    "Job",
    "OnStep",
    "RunFolder",
    "Teaching",
    "Training",
    "batch_seed",
    "check_launch",
    "explain_faults",
    "finished_rows",
    "inputs_of",
    "listen",
    "make_accelerator",
    "open_run_folder",
    "record_inputs",
    "student_seed",
    "total_steps",
]
