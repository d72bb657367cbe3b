#!/usr/bin/env bash
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains on every GPU of two nodes; saves itself five minutes before the time limit, and goes back into the queue.
# sbatch run_scripts/slurm/train.sh [flags of train.py]; options of sbatch in front of the name replace those above.
# Set by the environment: MODEL, TRAIN_DATA, VALID_DATA, SAVE_PATH.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start it by: sbatch run_scripts/slurm/train.sh}"
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" python train.py \
    -num_nodes "$SLURM_NNODES" -gpus "${SLURM_GPUS_ON_NODE:-0}" -seed 1 -requeue -resume_checkpoint auto \
    -train_data "${TRAIN_DATA:-train.tsv}" -valid_data "${VALID_DATA:-valid.tsv}" \
    -init_model "${MODEL:-google/byt5-small}" -save_path "${SAVE_PATH:-runs/slurm}" "$@"
