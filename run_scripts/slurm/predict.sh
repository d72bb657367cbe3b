#!/usr/bin/env bash
#SBATCH --job-name=predict
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
# Predicts on every GPU of two nodes; goes back into the queue a minute before the time limit, and then decodes the rows
# that are left. sbatch run_scripts/slurm/predict.sh [flags of inference.py]
# With --kill-on-bad-exit=0 the other processes do the rows of one that dies, whatever the cluster's default is.
# Set by the environment: MODEL, TEST_DATA, OUTPUT.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start it by: sbatch run_scripts/slurm/predict.sh}"
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" python inference.py \
    -model "${MODEL:-runs/slurm}" -test_data "${TEST_DATA:-test.tsv}" -save_output "${OUTPUT:-predictions.txt}" "$@" &
wait $!
