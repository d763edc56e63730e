#!/bin/bash
# A run under Slurm, on one node or several: one process per GPU. Out of time or pre-empted it saves its state, is queued
# again and continues. The repository, the run folder and the zoo must be on a disk that all nodes share.
#
# command    sbatch recipes/launch/slurm.sh RECIPE [key=value …], from the repository's root
# 1 × 8      sbatch recipes/launch/slurm.sh recipes/imagenet_ensemble.yaml
# 2 × 8      sbatch --nodes 2 recipes/launch/slurm.sh recipes/imagenet_ensemble.yaml
# others     sbatch --nodes 2 --gpus-per-node 4 --ntasks-per-node 4 recipes/launch/slurm.sh RECIPE
# tested     with substitutes for srun and scontrol, 2 processes on CPUs; never under Slurm, never on a GPU
#
#SBATCH --job-name=meco_timm
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

# Your environment, for example: source .venv/bin/activate
# For FSDP2 (fsdp2.yaml): export ACCELERATE_USE_FSDP=true FSDP_VERSION=2 FSDP_AUTO_WRAP_POLICY=NO_WRAP

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE="$SLURM_NTASKS" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# --kill-on-bad-exit: when one process ends with an error, stop the others.
srun --kill-on-bad-exit=1 \
  bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python train.py "$@"' train.py "$@"
code=$?
if [ "$code" -eq 143 ]; then  # asked to stop, state saved: train.py's own code for it, and a shell's for SIGTERM
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
