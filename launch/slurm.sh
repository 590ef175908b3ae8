#!/bin/bash
# One process for each GPU of every node; saved and queued again when its time is up.
#
#   sbatch launch/slurm.sh --config configs/videomae_k400.py --workdir /shared/runs/k400
#
# Adapt nodes, GPUs and time here, or on sbatch's command line. Workdir and data must be on disks
# that all nodes see.
#SBATCH --job-name=mvm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# SIGTERM to all tasks, this many seconds before the time is up: they save and leave with 75.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u
cd "$SLURM_SUBMIT_DIR" || exit 1

# JAX ends the others when one is lost; srun returns the highest exit code.
code=0
srun --kill-on-bad-exit=0 --cpu-bind=cores "${PYTHON:-python}" main.py "$@" || code=$?

# 75: saved, or another process was lost. 134: aborted by JAX because one was lost. 137 and 143:
# killed. 142: a step took too long. 1 and 2 would only come again.
case $code in
    75 | 134 | 137 | 142 | 143)
        if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
exit "$code"
