#!/usr/bin/env bash
# Fine-tunes KEByT5-small on KLUE natural language inference, and scores the dev rows.
# Set by the environment: MODEL, TRAIN_DATA, TEST_DATA, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-etri-lirs/kebyt5-small-preview}
TRAIN_DATA=${TRAIN_DATA:-data/klue/klue-nli-v1.1_train.json}
TEST_DATA=${TEST_DATA:-data/klue/klue-nli-v1.1_dev.json}
SAVE_PATH=${SAVE_PATH:-runs/klue_nli_kebyt5-small}
needs_klue TRAIN_DATA TEST_DATA
needs_environment
python train.py -task klue-nli -train_data "$TRAIN_DATA" -valid_data_proportions 0.02 -test_data "$TEST_DATA" \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -batch_size 32 -grad_acc 2 -max_epoch 5 -optim adafactor -learning_rate 1e-3 -lr_scheduler constant -warmup_steps 0.02 "$@"
