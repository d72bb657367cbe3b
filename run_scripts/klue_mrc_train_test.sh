#!/usr/bin/env bash
# Fine-tunes KEByT5-small on KLUE reading comprehension, long passages in windows, and scores the dev questions.
# Set by the environment: MODEL, TRAIN_DATA, TEST_DATA, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-etri-lirs/kebyt5-small-preview}
TRAIN_DATA=${TRAIN_DATA:-data/klue/klue-mrc-v1.1_train.json}
TEST_DATA=${TEST_DATA:-data/klue/klue-mrc-v1.1_dev.json}
SAVE_PATH=${SAVE_PATH:-runs/klue_mrc_kebyt5-small}
needs_klue TRAIN_DATA TEST_DATA
needs_environment
python train.py -task klue-mrc -train_data "$TRAIN_DATA" -valid_data_proportions 0.02 -test_data "$TEST_DATA" \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -max_seq_length 1024 -doc_stride 256 \
    -max_tokens 16000 -grad_acc 4 -max_epoch 3 -optim adafactor -learning_rate 1e-3 -lr_scheduler constant -warmup_steps 0.02 "$@"
