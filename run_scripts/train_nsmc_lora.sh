#!/usr/bin/env bash
# Trains a LoRA of ByT5-base on Naver movie review sentiment (NSMC).
# Set by the environment: MODEL, TRAIN_DATA, TEST_DATA, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-google/byt5-base}
TRAIN_DATA=${TRAIN_DATA:-data/nsmc/ratings_train.txt}
TEST_DATA=${TEST_DATA:-data/nsmc/ratings_test.txt}
SAVE_PATH=${SAVE_PATH:-runs/nsmc_lora}
needs_nsmc TRAIN_DATA TEST_DATA
needs_environment
python train.py -task nsmc-prompted -train_data "$TRAIN_DATA" -test_data "$TEST_DATA" \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -max_seq_length 512 -batch_size 32 -grad_acc 2 -max_epoch 3 -tuning_method lora -lora_r 16 -lora_alpha 32 -target_modules all-linear -learning_rate 5e-4 -lr_scheduler linear -warmup_steps 0.02 "$@"
