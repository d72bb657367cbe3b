#!/usr/bin/env bash
# Fine-tunes KEByT5-small on three tasks of KLUE together, and scores the dev rows of each.
# Set by the environment: MODEL, TRAIN_TASK, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-etri-lirs/kebyt5-small-preview}
TRAIN_TASK=${TRAIN_TASK:-run_scripts/klue_mixture.yaml}
SAVE_PATH=${SAVE_PATH:-runs/klue_mixture_kebyt5-small}
needs_environment
python train.py -train_task "$TRAIN_TASK" -valid_data_proportions 0.02 \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -batch_size 32 -grad_acc 2 -max_epoch 5 -optim adafactor -learning_rate 1e-3 -lr_scheduler constant -warmup_steps 0.02 "$@"
