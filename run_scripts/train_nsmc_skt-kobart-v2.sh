#!/usr/bin/env bash
# Fine-tunes KoBART on Naver movie review sentiment (NSMC).
# Set by the environment: MODEL, TRAIN_DATA, TEST_DATA, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-gogamza/kobart-base-v2}
TRAIN_DATA=${TRAIN_DATA:-data/nsmc/ratings_train.txt}
TEST_DATA=${TEST_DATA:-data/nsmc/ratings_test.txt}
SAVE_PATH=${SAVE_PATH:-runs/nsmc_kobart-v2}
needs_nsmc TRAIN_DATA TEST_DATA
needs_environment
python train.py -task nsmc-naive -train_data "$TRAIN_DATA" -test_data "$TEST_DATA" \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -max_seq_length 128 -batch_size 64 -max_epoch 3 -learning_rate 3e-5 -warmup_steps 0.05 -lr_scheduler linear "$@"
